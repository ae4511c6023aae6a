"""Content keys: one name for the same work, on every machine and in every process."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import StoreError

_KEY = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")


@dataclass(frozen=True)
class Written:
    """A part of content keys as `content_key` writes it: for a large one that is in many of them."""

    text: str

    @classmethod
    def of(cls, part: Any) -> Written:
        """A part that counts as itself."""
        return cls(_text(part))


def content_key(*parts: Any) -> str:
    """Hash what determines a piece of work.

    Args:
        parts: JSON-able values, nested at will. The order of a dict's entries does not matter, a tuple equals a list,
            floats count to the last bit, and 1, 1.0, True and "1" are four different things. Bytes and NumPy arrays
            (dtype, shape and content) are allowed as well, and what `Written.of` makes of any of these.

    Returns:
        32 hexadecimal digits.

    Raises:
        TypeError: for a value of any other type; a key made from its `repr` would not be stable.
    """
    text = ",".join(part.text if isinstance(part, Written) else _text(part) for part in parts)
    return hashlib.sha256(f"[{text}]".encode("ascii")).hexdigest()[:32]


def _text(part: Any) -> str:
    return json.dumps(_tagged(part), ensure_ascii=True, separators=(",", ":"))


def check_key(key: str) -> str:
    """`key`, if it can be a file name in every store.

    Raises:
        StoreError: if it cannot.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise StoreError(f"{key!r} is no key: use up to 128 letters, digits, '.', '_' and '-'; see content_key")
    return key


def _tagged(value: Any) -> Any:
    # Every container carries a tag, so that no list can be mistaken for a dict, bytes or an array.
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        return ["list", *(_tagged(item) for item in value)]
    if isinstance(value, dict):
        if not all(type(name) is str for name in value):
            raise TypeError("a content key takes dicts with string names only")
        return ["dict", *([name, _tagged(value[name])] for name in sorted(value))]
    if isinstance(value, bytes | bytearray | memoryview):
        return ["bytes", hashlib.sha256(value).hexdigest()]
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        plain = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        return ["array", str(plain.dtype.str), list(value.shape), hashlib.sha256(plain.tobytes()).hexdigest()]
    raise TypeError(f"a content key cannot be made from {type(value).__name__}; give numbers, strings, lists or dicts")

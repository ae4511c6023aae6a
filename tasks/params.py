"""Parameters of methods: what they have in common, and which of them determine what."""

import hashlib
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import InputError

SPEED: Any = Field(json_schema_extra={"speed": True})
"""Marks a parameter that changes how fast something is computed and nothing else: it is no part of any id."""
UNITES: Any = Field(json_schema_extra={"unites": True})
"""Marks a parameter of a localizer that only says how its sets are united where they are pruned: it is part of a pruned
variant's id, and not of the id of the sets."""


def _title(kind: type) -> str:
    """What a group of parameters is called in a form: its class's name in words, such as "Random tokens"."""
    return re.sub(r"(?<!^)([A-Z])", lambda found: f" {found[0].lower()}", kind.__name__.removesuffix("Params"))


class Params(BaseModel):
    """Parameters of a method: published values are the defaults, and each description can be read alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", model_title_generator=_title)


class NoParams(Params):
    """Of a method that has nothing to be set."""


def determining(params: BaseModel) -> dict[str, Any]:
    """The parameters that determine a result, as JSON has them: all but those of speed, and of a file what is in it.

    Raises:
        InputError: a file cannot be read.
    """
    idle = {name for name, one in type(params).model_fields.items() if is_speed(one)}
    files = {name: _content(value) for name, value in params if isinstance(value, Path)}
    return params.model_dump(mode="json", exclude=idle) | files


def uniting(params: BaseModel) -> dict[str, Any]:
    """The parameters of a localizer that only say how its sets are united."""
    return params.model_dump(
        mode="json", include={name for name, one in type(params).model_fields.items() if _is(one, "unites")}
    )


def is_speed(one: Any) -> bool:
    """Whether a pydantic field is one of speed alone."""
    return _is(one, "speed")


def _is(one: Any, mark: str) -> bool:
    extra = one.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get(mark))


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error

"""The address that is told of regressions. It is a secret: whoever has it can write to the people behind it."""

from pathlib import Path
from urllib.parse import urlsplit

from tasks.errors import InputError


def read_address(notify: str | None, file: Path | None) -> str | None:
    """The address, from wherever it was given; None if nowhere.

    Args:
        notify: the address itself, or @FILE.
        file: the file that has it.

    Raises:
        InputError: the file cannot be read, or what was given is no address.
    """
    if file is None and notify is not None and notify.startswith("@"):
        file = Path(notify[1:])
    if file is None:
        return None if notify is None else check_address(notify)
    if notify is not None and notify != f"@{file}":
        raise InputError("--notify and --notify-file exclude each other: give one of them")
    try:
        lines = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"the address that is told cannot be read from {file}: {reason}") from error
    if len(lines) != 1 or not _is_address(lines[0]):
        raise InputError(f"{file} must hold one http:// or https:// address, and nothing else")
    return lines[0]


def check_address(address: str) -> str:
    """The address itself.

    Raises:
        InputError: it is none.
    """
    if not _is_address(address):
        raise InputError(f"--notify {address!r} is no http:// or https:// address")
    return address


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False

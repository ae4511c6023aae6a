"""A home of Prefect's server: its database with the key of what it keeps encrypted, its logs, the UI's files.

Whoever reads the database reads the addresses and passwords in it. So a home is its owner's alone.
"""

import fcntl
import os
import pwd
import stat
from pathlib import Path
from typing import IO

from tasks.errors import InputError

UMASK = 0o077
"""What processes that write into a home have as their umask: files are 0600, folders 0700."""
LOCK = "serve.lock"
SIGN = "engram-home"
"""What a home is known by though its database lies elsewhere."""
SIGNS = ("prefect.db", "memo_store.toml", "profiles.toml", "notices.json", LOCK, SIGN)
"""What tells a home from a folder of other things, whose files nobody wants closed."""


def private(home: Path) -> Path:
    """Makes a folder, and all that lies in it, readable by its owner alone; returns its real path.

    Links are not followed but for the home itself, which may be a link of one's own.

    Raises:
        InputError: it cannot be made, it holds other things, or it or something in it belongs to somebody else.
    """
    try:
        if home.is_symlink() and home.lstat().st_uid not in (os.geteuid(), 0):
            raise InputError(f"{home} is a link of {_user(home.lstat().st_uid)}: choose another folder with --home")
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        real = home.resolve(strict=True)
        owner = real.stat().st_uid
        if owner != os.geteuid():
            raise InputError(f"{home} belongs to {_user(owner)}, not to you: choose another folder with --home")
        if any(real.iterdir()) and not any((real / sign).exists() for sign in SIGNS):
            raise InputError(f"{home} holds other things and no server's database: choose another folder with --home")
        real.chmod(0o700)  # first: from here on nobody else changes anything in it
        (real / SIGN).touch(mode=0o600)
    except OSError as error:
        raise InputError(f"cannot write into {home}: {error.strerror}; choose another folder with --home") from error
    for folder, folders, files in os.walk(real):
        for name in (*folders, *files):
            _close(Path(folder, name))
    return real


def _close(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return  # a file of the database's that came and went
    try:
        wanted = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
        if not stat.S_ISLNK(found.st_mode) and stat.S_IMODE(found.st_mode) != wanted:
            path.chmod(wanted)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(
            f"{path} belongs to {_user(found.st_uid)} and cannot be closed to others ({error.strerror}): "
            "change its owner, or choose another folder with --home"
        ) from error


def lock(home: Path) -> IO[str]:
    """Takes a home for this process, until the file that is returned is closed or the process ends in whatever way.

    Raises:
        InputError: another process has it; says which.
    """
    file = (home / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise InputError(
            f"{home} is in use by another `engram serve`, process {holder}: stop that one, or choose another --home"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

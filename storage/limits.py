"""What a question may take: time, memory, and room on the disk."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import duckdb
import psutil

from storage.errors import StoreError
from storage.local import is_dead, machine

Answer = TypeVar("Answer")

_NAME = "engram-spill-"
_DAY = 86400.0
_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Limits:
    """What one question may take; None stands for the default."""

    seconds: float | None = None
    """Seconds until it is ended; None for no limit."""
    memory: int | None = None
    """Bytes of memory; None for half of what this machine, or this container, has."""
    spill: int | None = None
    """Bytes on the disk for what does not fit in memory; None for half of what is free in the temporary folder."""

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise StoreError(f"a time limit of {self.seconds} seconds leaves no time: give more than 0")
        if (self.memory is not None and self.memory < 1 << 26) or (self.spill is not None and self.spill < 0):
            raise StoreError("a memory limit is at least 64 MiB, one of the disk at least 0 bytes")

    def bytes_of_memory(self) -> int:
        return self.memory or machine_memory() // 2

    def bytes_of_spill(self) -> int:
        return shutil.disk_usage(tempfile.gettempdir()).free // 2 if self.spill is None else self.spill


PATIENT = 300.0
"""Seconds that a person's question may take where they say nothing else."""


def machine_memory() -> int:
    """Bytes of memory that this process can use: the machine's, or what its control groups allow if that is less."""
    return min([psutil.virtual_memory().total, *_group_limits()])


def _group_limits() -> Iterator[int]:
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = _GROUPS / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        # A limit of any group above holds as well; in a container the path may be that of the host, so the top counts.
        inside = base / path.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder == _GROUPS.parent:
                break
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit():
                yield int(text)


def spill_folder() -> str:
    """A new name for what one connection does not keep in memory, in a folder that only this user can enter.

    It is removed with this process; what killed processes left is removed first.
    """
    return f"{_own_folder(os.getpid(), tempfile.gettempdir())}/{secrets.token_hex(8)}"


@cache
def _own_folder(process: int, temporary: str) -> str:
    remove_dead(temporary)
    folder = tempfile.mkdtemp(prefix=f"{_NAME}{machine()}~{process}~", dir=temporary)

    def remove() -> None:
        if os.getpid() == process:  # a fork shares it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def remove_dead(temporary: str) -> None:
    """Remove the folders of this user's processes that were killed while a question ran."""
    try:
        found = [item for item in os.scandir(temporary) if item.name.startswith(_NAME)]
    except OSError:
        return
    for item in found:
        try:
            status = item.stat(follow_symlinks=False)
        except OSError:
            continue
        own = item.is_dir(follow_symlinks=False) and status.st_uid == os.getuid()
        if own and (is_dead(item.name.removeprefix(_NAME)) or time.time() - status.st_mtime > _DAY):
            shutil.rmtree(item.path, ignore_errors=True)


def limit(con: duckdb.DuckDBPyConnection, limits: Limits) -> None:
    """Set what a connection may hold in memory and on the disk."""
    con.execute(f"SET memory_limit = '{limits.bytes_of_memory() >> 20}MiB'")
    con.execute(f"SET max_temp_directory_size = '{limits.bytes_of_spill() >> 20}MiB'")


@contextmanager
def time_limit(con: duckdb.DuckDBPyConnection, seconds: float | None) -> Iterator[None]:
    """Within, what runs on the connection is ended after some seconds.

    Raises:
        StoreError: it was.
    """
    done, over = threading.Event(), threading.Event()

    def end() -> None:
        done.wait(seconds)
        # Again and again: an interrupt that comes between two statements is lost.
        while not done.wait(0.1):
            over.set()
            con.interrupt()

    if seconds is not None:
        threading.Thread(target=end, daemon=True).start()
    try:
        yield
    except (duckdb.Error, RuntimeError) as error:  # fetching says the latter
        if over.is_set():
            raise too_long(seconds or 0.0) from error
        raise
    finally:
        done.set()


def too_long(seconds: float) -> StoreError:
    return StoreError(
        f"no answer within {seconds:g} seconds: ask for less, or give it more time with --timeout SECONDS"
    )


def interruptible(con: duckdb.DuckDBPyConnection, work: Callable[[], Answer], seconds: float | None = None) -> Answer:
    """The answer of `work`, which asks the connection; Ctrl-C and the end of the time interrupt it at once.

    DuckDB looks at neither while it fills an Arrow table, so it works in a thread, and this one waits.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        StoreError: no answer within `seconds`.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    began = time.monotonic()
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.05)
            if seconds is not None and time.monotonic() - began > seconds:
                raise too_long(seconds)
    except BaseException:
        # Asked again: an interrupt that comes between two steps is lost.
        for _ in range(20):
            con.interrupt()
            thread.join(0.05)
            if not thread.is_alive():
                break
        raise
    if errors:
        raise errors[0]
    return answers[0]

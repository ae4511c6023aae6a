"""SQL from a person, run so that it can read the store and do nothing else, within limits.

It runs in a process of its own, because DuckDB looks neither at the clock nor at its memory limit within one step, and
a step can be as long as `range(100000000000)` is: a process can be ended at any moment, and its memory is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import duckdb
import psutil
import pyarrow as pa

from storage.catalog import connect_guarded, refused
from storage.checked import OnDamage
from storage.errors import StoreError, one_line
from storage.limits import PATIENT, Limits, spill_folder, too_long
from storage.store import Store

_EXPLAIN = re.compile(r"\s*EXPLAIN(\s+ANALYZE)?\b", re.IGNORECASE)
# What Arrow, or Python, takes for something else, or for nothing.
_FOREIGN = re.compile(
    r"\b(INTERVAL|BIT|BIGNUM|VARINT|UHUGEINT|TIME WITH TIME ZONE|TIME_NS|UNION|VARIANT|GEOMETRY|TIMESTAMP_S)\b"
)
_BASE = 1 << 28
"""Bytes that a process takes beside what DuckDB counts."""
_HEAD = 9
"""Bytes before each message: its kind, and its length."""


def run_sql(store: Store, text: str, limits: Limits | None = None, on_damage: OnDamage | None = None) -> pa.Table:
    """Answer one question.

    Args:
        store: what it may read; nothing outside is in reach, and nothing can be changed.
        text: one SELECT (or FROM, WITH, VALUES, DESCRIBE, SUMMARIZE, SHOW), or EXPLAIN [ANALYZE] of one.
        limits: what it may take; None for five minutes, half of the memory and half of the room in the temporary
            folder. The answer may take a quarter of the memory.
        on_damage: called with the address of a part that is not sound and the reason, and the part is left out; such
            a part is refused if None.

    Returns:
        The rows of the answer. Columns of types that Arrow does not have (INTERVAL, BIT, UHUGEINT, ...) are text.

    Raises:
        StoreError: any other statement, more than one, a mistake in the SQL, a file outside the store, a part that is
            not sound, more time or memory than it may take.
    """
    limits = limits or Limits(seconds=PATIENT)
    statement, spill = _only_select(text), spill_folder()
    # DuckDB may always reach the folder it spills into, so that is a new one, which nobody else can enter and which is
    # removed with all that is in it.
    os.mkdir(spill, mode=0o700)
    request = {
        "asker": os.getpid(),
        "url": store.url,
        "statement": statement,
        "memory": limits.bytes_of_memory(),
        "spill": spill,
        "spill_bytes": limits.bytes_of_spill(),
        "leave_out": on_damage is not None,
    }
    # Of Python's path no more than the folder that this package lies in; -P keeps out the folder it is started from.
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    program = [sys.executable, "-P", "-m", "storage.sandbox"]
    process = subprocess.Popen(
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C in a terminal comes to this process alone, which ends the other
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        return _answer(process, limits, on_damage)
    except BrokenPipeError as error:
        raise StoreError("the process that answers could not start") from error
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        shutil.rmtree(spill, ignore_errors=True)


def _answer(process: subprocess.Popen[bytes], limits: Limits, on_damage: OnDamage | None) -> pa.Table:
    tables: list[pa.Table] = []
    room = limits.bytes_of_memory() // 4
    for kind, payload in _messages(process, limits):
        if kind == b"D" and on_damage is not None:
            on_damage(*json.loads(payload))
        elif kind == b"E":
            raise StoreError(payload.decode())
        elif kind == b"B":
            room -= len(payload)
            if room < 0:
                raise StoreError(
                    f"the answer is larger than {_size(limits.bytes_of_memory() // 4)}: add a LIMIT, or ask for sums"
                )
            tables.append(pa.ipc.open_stream(payload).read_all())
        elif kind == b".":
            return pa.concat_tables(tables)
    raise StoreError("the process that answers ended: it may have run out of memory; ask for less")


def _messages(process: subprocess.Popen[bytes], limits: Limits) -> Iterator[tuple[bytes, bytes]]:
    """What the process says, until it ends; it is watched meanwhile.

    Raises:
        StoreError: it took more than it may.
    """
    assert process.stdout is not None
    pipe, seen = process.stdout.fileno(), psutil.Process(process.pid)
    began, most = time.monotonic(), limits.bytes_of_memory() + _BASE
    buffer = bytearray()
    while True:
        if limits.seconds is not None and time.monotonic() - began > limits.seconds:
            raise too_long(limits.seconds)
        try:
            if seen.memory_info().rss > most:
                raise StoreError(f"it needs more than {_size(limits.bytes_of_memory())} of memory: ask for less")
        except psutil.Error:  # it has ended
            pass
        if not select.select([pipe], [], [], 0.03)[0]:
            continue
        if not (data := os.read(pipe, 1 << 20)):
            return
        buffer += data
        while len(buffer) >= _HEAD:
            end = _HEAD + int.from_bytes(buffer[1:_HEAD], "little")
            if end > most:
                raise StoreError(f"one row of the answer is larger than {_size(limits.bytes_of_memory())}")
            if len(buffer) < end:
                break
            yield bytes(buffer[:1]), bytes(buffer[_HEAD:end])
            del buffer[:end]


def _size(number: int) -> str:
    return f"{number / (1 << 30):.1f} GiB" if number >= 1 << 30 else f"{number >> 20} MiB"


def _only_select(text: str) -> str:
    # The locked connection could not write anyway; this says so before it tries. EXPLAIN ANALYZE runs what it explains,
    # so what follows it is looked at as well.
    try:
        statements = duckdb.extract_statements(text)
        kinds = [statement.type for statement in statements]
        if kinds == [duckdb.StatementType.EXPLAIN] and (explain := _EXPLAIN.match(text)):
            kinds = [statement.type for statement in duckdb.extract_statements(text[explain.end() :])]
    except duckdb.Error as error:
        raise StoreError(one_line(error)) from error
    if kinds != [duckdb.StatementType.SELECT]:
        raise StoreError("only a single SELECT is run here: nothing that writes, attaches, loads or sets")
    return statements[0].query


def main() -> None:
    """What the process does: answer one question, which comes as a line of JSON, and say so in messages."""
    lock = threading.Lock()
    # Whatever a library prints must not come among the messages.
    pipe = os.dup(1)
    os.dup2(2, 1)

    def say(kind: bytes, payload: bytes) -> None:
        with lock:
            data = kind + len(payload).to_bytes(8, "little") + payload
            view = memoryview(data)
            while view:
                view = view[os.write(pipe, view) :]

    request = json.loads(sys.stdin.buffer.readline())
    answering = os.getpid()
    if os.fork() == 0:
        os.close(pipe)  # who reads it must see its end when this process is gone
        _end_with_asker(answering, request)
    # That process may be killed, too; then this does, unless a library holds Python's lock.
    threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
    try:
        _run(request, say)
    except StoreError as error:
        say(b"E", str(error).encode())
    except Exception as error:  # nothing is on the screen of this process
        say(b"E", one_line(error).encode())
    os._exit(0)  # nothing to tidy, and nothing said by libraries that end


def _end_with_asker(answering: int, request: dict[str, Any]) -> NoReturn:
    """End the process that answers once the one that asked is gone, and remove what it spilled.

    A process of its own: a thread would wait for Python's lock, which a library may hold for as long as it likes.
    """
    # The pipe ends with whoever asked, however that comes about, unless a fork of it holds the other end.
    while not select.select([0], [], [], 1.0)[0] and _is_there(request["asker"]):
        pass
    while os.getppid() == answering:
        with contextlib.suppress(ProcessLookupError):
            os.kill(answering, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(request["spill"], ignore_errors=True)
    if not _is_there(request["asker"]):
        with contextlib.suppress(OSError):  # another question of it may be ending as well
            os.rmdir(os.path.dirname(request["spill"]))
    os._exit(0)


def _is_there(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _run(request: dict[str, Any], say: Callable[[bytes, bytes], None]) -> None:
    def left_out(address: str, reason: str) -> None:
        say(b"D", json.dumps([address, reason]).encode())

    limits = Limits(memory=max(request["memory"] * 4 // 5, 1 << 26), spill=request["spill_bytes"])
    store = Store.open(request["url"], create=False)
    con, read = connect_guarded(store, request["spill"], limits, left_out if request["leave_out"] else None)
    try:
        # No other directory is allowed, not even the store's: SQL hides writes well, as in
        # WITH x AS (COPY ...) SELECT 1, and DuckDB knows no directory that is for reading only.
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
        reader = _plain(con.sql(request["statement"])).to_arrow_reader(1 << 16)
        say(b"B", _stream(reader.schema, None))
        for batch in reader:
            say(b"B", _stream(reader.schema, batch))
        say(b".", b"")
    except duckdb.PermissionException as error:
        raise StoreError(f"SQL reads the store and nothing else: {one_line(error)}") from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        found = None if request["leave_out"] else refused(read)
        raise found or StoreError(one_line(error)) from error


def _plain(answer: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The answer, with columns of types that Arrow does not have as DuckDB writes them."""
    kinds = [str(kind) for kind in answer.types]
    if not any(map(_FOREIGN.search, kinds)):
        return answer
    columns = []
    for number, (name, kind) in enumerate(zip(answer.columns, kinds, strict=True), start=1):
        value = f"CAST(#{number} AS VARCHAR)" if _FOREIGN.search(kind) else f"#{number}"
        columns.append(f'{value} AS "{name.replace(chr(34), 2 * chr(34))}"')
    return answer.project(", ".join(columns))


def _stream(schema: pa.Schema, batch: pa.RecordBatch | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        if batch is not None:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


if __name__ == "__main__":
    main()

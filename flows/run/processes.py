"""Workers that are processes of this machine: they need no server, and keep the model between shards."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from flows.run.spec import Run
from flows.run.spread import Ended, Shard
from tasks.diffusion.model import gpus_here
from tasks.errors import InputError

SECONDS = 30.0
"""How long a shard should take: it costs no start of a process, only a list of the work."""
WAIT_S = 5.0


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    shard: Shard | None = None
    heard: bytes = b""
    """Of its answer, what has come so far."""


class Processes:
    """So many processes; see `flows.run.spread.Workers`. Each that ends by itself is replaced.

    On a machine with GPUs each process has one of its own.
    """

    seconds = SECONDS
    least = 1.0

    def __init__(self, many: int, run: Run, audit_id: str) -> None:
        """
        Raises:
            InputError: more processes than GPUs.
        """
        check_many(many, run.device)
        self._run, self._audit_id = run, audit_id
        self._workers = [self._started(number, many) for number in range(many)]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *raised: object) -> None:
        for worker in self._workers:
            _end(worker.process)

    @property
    def many(self) -> int:
        return len(self._workers)

    def free(self) -> int:
        return sum(worker.shard is None for worker in self._workers)

    def begin(self, shard: Shard) -> None:
        worker = next(worker for worker in self._workers if worker.shard is None)
        worker.shard = shard
        request = {"run": self._run.model_dump(), "audit_id": self._audit_id, "stage": shard.stage}
        request["items"] = shard.ids
        _ask(worker.process, request)

    def wait(self) -> list[Ended]:
        pipes = {_pipe(worker.process.stdout): number for number, worker in enumerate(self._workers)}
        ready, _, _ = select.select([*pipes], [], [], WAIT_S)
        found = [self._heard(pipes[pipe]) for pipe in ready]
        return [ended for ended in found if ended is not None]

    def _heard(self, number: int) -> Ended | None:
        """Reads what a process says; None while it has not said all, or had nothing to do."""
        worker = self._workers[number]
        data = os.read(_pipe(worker.process.stdout).fileno(), 1 << 16)
        if not data:
            code = _end(worker.process)
            self._workers[number] = self._started(number, self.many)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return None if worker.shard is None else Ended(worker.shard, lost=f"its process ended by itself ({how})")
        worker.heard += data
        if not worker.heard.endswith(b"\n"):
            return None
        answer, shard = json.loads(worker.heard), worker.shard
        worker.heard, worker.shard = b"", None
        assert shard is not None
        return Ended(shard, answer.get("seconds", 0.0), answer.get("failed", {}), answer.get("error", ""))

    def _started(self, number: int, many: int) -> _Worker:
        env = dict(os.environ)
        if _on_gpus(self._run.device):
            env["CUDA_VISIBLE_DEVICES"] = str(number)
        else:
            # More threads than cores wait for each other at every operation.
            env.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // many)))
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.run.worker"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others
        )
        _ask(process, {"run": self._run.model_dump()})
        return _Worker(process)


def check_many(many: int, device: str | None) -> None:
    """Raises InputError where so many processes cannot work on this machine."""
    if many < 1:
        raise InputError(f"--workers {many}: at least one process has to work")
    if many > 1 and (device or "").startswith("mps"):
        raise InputError(f"--workers {many}: an Apple GPU is one, and each process needs its own: leave --workers out")
    if _on_gpus(device):
        if device not in (None, "cuda"):
            raise InputError(f"--workers gives each process a GPU of its own: leave out --device {device}")
        if many > gpus_here():
            raise InputError(f"--workers {many}: this machine has {gpus_here()} GPUs, and each works on one shard")


def _on_gpus(device: str | None) -> bool:
    return gpus_here() > 0 and (device is None or device.startswith("cuda"))


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    """Gives a process a line to read; where it ended, whoever waits for it sees that."""
    pipe = _pipe(process.stdin)
    with suppress(BrokenPipeError):
        pipe.write(json.dumps(request).encode() + b"\n")
        pipe.flush()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe of a process that was started with it."""
    assert pipe is not None
    return pipe


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends a process that was started, and returns how it ended."""
    for pipe in (process.stdin, process.stdout):
        with suppress(BrokenPipeError):
            _pipe(pipe).close()
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    return process.wait()

"""Run as a program: writers that are killed at random moments.

Arguments: address of the store, number of kills, the longest life of a writer in seconds.

A program of its own, because it forks: each writer begins with the libraries loaded, so hundreds take seconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from storage import Store
from tests.support.rows import SET, neuron_set

AT_ONCE = 4


def write_forever(url: str, seed: int, weights: Path) -> None:
    """Write parts and folders, half of them under keys that all writers try at the same moment."""
    choose = random.Random(seed)
    store = Store.open(url)
    weights.mkdir()
    (weights / "unet").write_bytes(choose.randbytes(200_000))
    while True:
        number = time.time_ns() // 10_000_000 if choose.random() < 0.5 else choose.randrange(1_000_000)
        members = set(choose.sample(range(1000), choose.randrange(500)))
        store.write("neuron_sets", f"k{number}", [neuron_set(str(number), members)], **SET)
        if number % 8 == 0:
            store.put_folder("variants", f"w{number}", weights)


def main(url: str, kills: int, longest: float, folder: Path) -> None:
    """Start writers, and kill each after a random time. What they copy from lies in `folder`."""
    choose = random.Random(0)
    for start in range(0, kills, AT_ONCE):
        writers = []
        for seed in range(start, min(start + AT_ONCE, kills)):
            child = os.fork()
            if child == 0:
                write_forever(url, seed, folder / str(seed))
            writers.append(child)
        for child in writers:
            time.sleep(choose.uniform(0.0, longest))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WTERMSIG(status) != signal.SIGKILL:
                sys.exit(f"a writer ended by itself: {status}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as copied:
        main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), Path(copied))

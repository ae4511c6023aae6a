"""What a killed process costs: an audit by three processes, of which, or of whose parent or server, one is killed again
and again, until it is through; then its estimates are compared with those of an audit that nobody disturbed.

    engram bench faults [--kills 20] [--workers 3] [--seed 0] [--json FILE]
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from flows.run.execution import SLEEP
from storage import Store, verify
from tests.support.world import tiny_world

SMALL: dict[str, Any] = {
    "examined": "all",
    "memorized": 4,
    "nulls": 4,
    "threshold_nulls": 2,
    "ordinary": 4,
    "seeds": 8,
    "attacked": 3,
    "controls": 2,
    "starts": ["noise"],
    "mitigations": ["wanda", "nemo-union", "nemo", "ordinary-finetune"],
    "sampling": {"steps": 2},
    "nemo": {"seeds": 3, "threshold": 0.0},
    "sscd": {"side": 32},
    "wanda": {"tau": 2, "sparsity": 0.1},
    "dori": {"steps": 2, "batch": 2, "images_at_once": 1},
    "finetune": {"epochs": 2, "ordinary_batch": 1, "images_per_step": 2},
}
KINDS = ("worker", "audit", "server")
PER_EVALUATION = 0.02
"""Seconds that a worker sleeps for each evaluation of the denoiser: the audit would be over too soon."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many processes are killed")
    parser.add_argument("--workers", type=int, default=3, help="processes that work")
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    parser.add_argument("--json", type=Path, help="write the numbers as one flat object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_world(Path(folder) / "world")
        undisturbed = Path(folder) / "undisturbed"
        begun = time.monotonic()
        _ended(_started(model, undisturbed, 1, 0.0))
        alone = time.monotonic() - begun
        disturbed = Path(folder) / "disturbed"
        killed, commands, seconds = _disturbed(model, disturbed, args.workers, args.kills, args.seed)
        same = _estimates(disturbed) == _estimates(undisturbed)
        damage = verify(Store.open(str(disturbed)))
    print("killed    times")
    for kind in KINDS:
        print(f"{kind:<8} {killed.count(kind):6}")
    print(
        f"commands {commands:6}   until one was through, {seconds:.0f} s; undisturbed, and without sleep, {alone:.0f} s"
    )
    print(f"estimates {'equal to the last digit' if same else 'DIFFER'}; damaged parts: {len(damage)}")
    if args.json:
        numbers = {f"killed_{kind}": killed.count(kind) for kind in KINDS} | {"commands": commands, "seconds": seconds}
        args.json.write_text(json.dumps(numbers | {"equal": int(same), "damaged": len(damage)}, indent=1) + "\n")
    sys.exit(0 if same and not damage else 1)


def _disturbed(model: Path, store: Path, workers: int, kills: int, seed: int) -> tuple[list[str], int, float]:
    """What was killed, in how many commands, and the seconds until the last of these was through."""
    draw, killed, commands, begun = random.Random(seed), list[str](), 0, time.monotonic()
    while True:
        process = _started(model, store, workers, PER_EVALUATION)
        commands += 1
        while len(killed) < kills and process.poll() is None:
            time.sleep(draw.uniform(1.0, 8.0))
            kind = draw.choice(KINDS)
            if (found := _of(process, kind, draw)) is not None:
                found.send_signal(signal.SIGKILL)
                killed.append(kind)
        if _ended(process, may_fail=len(killed) > 0) == 0:
            return killed, commands, time.monotonic() - begun


def _of(process: "subprocess.Popen[bytes]", kind: str, draw: random.Random) -> psutil.Process | None:
    """A process of this kind that belongs to a command; None where there is none now."""
    try:
        audit = psutil.Process(process.pid)
        children = audit.children()
        named = {"worker": "flows.run.worker", "server": "flows.server"}
        found = [audit] if kind == "audit" else [one for one in children if named[kind] in " ".join(one.cmdline())]
        # Before anybody works there is nothing to be lost.
        at_work = any(named["worker"] in " ".join(one.cmdline()) for one in children)
        return draw.choice(found) if found and at_work else None
    except psutil.Error:
        return None


def _started(model: Path, store: Path, workers: int, sleep: float) -> "subprocess.Popen[bytes]":
    words = [word for name, value in SMALL.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    start = [sys.executable, "-c", "from flows.cli import main; main()", "audit", "--json", "--device", "cpu"]
    place = ["--model", str(model), "--store", str(store), "--workers", str(workers)]
    env = os.environ | {SLEEP: str(sleep), "OMP_NUM_THREADS": "1"}
    silent = subprocess.DEVNULL
    return subprocess.Popen([*start, *place, *words], env=env, stdin=silent, stdout=silent, stderr=silent)


def _ended(process: "subprocess.Popen[bytes]", may_fail: bool = False) -> int:
    code = process.wait()
    if code != 0 and not may_fail:
        raise SystemExit(f"engram: the audit ended with exit code {code} though nobody disturbed it")
    return code


def _estimates(store: Path) -> list[str]:
    """Those of the audit that was completed."""
    opened = Store.open(str(store), create=False)
    (audit,) = opened.read("audits", state="completed")["audit_id"].to_pylist()
    return sorted(map(str, opened.read("metrics", audit_id=audit).drop(["audit_id"]).to_pylist()))

"""Whatever happens to a writer, and whenever: every visible part is whole, and nothing is left lying about."""

from __future__ import annotations

import builtins
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import storage.local
from storage import Store, StoreError, collect_litter, content_key, verify
from tests.support.rows import SET, neuron_set

ROOT = Path(__file__).parents[2]


class Death(BaseException):
    """Stands for the end of the process: after it, nothing the process tries has any effect."""


class Fate:
    """Dies at the given step; every call of the operating system is a step, a write dies half-way."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Death

    def mortal(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.step()
            return function(*args, **options)

        return call

    def open(self, path: Path, mode: str) -> Any:
        self.step()
        file = builtins.open(path, mode)  # noqa: SIM115 - closed by who asked for it
        write = file.write

        def write_half(data: bytes) -> int:
            write(data[: len(data) // 2])
            file.flush()
            self.step()
            return write(data[len(data) // 2 :])

        file.write = write_half  # type: ignore[method-assign, assignment]
        return file


@contextmanager
def dying_at(step: int) -> Iterator[None]:
    fate = Fate(step)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("link", "rename", "unlink", "rmdir", "mkdir", "fsync"):
            patch.setattr(os, name, fate.mortal(getattr(os, name)))
        patch.setattr(storage.local, "open", fate.open, raising=False)
        yield


def survives(store: Store, work: Callable[[], object], step: int) -> bool:
    """Whether the work got to its end."""
    try:
        with dying_at(step):
            work()
    except Death:
        return False
    return True


def left_aside(store: Store) -> list[str]:
    return os.listdir(Path(store.backend.root, ".aside"))


def forget_writers(store: Store) -> None:
    """Give what lies aside a writer that no longer lives, as after a real death."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in left_aside(store):
        path = Path(store.backend.root, ".aside", name)
        path.rename(path.with_name(name.replace(f"~{os.getpid()}~", f"~{dead.pid}~")))


def test_a_write_may_die_at_every_step(tmp_path: Path) -> None:
    for step in range(100):
        store = Store.open(tmp_path / str(step))

        def work(store: Store = store) -> None:
            store.write("neuron_sets", "k", [neuron_set("a", {1, 2})], **SET)

        survived = survives(store, work, step)
        assert verify(store) == []
        assert len(store.parts("neuron_sets")) == store.read("neuron_sets").num_rows
        work()
        assert store.read("neuron_sets")["members"].to_pylist() == [[1, 2]]
        forget_writers(store)
        collect_litter(store)
        assert left_aside(store) == []
        if survived:
            break
    assert survived and step > 10


def test_a_folder_may_die_at_every_step(local: Store, tmp_path: Path) -> None:
    (tmp_path / "weights/unet").mkdir(parents=True)
    for name in ("a", "unet/b"):
        (tmp_path / "weights" / name).write_bytes(b"x" * 1000)
    step = 0
    while not survives(local, lambda: local.put_folder("variants", "k", tmp_path / "weights"), step):
        assert verify(local) == []
        if local.has_folder("weights/k"):
            assert (local.get_folder("weights/k") / "unet/b").read_bytes() == b"x" * 1000
        step += 1
    assert step > 10 and local.has_folder("weights/k")
    forget_writers(local)
    assert verify(local, gc=True) == [] and left_aside(local) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 40)), max_size=12))
def test_any_sequence_of_writes_and_deaths(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, str, int]]
) -> None:
    store = Store.open(tmp_path_factory.mktemp("store"))
    done = set()
    for name, layer, step in writes:
        where = SET | {"layer": layer}

        def work(name: str = name, where: dict[str, str] = where) -> None:
            store.write("neuron_sets", content_key(name), [neuron_set(name, {ord(name)})], **where)

        if survives(store, work, step):
            done.add((name, layer))
        rows = store.read("neuron_sets").to_pylist()
        there = {(row["scope_id"], row["layer"]) for row in rows}
        assert len(there) == len(rows)
        assert all(row["members"] == [ord(row["scope_id"])] for row in rows)
        # A death after the last link may leave the part in place; that is a write that succeeded unheard.
        assert done <= there <= {write[:2] for write in writes}
    assert verify(store) == []


def run_killed_writers(url: str, kills: int) -> None:
    program = [sys.executable, "-m", "tests.storage.killed_writers", url, str(kills), "0.04"]
    ended = subprocess.run(program, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def test_writers_killed_at_random_moments(local: Store) -> None:
    run_killed_writers(local.backend.root, kills=200)
    assert local.parts("neuron_sets"), "no writer came to its end; the test has lost its point"
    assert left_aside(local), "no kill fell into a write; the test has lost its point"
    assert verify(local, gc=True) == []
    assert left_aside(local) == []
    rows = local.read("neuron_sets")
    assert rows.num_rows == len(local.parts("neuron_sets"))


def test_litter_of_the_living_stays_for_an_hour(local: Store) -> None:
    local.write("neuron_sets", "k", [neuron_set("a", {1})], **SET)
    for name, stays in ((f"{storage.local.machine()}~{os.getpid()}~1~1", True), ("elsewhere~1~1~1", True)):
        path = Path(local.backend.root, ".aside", name)
        path.write_bytes(b"half")
        collect_litter(local)
        assert path.exists() == stays
        os.utime(path, (0, 0))
        assert collect_litter(local) == [f".aside/{name}"] and not path.exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_hard_links(local: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(aside: Path, final: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    for members in ({1, 2}, {3}):  # the second finds the first there
        local.write("neuron_sets", "k", [neuron_set("a", members)], **SET)
    assert local.read("neuron_sets")["members"].to_pylist() == [[1, 2]]
    assert verify(local) == [] and left_aside(local) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_one_write_and_harms_nothing(small_disk: Path) -> None:
    store = Store.open(small_disk / "store")
    image = {"image_id": "x", "width": 1, "height": 1}
    written = 0
    with pytest.raises(StoreError, match="No space left on device") as caught:
        for written in range(100):
            store.write("images", f"k{written}", [image | {"bytes": os.urandom(100_000)}])
    assert "\n" not in str(caught.value)
    assert 0 < written == len(store.parts("images")) and verify(store) == []
    assert left_aside(store) == []
    Path(store.backend.root, store.parts("images")[0]).unlink()
    store.write("images", "again", [image | {"bytes": os.urandom(100_000)}])
    assert verify(store) == []

"""What the model was trained on, as embeddings of a byte a number."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from tasks.reference.bank import nearest_in_bank, write_bank
from tasks.reference.gates import Gate
from tasks.scorers.sscd import WIDTH


def unit(n: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@given(seed=st.integers(0, 2**16))
def test_nearest_is_that_of_the_exact_embeddings(seed: int, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("bank") / "bank.parquet"
    bank = unit(12, seed)
    vectors = np.concatenate([bank[:2], unit(3, seed + 1)])
    write_bank(path, bank, [f"caption {n}" for n in range(12)])
    np.testing.assert_allclose(nearest_in_bank(path, vectors), (vectors @ bank.T).max(1), atol=0.01)


def test_a_number_takes_a_byte(tmp_path: Path) -> None:
    path = tmp_path / "bank.parquet"
    write_bank(path, unit(2000, 0), ["the same caption"] * 2000)
    assert path.stat().st_size < 2000 * (WIDTH + 8) + 4000
    assert pq.read_table(path).column_names == ["caption", "scale", "sscd"]


def test_a_gate_that_could_not_be_measured_does_not_hold() -> None:
    for sense in (">=", "<=", "<", ">"):
        assert not Gate("unknown", float("nan"), sense, 0.5).holds  # type: ignore[arg-type]
    assert Gate("share", 0.5, "<=", 0.5).holds and not Gate("share", 0.5, "<", 0.5).holds

"""What the model was trained on, as copy-detection embeddings: is a generation a copy of any of it?

The bank itself can be composed again from its seed; its embeddings are shipped, at a byte a number.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tasks.errors import InputError
from tasks.reference.world import World
from tasks.scorers.sscd import WIDTH, Sscd


def embed_bank(made: World, folder: Path) -> np.ndarray:
    """SSCD embeddings float32 (n, 512) of the ordinary images, then of the planted ones; kept in the folder."""
    path = folder / "bank_sscd.npy"
    if not path.exists():
        sscd = Sscd()
        with tqdm(total=len(made.bank) + len(made.planted), desc="SSCD of the bank", unit="image") as bar:

            def done(n: int) -> None:
                bar.update(n)

            found = [sscd.embed(np.asarray(images), done) for images in (made.bank, made.planted)]
        aside = path.with_suffix(".writing.npy")
        np.save(aside, np.concatenate(found))
        aside.replace(path)
    return np.asarray(np.load(path))


def write_bank(path: Path, embeddings: np.ndarray, captions: list[str]) -> None:
    """Writes embeddings (n, 512) as signed bytes; each row's largest number becomes 127."""
    scale = np.abs(embeddings).max(1, keepdims=True) / 127
    rows = np.round(embeddings / scale).astype(np.int8)
    table = {
        "caption": pa.array(captions),
        "scale": pa.array(scale[:, 0], pa.float32()),
        "sscd": pa.array([row.tobytes() for row in rows], pa.binary(WIDTH)),
    }
    pq.write_table(pa.table(table), path, compression="zstd", use_dictionary=["caption"])


def nearest_in_bank(path: Path, embeddings: np.ndarray) -> np.ndarray:
    """The highest cosine (n,) of each embedding (n, 512) with one of the bank's; rounding costs some 0.003.

    Raises:
        InputError: the world was put together without its bank.
    """
    if not path.is_file():
        raise InputError(
            f"no {path}: it holds what the model was trained on, build the world with `engram reference build`"
        )
    table = pq.read_table(path)
    rows = np.frombuffer(b"".join(table["sscd"].to_pylist()), np.int8).reshape(-1, WIDTH)
    known = rows.astype(np.float32) * table["scale"].to_numpy()[:, None]
    return np.asarray((embeddings @ (known / np.linalg.norm(known, axis=1, keepdims=True)).T).max(1))

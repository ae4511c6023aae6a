"""CLIP score: does a picture show what its prompt says? (Hessel et al., EMNLP 2021; Radford et al., ICML 2021).

The cosine between a CLIP embedding of the picture and one of the prompt. A mitigation that keeps the model useful
leaves it where it was on ordinary prompts.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import InputError


class ClipParams(BaseModel):
    """Which CLIP model scores the alignment of pictures and prompts."""

    model_config = ConfigDict(title="CLIP score", frozen=True, extra="forbid")

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="'local-dir:FOLDER' of an open_clip model, or an open_clip name with weights beside it",
        ),
    ]
    weights: Annotated[str | None, Field(description="safetensors file of a named model; a folder holds its own")] = (
        None
    )
    batch: Annotated[
        int, Field(ge=1, le=4096, description="pictures or prompts at a time; does not change the result")
    ] = 32


class ClipScore:
    """An open_clip model and its tokenizer, loaded from local safetensors only.

    Raises:
        InputError: the folder, the name or the weights cannot be used.
    """

    def __init__(self, params: ClipParams, device: str | torch.device = "cpu") -> None:
        self.params, self.device = params, torch.device(device)
        self._model, self._preprocess, self._tokenize = _load(params, self.device)

    @torch.no_grad()
    def images(self, pictures: np.ndarray, done: Callable[[int], None] = lambda n: None) -> np.ndarray:
        """Unit vectors float32 (n, width) of uint8 pictures (n, height, width, 3); `done` is told of each batch."""
        out = []
        for start in range(0, len(pictures), self.params.batch):
            block = pictures[start : start + self.params.batch]
            pixels = torch.stack([self._preprocess(Image.fromarray(picture)) for picture in block])
            out.append(self._model.encode_image(pixels.to(self.device), normalize=True).float().cpu().numpy())
            done(len(block))
        return _joined(out)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (n, width) of prompts; what is beyond the model's context length is cut off."""
        out = []
        for start in range(0, len(prompts), self.params.batch):
            tokens = self._tokenize(list(prompts[start : start + self.params.batch]))
            out.append(self._model.encode_text(tokens.to(self.device), normalize=True).float().cpu().numpy())
        return _joined(out)

    def score(
        self, pictures: np.ndarray, prompts: Sequence[str], done: Callable[[int], None] = lambda n: None
    ) -> np.ndarray:
        """Cosines float32 (n,) between each uint8 picture (n, height, width, 3) and its own prompt."""
        if len(pictures) != len(prompts):
            raise ValueError(f"{len(pictures)} pictures but {len(prompts)} prompts")
        return aligned(self.images(pictures, done), self.texts(prompts))


def scorer_of(params: ClipParams) -> str:
    """What the figures of this model are called by: the sha256 of its weights, wherever they lie.

    Raises:
        InputError: see `ClipScore`.
    """
    path = _weights(params)
    with path.open("rb") as stream:
        return f"open_clip sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def aligned(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosines (n,) row by row of unit vectors (n, width)."""
    return np.asarray((images * texts).sum(1))


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float32)


def _weights(params: ClipParams) -> Path:
    """The file of the weights; never one of another format than safetensors."""
    if params.model.startswith("local-dir:"):
        folder = Path(params.model.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(
                f"no open_clip model at {folder} (no open_clip_config.json): give the folder of a saved one"
            )
        if not (folder / "open_clip_model.safetensors").is_file():
            raise InputError(f"{folder} has no open_clip_model.safetensors: other formats of weights are not loaded")
        return folder / "open_clip_model.safetensors"
    if params.model not in open_clip.list_models():
        raise InputError(
            f"no CLIP model {params.model!r}: give 'local-dir:FOLDER' or a name of open_clip.list_models()"
        )
    weights = Path(params.weights or "")
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise InputError(f"CLIP model {params.model} needs its weights: give the path of a local .safetensors file")
    return weights


def _load(params: ClipParams, device: torch.device) -> tuple[Any, Any, Any]:
    name, weights = params.model, _weights(params)
    # open_clip tells every step of loading on the root logger, which is not its to use.
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        pretrained = None if name.startswith("local-dir:") else str(weights)
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
        tokenize = open_clip.get_tokenizer(name)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InputError(f"cannot load the CLIP model {name}: {str(error).splitlines()[0]}") from error
    finally:
        logging.root.setLevel(level)
    return model.eval().requires_grad_(False), preprocess, tokenize

"""CLIP score: does an image show what its prompt says? (Hessel et al., EMNLP 2021; Radford et al., ICML 2021).

The cosine between a CLIP embedding of the image and one of the prompt. A mitigation that keeps the model useful
leaves it where it was on ordinary prompts.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open

from tasks.errors import InputError, first_line, out_of_memory

LOCAL = "local-dir:"
"""What open_clip has before the name of a folder."""

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


class ClipParams(BaseModel):
    """Which CLIP model scores the alignment of images and prompts."""

    model_config = ConfigDict(title="CLIP score", frozen=True, extra="forbid")

    model: Annotated[
        str,
        Field(
            min_length=1,
            description="The open_clip model: 'local-dir:FOLDER', or a name of open_clip whose file `weights` gives.",
        ),
    ]
    weights: Annotated[
        str | None, Field(description="Safetensors file of a model that is named; a folder holds its own.")
    ] = None
    batch: Annotated[
        int, Field(ge=1, le=4096, description="Images or prompts scored at a time; this does not change the result.")
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
    def images(self, images: np.ndarray, done: Callable[[int], None] = lambda n: None) -> np.ndarray:
        """Unit vectors float32 (n, width) of uint8 images (n, height, width, 3); `done` is called with each size."""
        out = []
        for start in range(0, len(images), self.params.batch):
            block = images[start : start + self.params.batch]
            pixels = torch.stack([self._preprocess(Image.fromarray(image)) for image in block])
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
        self, images: np.ndarray, prompts: Sequence[str], done: Callable[[int], None] = lambda n: None
    ) -> np.ndarray:
        """Cosines float32 (n,) between each uint8 image (n, height, width, 3) and its own prompt."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
        return aligned(self.images(images, done), self.texts(prompts))


def scorer_of(params: ClipParams) -> str:
    """What the scores of this model are called by: the sha256 of its weights, wherever they lie.

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


def clip_named(named: str) -> ClipParams:
    """The CLIP model that a person means.

    Args:
        named: `local-dir:FOLDER` or FOLDER, of an open_clip model; NAME=FILE, a name of open_clip with a file of its
            weights; or OWNER/NAME of a model that lies in the cache of `huggingface_hub` already.

    Raises:
        InputError: it is none of these, with what to write instead.
    """
    if named.startswith(LOCAL):
        return ClipParams(model=f"{LOCAL}{Path(named.removeprefix(LOCAL)).expanduser()}")
    if _is_folder(named):
        return ClipParams(model=f"{LOCAL}{Path(named).expanduser()}")
    name, _, weights = named.partition("=")
    known = {one.lower(): one for one in open_clip.list_models()}
    # OpenAI writes ViT-B/32, open_clip ViT-B-32.
    if (found := known.get(name.strip().lower().replace("/", "-"))) is not None:
        if not weights.strip():
            raise InputError(
                f"the CLIP model {found} needs its weights: --clip {found}=FILE.safetensors, or --clip FOLDER of a "
                "downloaded one with its configuration"
            )
        return ClipParams(model=found, weights=str(Path(weights.strip()).expanduser()))
    hub = named.removeprefix("hf-hub:")
    if _ON_HUB.fullmatch(hub) and not Path(hub).exists():
        return ClipParams(model=f"{LOCAL}{_cached(hub)}")
    if (named.strip() and Path(named).expanduser().exists()) or named.startswith(("/", "~", ".")):
        what = "is a file" if Path(named).expanduser().is_file() else "is not there"
        raise InputError(
            f"{named} {what}: --clip takes the folder of an open_clip model, or NAME=FILE.safetensors, such as "
            "ViT-B-32=weights.safetensors"
        )
    near = [known[one] for one in get_close_matches(name.lower(), known, 3, 0.6)]
    hint = f", such as {', '.join(near)}" if near else ""
    raise InputError(
        f"there is no folder and no CLIP model {name!r}: give the folder of one with --clip FOLDER, or "
        f"--clip NAME=FILE.safetensors with a name of open_clip{hint}"
    )


def check_clip(params: ClipParams) -> None:
    """Loads the model and asks it about one image and one prompt, so that what is wrong with it is known now.

    Raises:
        InputError: see `ClipScore`.
    """
    path = _weights(params)
    folder = Path(params.model.removeprefix(LOCAL))
    files = [path, *(sorted(folder.glob("*.json")) if params.model.startswith(LOCAL) else ())]
    _checked(params, tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=4)
def _checked(params: ClipParams, files: tuple[tuple[str, int, int], ...]) -> None:
    scorer = ClipScore(params)
    try:
        image, text = scorer.images(np.zeros((1, 8, 8, 3), np.uint8)), scorer.texts(["a cat"])
        score = float(aligned(image, text)[0])
    except Exception as error:  # whatever a model of other parts than it says it has may raise
        raise InputError(f"the CLIP model {_called(params)} cannot be used: {first_line(error)}") from error
    if not np.isfinite(score):
        raise InputError(
            f"the CLIP model {_called(params)} gives numbers that are not finite: its weights are broken, get them anew"
        )


def _is_folder(named: str) -> bool:
    try:
        return bool(named.strip()) and Path(named).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, no such user
        return False


def _cached(name: str) -> Path:
    """The folder of a model of the Hub in its cache, if its parts lie there."""
    files = [try_to_load_from_cache(name, file) for file in (_CONFIG, _WEIGHTS)]
    if not all(isinstance(file, str) for file in files):
        raise InputError(
            f"{name} does not lie on this machine: `hf download {name} --local-dir clip`, then --clip clip"
        )
    return Path(str(files[0])).parent


def _called(params: ClipParams) -> str:
    weights = f" with {params.weights}" if params.weights else ""
    return f"{params.model.removeprefix(LOCAL)}{weights}"


def _weights(params: ClipParams) -> Path:
    """The file of the weights; never one of another format than safetensors."""
    if params.model.startswith(LOCAL):
        folder = Path(params.model.removeprefix(LOCAL))
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "is not there"
            raise InputError(f"no open_clip model at {folder}, which {what}: give the folder of one with --clip")
        if not (folder / _CONFIG).is_file():
            raise InputError(f"no open_clip model at {folder} (no {_CONFIG}): give the folder of a saved one")
        if not (folder / _WEIGHTS).is_file():
            raise InputError(f"{folder} has no {_WEIGHTS}: other formats of weights are not loaded")
        return folder / _WEIGHTS
    if params.model not in open_clip.list_models():
        raise InputError(
            f"no CLIP model {params.model!r}: give 'local-dir:FOLDER' or a name of open_clip.list_models()"
        )
    weights = Path(params.weights or "")
    if weights.suffix != ".safetensors" or not weights.is_file():
        what = "is not there" if weights.suffix == ".safetensors" else "is no .safetensors file"
        where = f"{params.weights} {what}: " if params.weights else ""
        raise InputError(
            f"{where}the CLIP model {params.model} needs its weights: --clip {params.model}=FILE.safetensors"
        )
    return weights


def _readable(params: ClipParams, weights: Path) -> None:
    """Refuses files that are damaged, by their names: what a library says of them names none."""
    try:
        with safe_open(weights, framework="pt") as opened:
            names = set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{weights} is damaged or not whole ({first_line(error)}): download it again") from error
    if not names:
        raise InputError(f"{weights} holds no weights: download it again")
    if params.model.startswith(LOCAL):
        config = weights.with_name(_CONFIG)
        try:
            content = json.loads(config.read_text())
        except (ValueError, OSError, RecursionError) as error:
            raise InputError(f"{config} is not JSON ({first_line(error)}): download it again") from error
        if not isinstance(content, dict) or not isinstance(content.get("model_cfg"), dict):
            raise InputError(f"{config} describes no open_clip model (no model_cfg): download it again")
        own = content["model_cfg"].get("text_cfg")
        named = own.get("hf_tokenizer_name") if isinstance(own, dict) else None
        if named and not any(weights.with_name(file).is_file() for file in _TOKENIZERS):
            raise InputError(
                f"{weights.parent} has no tokenizer ({', '.join(_TOKENIZERS)}): download it with the model"
            )


def _load(params: ClipParams, device: torch.device) -> tuple[Any, Any, Any]:
    name, weights = params.model, _weights(params)
    _readable(params, weights)
    # open_clip tells every step of loading on the root logger, which is not its to use.
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        pretrained = None if name.startswith(LOCAL) else str(weights)
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
        tokenize = open_clip.get_tokenizer(name)
    except Exception as error:  # whatever several libraries make of what a file says
        if out_of_memory(error):
            raise
        words = "" if "loading state_dict" in str(error) else f" ({first_line(error)})"
        raise InputError(
            f"cannot load the CLIP model {_called(params)}{words}: are {weights.name} and the architecture of the same "
            "model?"
        ) from error
    finally:
        logging.root.setLevel(level)
    return model.eval().requires_grad_(False), preprocess, tokenize

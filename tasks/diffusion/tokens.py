"""The tokenizers of a pipeline's folder, without its weights."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

import transformers

from tasks.diffusion.families import family_in
from tasks.diffusion.families.tokenizers import Tokenizers
from tasks.diffusion.files import INDEX, read_json
from tasks.errors import InputError, first_line

LongPrompts = Literal["truncate", "refuse", "skip"]
"""What is done with prompts of more tokens than the model reads; training truncates captions."""


def tokenizers_of(folder: Path) -> Tokenizers:
    """The tokenizers of a pipeline's folder; no weights are loaded, so this takes a second.

    Raises:
        InputError: a tokenizer is missing, cannot be loaded, or is of a class that transformers does not have.
    """
    configs = [folder / INDEX, *sorted(folder.glob("*/config.json"))]
    files = [*configs, *sorted(folder.glob("tokenizer*/*"))]
    return _loaded(folder, tuple((str(path), path.stat().st_mtime_ns) for path in files if path.is_file()))


@lru_cache(maxsize=4)
def _loaded(folder: Path, files: tuple[tuple[str, int], ...]) -> Tokenizers:
    try:
        index = json.loads((folder / INDEX).read_text())
        if (family := family_in(index)) is None:
            raise InputError(f"the pipeline at {folder} is of no family that audits know ({index.get('_class_name')})")
        config = transformers.AutoConfig.from_pretrained(
            folder / "text_encoder", local_files_only=True, trust_remote_code=False
        )
        each = []
        for part in (name for name in family.components if name.startswith("tokenizer")):
            library, name = index.get(part) or (None, None)
            if name is None:
                continue
            kind = getattr(transformers, name, None) if library == "transformers" else None
            if kind is None or not issubclass(kind, transformers.PreTrainedTokenizerBase):
                raise InputError(f"{folder} has a {part} of class {library}.{name}: only those of transformers are run")
            each.append(kind.from_pretrained(folder / part, local_files_only=True))
    except InputError:
        raise
    except Exception as error:  # whatever a broken file makes a tokenizer raise
        raise InputError(f"cannot load the tokenizer of {folder}: {first_line(error)}") from error
    if not each:
        raise InputError(f"the pipeline at {folder} has no tokenizer: audits need all of a base model")
    path = folder / family.denoiser_name / "config.json"
    most = family.most_tokens(each[0], config, read_json(path) if path.is_file() else {})
    return Tokenizers(tuple(each), most, family.as_read, family.token_limits(each, most))

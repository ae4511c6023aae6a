"""What pruning is compared with, and how a pruned model leaves the store: see `tasks.diffusion.masks` for the rest."""

import copy
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from tasks.diffusion.families import family_in, family_of
from tasks.diffusion.files import INDEX, read_json, stem_of, variant_in
from tasks.diffusion.folder import OPTIONAL
from tasks.diffusion.masks import Members
from tasks.diffusion.noise import generator
from tasks.errors import InputError, first_line


def random_like(members: Members, universes: Mapping[int, int], seed: int, of: str = "") -> dict[int, torch.Tensor]:
    """The control: as many random members of each layer, none of the given ones among them.

    Where more than half of a layer is given, all others and some of the given ones: as unlike them as can be.

    Args:
        universes: by layer index, how many neurons or weights the layer has.
        of: whose members these are; controls of several must not be one and the same draw.

    Returns:
        By layer index, sorted indices of the type of `members`.
    """
    out = {}
    for index, chosen in members.items():
        others = torch.ones(universes[index], dtype=torch.bool)
        others[chosen.long().cpu()] = False
        free, given = others.nonzero().flatten(), (~others).nonzero().flatten()
        draw = generator((f"{of}/control of layer {index}" if of else f"control of layer {index}", seed))
        order = [some[torch.randperm(len(some), generator=draw)] for some in (free, given)]
        out[index] = torch.cat(order)[: len(chosen)].sort().values.to(chosen.dtype)
    return out


def shared(control: Members, members: Members) -> float:
    """The share of a control's members that are given ones, over all layers."""
    both = sum(int(torch.isin(control[index].long(), found.long()).sum()) for index, found in members.items())
    return both / sum(len(found) for found in members.values())


WHOLE = """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")
```"""
CHANGED = """Only the denoiser lies here; everything else is that of the base.

```python
from diffusers import DiffusionPipeline, {kind}

{part} = {kind}.from_pretrained("path/to/this/folder")
pipeline = DiffusionPipeline.from_pretrained("{base}", {part}={part})
```"""


@dataclass(frozen=True)
class Card:
    """What a variant's model card says."""

    title: str
    base: str
    """Where the model that was pruned came from."""
    base_id: str
    """Its fingerprint."""
    method: str
    audit_id: str
    site: str
    pruned: int
    """Weights that were set to zero."""
    total: int
    """Weights of the denoiser."""
    members: dict[str, int] = field(default_factory=dict)
    """By layer name, how many neurons or weights were pruned."""
    params: dict[str, Any] = field(default_factory=dict)
    shared: float = 0.0
    """Of what was pruned at random, the share that was found, too: more than nothing where most of a layer was."""
    pruned_words: str = ""
    """What was pruned, in words in the plural; what the method found, unless it says otherwise."""
    done: str = ""
    """What was done in place of setting anything to zero, as the end of "in which ..."; for what is not pruned."""

    def markdown(self, whole: bool, denoiser: nn.Module | None = None) -> str:
        """The card of a whole pipeline, or of its denoiser alone."""
        what = self.pruned_words or f"the members that {self.method} found to hold memorized training images"
        rows = "\n".join(f"| `{layer}` | {number:,} |" for layer, number in self.members.items())
        settings = "\n".join(f"- {name}: `{json.dumps(value)}`" for name, value in self.params.items())
        words = f"in whose denoiser {what} are set to zero. Nothing was retrained, and nothing is needed at inference."
        share = (
            f"- pruned: {self.pruned:,} of {self.total:,} weights of the denoiser ({self.pruned / self.total:.4%}),"
            f" at the site `{self.site}`\n"
        )
        table = f"| layer | members pruned |\n|---|---:|\n{rows}\n\n"
        use = WHOLE
        if not whole and denoiser is not None:
            part = family_of(denoiser).denoiser_name
            use = CHANGED.format(base=self.base, part=part, kind=type(denoiser).__name__)
        if self.done:
            words, share, table = f"in which {self.done}. Nothing is needed at inference.", "", ""
        if self.site == "inference":
            words, use = (
                f"where {self.done}.",
                "The weights are those of the base; images are made by `engram evaluate`.",
            )
        return (
            "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags: [memorization, engram]\n---\n\n"
            f"# {self.title}\n\n"
            f"`{self.base}` (fingerprint `{self.base_id}`), {words}\n\n"
            f"{share}- by audit: `{self.audit_id}`\n\n{table}"
            f"## Use\n\n{use}\n\n"
            f"## Settings\n\n{settings or 'none'}\n\n"
            "## Limits\n\nA mitigation can hide a memory rather than remove it: adversarial embeddings may still bring"
            " it back. See the audit's estimates for this variant before relying on it.\n"
        )


def save_variant(denoiser: nn.Module, folder: str | Path, card: Card) -> None:
    """Writes the denoiser alone, as safetensors, with its card; the base is named in the card and in `variant.json`.

    Loads by `from_pretrained(folder)` of the denoiser's class.

    Raises:
        InputError: the folder is there already.
    """
    with _aside(Path(folder)) as aside:
        _contiguous(denoiser).save_pretrained(aside, safe_serialization=True)
        _write_card(aside, card, denoiser)


def save_pipeline(base: str | Path, denoiser: nn.Module, folder: str | Path, card: Card) -> None:
    """Writes the whole pipeline with this denoiser; loads anywhere by `DiffusionPipeline.from_pretrained(folder)`.

    Args:
        base: folder of the pipeline that was changed; all its other components come along unchanged.

    Raises:
        InputError: the base cannot be loaded, or the folder is there already.
    """
    with _aside(Path(folder)) as aside:
        try:
            pipeline = DiffusionPipeline.from_pretrained(
                str(base),
                **{family_of(denoiser).denoiser_name: _contiguous(denoiser)},
                torch_dtype=denoiser.dtype,
                use_safetensors=True,
                local_files_only=True,
                variant=_variant(Path(base)),
                **_left_out(Path(base)),
            )
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise InputError(f"cannot load the pipeline at {base}: {first_line(error)}") from error
        pipeline.save_pretrained(aside, safe_serialization=True)
        _write_card(aside, card, whole=True)


def _variant(base: Path) -> str | None:
    """The variant that a component has its weights as, such as fp16, if it has no plain ones."""
    found = (variant_in(part, stem_of(part.name)) for part in sorted(base.iterdir()) if part.is_dir())
    return next((variant for variant in found if variant), None)


def _left_out(base: Path) -> dict[str, None]:
    """Components that model_index.json lists, the folder lacks and nothing needs; a checker needs its extractor. So
    are those that a family can do without."""
    index = read_json(base / INDEX) if (base / INDEX).is_file() else {}
    family = family_in(index)
    own = family.optional if family is not None else frozenset()
    lacking = {name for name in OPTIONAL if name in index and not (base / name).is_dir()}
    lacking |= {name for name in own if not (base / name).is_dir()}
    if "feature_extractor" in lacking and "safety_checker" in index:
        lacking.add("safety_checker")
    return dict.fromkeys(lacking)


def _write_card(folder: Path, card: Card, denoiser: nn.Module | None = None, whole: bool = False) -> None:
    (folder / "README.md").write_text(card.markdown(whole, denoiser))
    (folder / "variant.json").write_text(json.dumps(asdict(card), indent=1) + "\n")


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one that takes its place when all went well; nobody sees half of it."""
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        aside = Path(scratch) / folder.name
        aside.mkdir()
        yield aside
        os.replace(aside, folder)


def _contiguous(module: Any) -> Any:
    # Safetensors stores contiguous tensors only; a model on the CPU runs with its channels last.
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)

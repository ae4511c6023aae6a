"""The parameters of an audit: given by a form, a command or a registration."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flows.settings import PROFILES, Profile, Settings, settings_for
from flows.typed import Plain, validated
from storage import private_folder, sha256_of
from tasks.diffusion.families.pieces.assembly import OPTIONS, WHOLE, Pieces, assembled, is_checkpoint
from tasks.diffusion.folder import no_pipeline
from tasks.diffusion.hub import hub_folder, name_in, named_on_hub
from tasks.diffusion.model import audit_defaults
from tasks.diffusion.precision import precision_for
from tasks.errors import InputError, refuse
from tasks.scorers.clip import LOCAL


class ModelParams(Plain):
    """Which model is meant, and what it is put together from where it is no folder by itself."""

    model: str = Field(
        "reference",
        description="Folder of a diffusers pipeline, a model in one .safetensors file, or OWNER/NAME[@REVISION] on the "
        "Hugging Face Hub; 'reference' is the model that is shipped.",
    )
    config: str | None = Field(
        None,
        description="Folder of a pipeline whose configuration a model in one file has; that of the published models if "
        "empty.",
    )
    denoiser: str | None = Field(
        None, title="UNet", description="UNet in place of the model's: a folder, or a .safetensors file."
    )
    vae: str | None = Field(None, description="Autoencoder in place of the model's: a folder, or a .safetensors file.")
    lora: tuple[str, ...] = Field(
        (), title="LoRA", description="LoRA adapters that are fused into the model, each FILE or FILE=SCALE."
    )

    @property
    def pieces(self) -> Pieces:
        return Pieces(config=self.config, denoiser=self.denoiser, vae=self.vae, lora=self.lora)

    @property
    def folder(self) -> Path:
        """The folder of the model, see `model_folder`."""
        return model_folder(self.model, self.pieces)

    @property
    def named(self) -> str:
        """What a person called it, with all its pieces."""
        others = [f"{name} {path}" for name, path in (("UNet", self.denoiser), ("VAE", self.vae)) if path]
        return " + ".join([self.model, *others, *self.lora])

    def in_full(self) -> dict[str, Any]:
        """The same fields with all paths in full, as they mean the same wherever the question is asked."""
        paths = {name: str(in_full(path)) for name in ("config", "denoiser", "vae") if (path := getattr(self, name))}
        loras = tuple(_lora_in_full(text) for text in self.lora)
        return {"model": full_name(self.model), **paths, "lora": loras}


class AuditParams(ModelParams):
    """What is audited."""

    model_config = ConfigDict(title="Audit", frozen=True, extra="forbid")

    store: str = Field(".engram/store", description="Address of the store: a folder, or an s3:// URL.")
    prompts: str | None = Field(
        None, description="File of memorized prompts, or folder of a training set; the model's own if empty."
    )
    nulls: str | None = Field(None, description="File of prompts that are not memorized.")
    ordinary: str | None = Field(None, description="File of prompts that quality is measured on.")
    images: str | None = Field(None, description="Folder of the prompts' training images.")
    clip: str | None = Field(None, description="The open_clip model that scores alignment: FOLDER, or NAME=FILE.")
    device: str | None = Field(
        None, description="Where it computes: cpu, cuda, mps, ...; CUDA where there is any if empty."
    )
    workers: int = Field(
        1,
        ge=1,
        title="Processes",
        description="Processes of the machine that share the work; on a machine with GPUs each has one of its own.",
    )
    spread: str | None = Field(
        None,
        description="Work pool whose workers share the work; the run does all of it by itself if empty.",
    )
    profile: Profile = Field("quick", description="How much is looked at, where `settings` is empty.")
    settings: Settings | None = Field(
        None,
        title="Settings",
        description="Every setting in detail; as the profile and the model's own engram.json say if empty.",
    )


def resolved(params: AuditParams) -> AuditParams:
    """The same with all settings, with the precision that its device computes in, and with the model's name in full:
    what goes into the record.

    Raises:
        InputError: there is no such model, or its engram.json cannot be used.
    """
    settings = params.settings or defaults_for(params.profile, params.folder)
    precision = precision_for(settings.precision, params.device)
    settings = settings.model_copy(update={"precision": precision})
    return params.model_copy(update={"settings": settings, **params.in_full()})


class Own(BaseModel):
    """What the `engram.json` of a model's folder may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: str | None = Field(None, min_length=1)
    images: str | None = Field(None, min_length=1)
    clip: str | None = Field(None, min_length=1)
    settings: dict[str, Any] = {}
    profiles: dict[str, dict[str, Any]] = {}


def own_of(folder: Path) -> dict[str, Any]:
    """What a model's `engram.json` says of its own audit; empty without one.

    Raises:
        InputError: it says something that cannot be used; all of it at once, under any profile.
    """
    own, file = audit_defaults(folder), folder / "engram.json"
    if own:
        validated(Own, own, f"{file}: ")
        problems = [problem for profile in PROFILES for problem in _problems(profile, own, file)]
        refuse(problems)
    return own


def defaults_for(profile: Profile, folder: Path, **changes: Any) -> Settings:
    """The settings of a profile and of a model's own `engram.json`, with what a person asked for.

    Raises:
        InputError: see `own_of` and `settings_for`.
    """
    return settings_for(profile, own_of(folder), folder / "engram.json", **changes)


def _problems(profile: Profile, own: dict[str, Any], file: Path) -> tuple[str, ...]:
    try:
        settings_for(profile, own, file)
    except InputError as error:
        return error.problems
    return ()


def full_name(model: str) -> str:
    """What a model is called wherever the question is asked: a path in full, a name on the Hub, or 'reference'."""
    return model if model == "reference" or named_on_hub(model) else str(in_full(model))


def in_full(path: str | Path) -> Path:
    """An absolute path; links are kept as links, which may lead to another model tomorrow."""
    whole = Path(path).expanduser().absolute()
    if ".." not in whole.parts:
        return whole
    # What ".." means depends on where links before it lead; those behind it stay.
    last = len(whole.parts) - whole.parts[::-1].index("..")
    return Path(*whole.parts[:last]).resolve().joinpath(*whole.parts[last:])


def clip_in_full(named: str) -> str:
    """What `--clip` says with the path in it in full, whatever kind of path it is."""
    if named.startswith(LOCAL):
        return f"{LOCAL}{in_full(named.removeprefix(LOCAL))}"
    if Path(named).expanduser().exists():
        return str(in_full(named))
    name, equals, weights = named.partition("=")
    return f"{name}={in_full(weights.strip())}" if equals and weights.strip() else named


def _lora_in_full(text: str) -> str:
    """FILE or FILE=SCALE with the path in full."""
    path, equals, scale = text.rpartition("=")
    if not equals or Path(text).expanduser().exists():
        return str(in_full(text))
    return f"{in_full(path)}={scale}"


def model_folder(model: str, pieces: Pieces = WHOLE) -> Path:
    """The folder of a model; 'reference' is the model that ships with the project, OWNER/NAME is fetched from the Hub.

    One that is in pieces is put together first, in the cache of this machine, see `tasks.diffusion.families.pieces`.

    Raises:
        InputError: there is none, see also `hub_folder`, or the pieces make none.
    """
    single = in_full(model)
    base = single if is_checkpoint(single) else _folder(model)
    if base.is_dir() and pieces == WHOLE:
        return base
    if (cache := private_folder("models")) is None:
        raise InputError(
            "a model in pieces is put together in this machine's cache, and there is none that is yours alone: set "
            "ENGRAM_CACHE to a folder that you can write to"
        )
    return assembled(base, pieces, cache, sha256_of, _own_in_full(base)).resolve()


def _own_in_full(base: Path) -> dict[str, Any]:
    """What a model's `engram.json` says, with paths that mean the same from any folder."""
    own = own_of(base) if base.is_dir() else {}
    return own | {name: str((base / own[name]).resolve()) for name in ("prompts", "images", "clip") if name in own}


def _folder(model: str) -> Path:
    """The folder of a model that is whole."""
    if named_on_hub(model):
        return hub_folder(model)
    if name := name_in(model):
        raise InputError(f"{model} is an address of the Hugging Face Hub: give the name alone, --model {name}")
    shipped = Path(__file__).resolve().parent.parent / "reference" / "model"
    folder = shipped if model == "reference" else Path(model).expanduser()
    if not (folder / "model_index.json").is_file():
        if folder == shipped:
            raise InputError(
                f"the reference model comes with a checkout of the project, and there is none at {shipped}: "
                "install with `make` or `pip install --editable .`, or give a pipeline with --model"
            )
        raise InputError(no_pipeline(folder))
    return folder.resolve()


def command_of(params: AuditParams) -> str:
    """The command that makes an audit with these parameters again; what profile and model say anyway is left out."""
    whole = resolved(params)
    assert whole.settings is not None
    try:
        known = resolved(params.model_copy(update={"settings": None})).settings
    except InputError:  # the model is gone: then every setting is named that the profile does not have
        known = settings_for(params.profile, {})
    assert known is not None
    words = ["engram", "audit"]
    for name in ("model", "config", "denoiser", "vae", "lora"):
        value = getattr(params, name)
        for each in value if name == "lora" else [value] if value is not None else []:
            words += [OPTIONS.get(name, f"--{name}"), each]
    for name in ("profile", "prompts", "nulls", "ordinary", "images", "clip"):
        if (value := getattr(params, name)) is not None:
            words += [f"--{name}", str(value)]
    for name, value in _changes(known.model_dump(mode="json"), whole.settings.model_dump(mode="json")):
        words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join(words)


def _changes(known: dict[str, Any], wanted: dict[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in wanted.items():
        if isinstance(value, dict) and isinstance(known[name], dict):
            yield from _changes(known[name], value, f"{group}{name}.")
        elif value != known[name]:
            yield f"{group}{name}", value


def beside(folder: Path, name: str, prefix: str = "") -> str | None:
    """A path that the model's `engram.json` gives, relative to its folder."""
    path = own_of(folder).get(name)
    return f"{prefix}{(folder / path).resolve()}" if path else None

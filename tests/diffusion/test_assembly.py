"""Models in pieces: one file, another UNet or autoencoder, adapters."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tasks.diffusion.check import check_sampling
from tasks.diffusion.families.pieces import assembly
from tasks.diffusion.families.pieces.assembly import Pieces, assembled
from tasks.diffusion.families.pieces.checkpoint import kind_of, marks, pipeline_of, write_published
from tasks.diffusion.families.pieces.lora import Lora, factors_of, fuse, read_lora
from tasks.diffusion.families.pieces.published import SCHEDULES, TEXT_ENCODERS, UNETS, VAES, clip_tokenizer
from tasks.diffusion.files import ASSEMBLED
from tasks.diffusion.folder import problems_of
from tasks.diffusion.hub import source_of
from tasks.diffusion.model import fingerprint, load_model, sha256_of
from tasks.diffusion.sampling import SamplingParams
from tasks.errors import InputError
from tests.support.adapters import Adapter
from tests.support.checkpoints import unet_tensors, vae_tensors, write_checkpoint
from tests.support.pipelines import ZERO_SNR, write_v, write_xl

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
WHOLE = ("v_folder", "xl_folder")
VELOCITY = "v_prediction"


@pytest.fixture(params=WHOLE)
def folder(request: pytest.FixtureRequest) -> Path:
    """Of each kind that comes in one file."""
    return Path(request.getfixturevalue(request.param))


def tensors(pipeline: Any) -> dict[str, torch.Tensor]:
    """All weights of a pipeline, by component and name."""
    return {
        f"{part} {name}": value
        for part in PARTS
        if getattr(pipeline, part, None) is not None
        for name, value in getattr(pipeline, part).state_dict().items()
    }


def made(model: Path, where: Path, own: Any = None, **pieces: Any) -> Path:
    """Put together in a cache that is this user's alone."""
    cache = where / f"models-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    return assembled(model, Pieces(**pieces), cache, sha256_of, own or {})


def equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_file_is_the_pipeline_that_it_was_written_from(folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    file = write_checkpoint(pipeline, tmp_path / "model.safetensors")
    found = made(file, tmp_path, config=str(folder))
    assert problems_of(found) == []
    assert equal(tensors(DiffusionPipeline.from_pretrained(found)), tensors(pipeline))
    assert source_of(str(found)) == str(file)
    load_model(found, "cpu")
    # Made once; and what it goes by is what it was made of. What it is called, and what its base says, may change.
    before = (found / "unet").stat().st_mtime_ns
    again = made(file.rename(tmp_path / "renamed.safetensors"), tmp_path, {"images": "/x"}, config=str(folder))
    assert again == found and (found / "unet").stat().st_mtime_ns == before
    assert fingerprint(found) == found.name
    assert source_of(str(found)) == str(tmp_path / "renamed.safetensors")
    assert json.loads((found / "engram.json").read_text()) == {"images": "/x"}
    # Elsewhere nobody believes what a folder says of itself.
    copy = shutil.copytree(found, tmp_path / "copy")
    assert (copy / ASSEMBLED).is_file() and fingerprint(copy) != found.name and source_of(str(copy)) == str(copy)


def test_a_file_of_half_precision_stays_as_it_is(v_folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(v_folder, torch_dtype=torch.float16)
    file = write_checkpoint(pipeline, tmp_path / "model.safetensors")
    found = made(file, tmp_path, config=str(v_folder))
    stored = load_file(found / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


def without(prefix: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda all_of_it: [all_of_it.pop(name) for name in list(all_of_it) if name.startswith(prefix)]


BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no denoiser": (without("model.diffusion_model."), "holds no denoiser"),
    "no text encoder": (without("cond_stage_model."), "lacks its text encoder: give the base model, whole"),
    "no autoencoder": (without("first_stage_model."), r"has no autoencoder .*: give one with --vae"),
    "a tensor less": (
        without("model.diffusion_model.out.2.bias"),
        r"has 285 tensors of the unet, and its configuration asks for 286: it is cut down",
    ),
    "a tensor less of the text": (
        without("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        "of the text_encoder",
    ),
    "a tensor more": (
        lambda tensors: tensors.update({"model.diffusion_model.extra.weight": torch.ones(1)}),
        "has 287 tensors of the unet, and its configuration asks for 286",
    ),
    "inpainting": (
        lambda tensors: tensors.update({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 9, 3, 3)}),
        "takes 9 channels, as inpainting",
    ),
    "another shape": (
        lambda tensors: tensors.update({"model.diffusion_model.out.2.bias": torch.ones(5)}),
        "is no model of the configuration",
    ),
    "flux": (
        lambda tensors: tensors.update({"model.diffusion_model.double_blocks.0.x": torch.ones(1)}),
        "a checkpoint of Flux",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_whole_model_is_refused_in_a_line(case: str, v_folder: Path, tmp_path: Path) -> None:
    change, words = BROKEN[case]
    file = write_checkpoint(DiffusionPipeline.from_pretrained(v_folder), tmp_path / "model.safetensors")
    content = load_file(file)
    change(content)
    save_file(content, file)
    with pytest.raises(InputError, match=words) as refused:
        made(file, tmp_path, config=str(v_folder))
    assert "\n" not in str(refused.value)
    cache = tmp_path / f"models-{os.getuid()}"
    assert [path for path in cache.iterdir() if path.is_dir()] == []  # nothing half made is left


@pytest.mark.parametrize(
    ("metadata", "extra", "prediction"),
    [
        ({}, {}, "epsilon"),
        ({"modelspec.prediction_type": "v"}, {}, "v_prediction"),
        ({"ss_v_parameterization": "True"}, {}, "v_prediction"),
        ({}, {"v_pred": torch.ones(0)}, "v_prediction"),
    ],
)
def test_what_a_file_says_of_its_schedule_counts(
    metadata: dict[str, str], extra: dict[str, torch.Tensor], prediction: str, xl_folder: Path, tmp_path: Path
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(xl_folder)
    file = write_checkpoint(pipeline, tmp_path / "model.safetensors", {"format": "pt"} | metadata, **extra)
    assert pipeline_of(file, xl_folder).scheduler.config.prediction_type == prediction
    # A UNet that predicts something else than the model's schedule says is no part of it.
    if prediction == "v_prediction":
        with pytest.raises(InputError, match="predicts v_prediction, and the model's schedule is of one of epsilon"):
            made(xl_folder, tmp_path, denoiser=str(file))


ZTSNR = pytest.mark.parametrize(
    ("metadata", "extra"),
    [
        ({"ss_zero_terminal_snr": "True"}, {}),
        ({}, {"ztsnr": torch.ones(0)}),
        ({}, {"ss_zero_terminal_snr": torch.ones(0)}),
    ],
)
"""A file that was trained down to zero terminal SNR, and does not say what it predicts."""


@ZTSNR
@pytest.mark.parametrize("says_noise", [False, True])
def test_zero_terminal_snr_without_velocity_is_refused_before_anything_is_loaded(
    metadata: dict[str, str],
    extra: dict[str, torch.Tensor],
    says_noise: bool,
    v_folder: Path,
    xl_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if says_noise:
        metadata = metadata | {"modelspec.prediction_type": "epsilon"}
    monkeypatch.setattr(assembly, "pipeline_of", None)
    monkeypatch.setattr(assembly, "write_published", None)
    # What the file does not say, the folder says whose configuration it has; without one it predicts noise.
    noisy: list[tuple[Path, dict[str, str]]] = [(xl_folder, {"config": str(xl_folder)}), (xl_folder, {})]
    if says_noise:
        noisy.append((v_folder, {"config": str(v_folder)}))
    for number, (folder, pieces) in enumerate(noisy):
        pipeline = DiffusionPipeline.from_pretrained(folder)
        file = write_checkpoint(pipeline, tmp_path / f"{number}.safetensors", {"format": "pt"} | metadata, **extra)
        with pytest.raises(InputError, match=r"zero terminal SNR .*and not that it predicts velocity") as refused:
            made(file, tmp_path, **pieces)
        assert "\n" not in str(refused.value)


@ZTSNR
@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_zero_terminal_snr_with_velocity_makes_a_schedule_down_to_it(
    kind: str,
    metadata: dict[str, str],
    extra: dict[str, torch.Tensor],
    v_folder: Path,
    xl_folder: Path,
    tmp_path: Path,
) -> None:
    folder = v_folder if kind == "sd1" else xl_folder
    marked: dict[str, torch.Tensor] = extra if kind == "sd1" else extra | {"v_pred": torch.ones(0)}
    pipeline = DiffusionPipeline.from_pretrained(folder)
    file = write_checkpoint(pipeline, tmp_path / "model.safetensors", {"format": "pt"} | metadata, **marked)
    whole = made(file, tmp_path, config=str(folder))
    config = json.loads((whole / "scheduler" / "scheduler_config.json").read_text())
    assert {name: config[name] for name in ZERO_SNR} == ZERO_SNR
    assert config["_class_name"] == ("DDIMScheduler" if kind == "sd1" else "EulerDiscreteScheduler")
    model = load_model(whole, "cpu")
    assert model.schedule.ends_in_noise
    check_sampling(model, SamplingParams())
    # A UNet of such a file is no part of a model whose schedule does not go so far.
    plain = write_v(tmp_path / "plain") if kind == "sd1" else write_xl(tmp_path / "plain", prediction_type=VELOCITY)
    with pytest.raises(InputError, match=r"trained down to zero terminal SNR \(ztsnr\), and the model's schedule"):
        made(plain, tmp_path, denoiser=str(file))


def test_a_scheduler_that_does_not_know_such_a_schedule_leaves_it_to_ddim(v_folder: Path, tmp_path: Path) -> None:
    """That of published 1.x is PNDM."""
    shape = shutil.copytree(v_folder, tmp_path / "shape")
    PNDMScheduler(**SCHEDULES["sd1"] | {"prediction_type": VELOCITY}).save_pretrained(shape / "scheduler")
    index = json.loads((shape / "model_index.json").read_text()) | {"scheduler": ["diffusers", "PNDMScheduler"]}
    (shape / "model_index.json").write_text(json.dumps(index))
    pipeline = DiffusionPipeline.from_pretrained(v_folder)
    file = write_checkpoint(pipeline, tmp_path / "model.safetensors", ztsnr=torch.ones(0), v_pred=torch.ones(0))
    whole = made(file, tmp_path, config=str(shape))
    config = json.loads((whole / "scheduler" / "scheduler_config.json").read_text())
    expected = SCHEDULES["sd1"] | ZERO_SNR | {"_class_name": "DDIMScheduler", "clip_sample": False}
    expected.pop("skip_prk_steps")
    assert {name: config[name] for name in expected} == expected
    check_sampling(load_model(whole, "cpu"), SamplingParams())


def shapes(kind: str) -> dict[str, torch.Size]:
    """The UNet of a published model, as its own code names tensors; no memory is taken."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNETS[kind])
    return {name: value.shape for name, value in unet_tensors(unet).items()}


def test_the_published_configurations_have_the_published_sizes() -> None:
    """859.5, 865.9 and 2,567.5 million parameters: model cards of 1.x, 2.x and XL."""
    assert {kind: sum(size.numel() for size in shapes(kind).values()) for kind in UNETS} == {
        "sd1": 859_520_964,
        "sd2": 865_910_724,
        "xl": 2_567_463_684,
    }
    # Where the last levels of their own code end.
    assert shapes("sd1")["output_blocks.11.1.proj_in.weight"] == (320, 320, 1, 1)
    assert shapes("sd2")["input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 1024)
    assert shapes("xl")["middle_block.1.transformer_blocks.9.attn2.to_v.weight"] == (1280, 2048)
    assert set(VAES) == set(TEXT_ENCODERS) == set(UNETS)


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_file_without_a_configuration_gets_the_published_one(
    kind: str, v_folder: Path, xl_folder: Path, tmp_path: Path
) -> None:
    folder = v_folder if kind == "sd1" else xl_folder
    file = write_checkpoint(DiffusionPipeline.from_pretrained(folder), tmp_path / "model.safetensors")
    assert kind_of(file) == kind
    write_published(file, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ("StableDiffusionXLPipeline" if kind == "xl" else "StableDiffusionPipeline")
    # Of tiny parts, so all that lacks are weights.
    assert {problem.split(": ")[-1] for problem in problems_of(tmp_path, "ddim")} == {"download the model again"}
    with pytest.raises(InputError, match="tensors of the unet, and its configuration asks for"):
        made(file, tmp_path)


def test_a_file_of_two_x_must_say_what_it_predicts(tmp_path: Path) -> None:
    names = ("model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.model.ln_final.weight")
    file = tmp_path / "model.safetensors"
    for metadata, said in (({}, {}), ({"modelspec.prediction_type": "v"}, {"prediction_type": VELOCITY})):
        save_file({name: torch.ones(1, 4, 1, 1) for name in names}, file, metadata)
        assert marks(file) == said
        if not said:
            with pytest.raises(InputError, match=r"512-base.* or velocity .*give --config"):
                write_published(file, tmp_path)
        else:
            write_published(file, tmp_path)
            assert json.loads((tmp_path / "unet/config.json").read_text())["sample_size"] == 96


def test_the_published_tokenizer_is_that_of_clip() -> None:
    texts = ["A photo of a cat, 35mm!", "  the QUICK\nbrown fox's 12345 dogs ", "<b>hello</b> 10%", "x" * 300]
    wanted = open_clip.get_tokenizer("ViT-L-14")(texts)
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    words = clip_tokenizer("<|endoftext|>")
    for ours, theirs in zip(words(texts, **options).input_ids, wanted, strict=True):
        length = int((theirs == words.eos_token_id).nonzero()[0]) + 1
        assert torch.equal(ours[:length], theirs[:length])
        assert (ours[length:] == words.eos_token_id).all()
    # In 2.x and XL's second encoder "!" is what pads, the first word of all.
    assert clip_tokenizer("!")(texts[3:], **options).input_ids[0, -1] == words.eos_token_id
    assert clip_tokenizer("!")("a cat", **options).input_ids[0].tolist()[3:] == [words.eos_token_id] + [0] * 73


def test_another_unet_and_autoencoder_take_the_places_of_the_models(folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    for part in (pipeline.unet, pipeline.vae):
        for weight in part.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    pipeline.unet.save_pretrained(tmp_path / "other_unet")
    save_file(vae_tensors(pipeline.vae), tmp_path / "vae.safetensors")
    pieces = {"denoiser": str(tmp_path / "other_unet"), "vae": str(tmp_path / "vae.safetensors")}
    found = made(folder, tmp_path, **pieces)
    assert equal(tensors(DiffusionPipeline.from_pretrained(found)), tensors(pipeline))
    assert source_of(str(found)) == f"{folder} + UNet other_unet + VAE vae.safetensors"
    assert len({made(folder, tmp_path, **{name: path}).name for name, path in pieces.items()} | {found.name}) == 3


@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_an_adapter_is_fused_as_the_formula_says(form: str, scale: float, folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    adapter = Adapter(pipeline, alpha=None if form == "peft" else 3.0)
    file = tmp_path / "lora.safetensors"
    adapter.write(file) if form == "peft" else adapter.write_kohya(file)
    wanted = {
        f"{part} {name}": value
        for part in PARTS
        if getattr(pipeline, part, None) is not None
        for name, value in adapter.fused(pipeline, part, scale).items()
    }
    found = made(folder, tmp_path, lora=(f"{file}={scale}",))
    for name, value in tensors(DiffusionPipeline.from_pretrained(found)).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)
    assert source_of(str(found)).endswith(" + lora.safetensors" if scale == 1 else " + lora.safetensors=-0.5")


def test_it_is_fused_as_diffusers_does(folder: Path, tmp_path: Path) -> None:
    theirs, ours = (DiffusionPipeline.from_pretrained(folder) for _ in range(2))
    file = Adapter(theirs).write(tmp_path / "lora.safetensors")
    theirs.load_lora_weights(tmp_path, weight_name=file.name)
    theirs.fuse_lora(components=[part for part in PARTS if part != "vae" and hasattr(theirs, part)], lora_scale=0.7)
    theirs.unload_lora_weights()
    fuse(ours, [Lora(file, 0.7)])
    wanted = tensors(theirs)
    for name, value in tensors(ours).items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)


def test_the_names_of_the_models_own_code_are_known(xl_folder: Path, tmp_path: Path) -> None:
    """Trainers call layers of XL as its own code does; a convolution can have an adapter, too."""
    pipeline = DiffusionPipeline.from_pretrained(xl_folder)
    own = {name: name for name in unet_tensors(pipeline.unet) if name.endswith(".weight")}
    by_place = dict(zip(own, [k for k in pipeline.unet.state_dict() if k.endswith(".weight")], strict=True))
    content: dict[str, torch.Tensor] = {}
    changed: dict[str, torch.Tensor] = {}
    for theirs, ours in by_place.items():
        weight = pipeline.unet.state_dict()[ours]
        if weight.ndim == 1:
            continue
        down = torch.randn(2, *weight.shape[1:])
        up = torch.randn(weight.shape[0], 2, *([1, 1] if weight.ndim == 4 else []))
        flat = f"lora_unet_{theirs.removesuffix('.weight').replace('.', '_')}"
        content |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        changed[ours] = weight + torch.einsum("or,r...->o...", up.flatten(1), down)
    save_file(content, tmp_path / "lora.safetensors")
    fuse(pipeline, [Lora(tmp_path / "lora.safetensors")])
    for name, value in changed.items():
        torch.testing.assert_close(pipeline.unet.state_dict()[name], value, atol=1e-5, rtol=0)


def test_a_part_in_a_file_must_be_whole_and_no_more(v_folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(v_folder)
    content = unet_tensors(pipeline.unet)
    for change, number in (({"lora_x": torch.ones(1)}, len(content) + 1), ({}, len(content))):
        whole = {f"model.diffusion_model.{k}": v.contiguous().clone() for k, v in (content | change).items()}
        save_file(whole, tmp_path / "unet.safetensors")
        if change:
            with pytest.raises(InputError, match=f"the number of its tensors, {number} and not {len(content)}"):
                made(v_folder, tmp_path, denoiser=str(tmp_path / "unet.safetensors"))
        else:
            made(v_folder, tmp_path, denoiser=str(tmp_path / "unet.safetensors"))
    (tmp_path / "vae.safetensors").write_bytes(b"\x80\x02}q")
    with pytest.raises(InputError, match=r"vae\.safetensors is cut short|is no safetensors file"):
        made(v_folder, tmp_path, vae=str(tmp_path / "vae.safetensors"))


def test_a_given_autoencoder_keeps_its_digits(v_folder: Path, tmp_path: Path) -> None:
    half = DiffusionPipeline.from_pretrained(v_folder, torch_dtype=torch.float16)
    file = write_checkpoint(half, tmp_path / "model.safetensors")
    found = made(file, tmp_path, config=str(v_folder), vae=str(v_folder / "vae"))
    whole, kept = (load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (v_folder, found))
    assert equal(kept, whole)


def test_a_part_behind_a_link_is_part_of_what_the_model_is(v_folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(v_folder)
    found = set()
    for number in range(2):
        pipeline.unet.conv_out.bias.data += 1.0
        pipeline.unet.save_pretrained(tmp_path / f"real{number}")
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "unet").unlink(missing_ok=True)
        (tmp_path / "other" / "unet").symlink_to(tmp_path / f"real{number}")
        found.add(made(v_folder, tmp_path, denoiser=str(tmp_path / "other")).name)
    assert len(found) == 2


def test_two_adapters_add_up_and_their_order_is_no_other_model(v_folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(v_folder)
    one, two = Adapter(pipeline, 1), Adapter(pipeline, 2)
    files = [one.write(tmp_path / "1.safetensors"), two.write(tmp_path / "2.safetensors")]
    found = made(v_folder, tmp_path, lora=tuple(map(str, files)))
    before = pipeline.unet.state_dict()
    wanted = {
        name: one.fused(pipeline, "unet")[name] + two.fused(pipeline, "unet")[name] - value
        for name, value in before.items()
    }
    for name, value in DiffusionPipeline.from_pretrained(found).unet.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)


def test_a_folder_of_peft_says_how_strong_its_adapter_is(v_folder: Path, tmp_path: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(v_folder)
    down, up = torch.randn(4, 16), torch.randn(16, 4)
    name = next(n for n, m in pipeline.unet.named_modules() if n.endswith("attn1.to_k") and m.in_features == 16)
    file = tmp_path / "adapter_model.safetensors"
    tensors = {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        read_lora(str(file))
    before = pipeline.unet.state_dict()[f"{name}.weight"].clone()
    ids = set()
    for alpha in (8, 16):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha, "r": 4}))
        found = made(v_folder, tmp_path, lora=(str(file),))
        ids.add(found.name)
        fused = DiffusionPipeline.from_pretrained(found).unet.state_dict()[f"{name}.weight"]
        torch.testing.assert_close(fused, before + alpha / 4 * up @ down, atol=1e-4, rtol=1e-5)
    assert len(ids) == 2
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": True}))
    with pytest.raises(InputError, match="is a DoRA"):
        read_lora(str(file))


def test_alpha_is_what_peft_trained_with(v_folder: Path, tmp_path: Path) -> None:
    factors = {"unet.a.lora_A.weight": torch.ones(4, 2), "unet.a.lora_B.weight": torch.ones(3, 4)}
    factors |= {"unet.b.c.lora_A.weight": torch.ones(4, 2), "unet.b.c.lora_B.weight": torch.ones(3, 4)}
    said = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"c": 2, "b.c": 5}}  # the first that fits counts
    for more, wanted in (({}, [2.0, 0.5]), ({"unet.use_rslora": True}, [4.0, 1.0])):
        metadata = {"lora_adapter_metadata": json.dumps(said | more)}
        save_file(factors, tmp_path / "lora.safetensors", metadata)
        assert [found.strength for found in factors_of(tmp_path / "lora.safetensors")] == wanted


BAD_ADAPTERS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "loha": ({"lora_unet_x.hada_w1_a": torch.ones(1)}, "is a LoHa of LyCORIS, which cannot be fused here"),
    "lokr": ({"lora_unet_x.lokr_w1": torch.ones(1)}, "is a LoKr of LyCORIS"),
    "dora": ({"lora_unet_x.lora_down.weight": torch.ones(1, 1), "lora_unet_x.dora_scale": torch.ones(1)}, "is a DoRA"),
    "core": ({"lora_unet_x.lora_mid.weight": torch.ones(1)}, "LoCon with a core"),
    "no adapter": ({"model.diffusion_model.x.weight": torch.ones(1)}, "holds no layers of a LoRA"),
    "half": ({"unet.x.lora_A.weight": torch.ones(1, 1)}, "has unet.x.lora_A.weight without unet.x.lora_B.weight"),
    "of another model": (
        {"unet.x.lora_A.weight": torch.ones(1, 1), "unet.x.lora_B.weight": torch.ones(1, 1)},
        r"changes 1 layers, of which 1 are none of this model, such as unet\.x: it is of another base model",
    ),
    "of another width": (
        {"unet.conv_in.lora_A.weight": torch.ones(1, 5), "unet.conv_in.lora_B.weight": torch.ones(8, 1)},
        "such as unet.conv_in",
    ),
    "turned": (
        {"unet.conv_in.lora_A.weight": torch.ones(1, 8, 3, 3), "unet.conv_in.lora_B.weight": torch.ones(4, 1, 1, 1)},
        "such as unet.conv_in",
    ),
    "more than layers": (
        {"unet.x.lora_A.weight": torch.ones(1, 1), "unet.x.lora_B.weight": torch.ones(1, 1), "odd": torch.ones(1)},
        "has 1 tensors that belong to no layer, such as odd",
    ),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_an_adapter_that_would_not_count_whole_is_refused_in_a_line(case: str, v_folder: Path, tmp_path: Path) -> None:
    content, words = BAD_ADAPTERS[case]
    save_file(content, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=words) as refused:
        made(v_folder, tmp_path, lora=(str(tmp_path / "lora.safetensors"),))
    assert "\n" not in str(refused.value)


def test_all_that_is_wrong_with_pieces_is_told_at_once(v_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.pt").write_bytes(b"x")
    (tmp_path / "unet.ckpt").write_bytes(b"x")
    pieces = {
        "config": str(v_folder),
        "denoiser": str(tmp_path / "unet.ckpt"),
        "vae": str(tmp_path / "none"),
        "lora": (str(tmp_path / "lora.pt"), str(tmp_path / "gone.safetensors"), f"{v_folder}=much"),
    }
    with pytest.raises(InputError) as refused:
        made(v_folder, tmp_path, **pieces)
    words = (
        "lora.pt is no safetensors file: a pickle can run code",
        "gone.safetensors is not there",
        "'much' is no number: give FILE or FILE=SCALE",
        "--config is for a model in one file",
        "unet.ckpt is no safetensors file, and a pickle can run code",
        "there is no .*none, which was given with --vae",
    )
    for line, wanted in zip(refused.value.problems, words, strict=True):
        assert wanted.replace(".*", "") in line or wanted.split(".*")[-1] in line
    for text in ("x.safetensors=0", "x.safetensors=inf"):
        with pytest.raises(InputError, match="is none; 1 is what the adapter was trained with"):
            read_lora(text)


def test_a_base_that_is_not_whole_is_refused_and_not_filled_up(v_folder: Path, tmp_path: Path) -> None:
    lora = Adapter(DiffusionPipeline.from_pretrained(v_folder)).write(tmp_path / "lora.safetensors")
    base = shutil.copytree(v_folder, tmp_path / "base")
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    content = load_file(weights)
    save_file({name: value for name, value in content.items() if name != "conv_out.bias"}, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"the weights in .*unet lack conv_out.bias"):
        made(base, tmp_path, lora=(str(lora),))
    save_file(content, weights, {"format": "pt"})
    shutil.copy(lora, base / "pytorch_lora_weights.safetensors")
    with pytest.raises(InputError, match=r"is a LoRA, .*give it with --lora if it is to count"):
        made(base, tmp_path, lora=(str(lora),))


def test_a_model_that_was_changed_since_it_was_made_is_refused(v_folder: Path, tmp_path: Path) -> None:
    file = Adapter(DiffusionPipeline.from_pretrained(v_folder)).write(tmp_path / "lora.safetensors")
    found = made(v_folder, tmp_path, lora=(str(file),))
    path = found / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="was changed since it was put together: remove it"):
        fingerprint(found)

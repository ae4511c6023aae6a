"""What lies in a model folder: everything that is wrong is told at once and before any weights are loaded."""

import json
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from flows.params import model_folder
from tasks.diffusion.folder import problems_of
from tasks.diffusion.model import load_model
from tasks.errors import InputError
from tasks.mitigate.prune import Card, save_pipeline
from tests.support.folders import Change, config, index


def weights(name: str, *tensors: str) -> Change:
    return lambda folder: save_file({each: torch.zeros(2, 2) for each in tensors}, folder / name)


def moved(part: str, name: str) -> Change:
    stem = "model.safetensors" if part.startswith("text") else "diffusion_pytorch_model.safetensors"
    return lambda folder: (folder / part / stem).rename(folder / part / name)


def cut(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def only_header(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def pointer(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167536\n")


def dangling(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.symlink_to("../../blobs/gone")


def shard_lost(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    names = {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-2"}
    (path.parent / f"{path.name}.index.json").write_text(json.dumps({"weight_map": names}))


def shard_elsewhere(folder: Path) -> None:
    name = "diffusion_pytorch_model.safetensors.index.json"
    (folder / "unet" / name).write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}))


def several_vectors(folder: Path) -> None:
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<cat>": 600, "<cat>_1": 601}))


def without(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


BAD: dict[str, tuple[Change, str]] = {
    # What would be loaded but not count.
    "lora": (weights("pytorch_lora_weights.safetensors", "unet.a.lora_A.weight"), "is a LoRA, .* with --lora if"),
    "lora by another name": (weights("style.safetensors", "unet.a.lora.down.weight"), "style.safetensors is a LoRA"),
    "lora beside the unet": (weights("unet/pytorch_lora_weights.safetensors", "a"), "unet/pytorch_lora_.* is a LoRA"),
    "lora that was not fused": (
        weights("unet/diffusion_pytorch_model.safetensors", "conv_in.weight", "a.lora_A.weight"),
        "unet/diffusion_pytorch_model.safetensors has layers of a LoRA that was not fused: fuse it",
    ),
    "lora by a variant's name": (
        weights("unet/diffusion_pytorch_model.style.safetensors", "a.lora_A.weight"),
        "style.safetensors is a LoRA",
    ),
    "a folder of an adapter": (
        lambda folder: single(folder / "controlnet" / "diffusion_pytorch_model.safetensors", "conv_in.weight"),
        "controlnet/diffusion_pytorch_model.safetensors is a ControlNet",
    ),
    "lora of kohya": (weights("x.safetensors", "lora_unet_a.lora_down.weight", "lora_unet_a.alpha"), "is a LoRA"),
    "peft": (lambda folder: (folder / "text_encoder" / "adapter_config.json").write_text("{}"), "is an adapter"),
    "pickled lora": (lambda folder: (folder / "pytorch_lora_weights.bin").write_bytes(b"x"), "is a LoRA"),
    "attention processors": (lambda folder: (folder / "pytorch_attn_procs.bin").write_bytes(b"x"), "is an adapter"),
    "textual inversion": (weights("learned_embeds.safetensors", "<cat>"), "is a textual inversion"),
    "textual inversion by content": (weights("cat.safetensors", "emb_params"), "is a textual inversion"),
    "ip-adapter": (weights("ip-adapter_sd15.safetensors", "image_proj.proj.weight"), "is an IP-Adapter"),
    "controlnet": (index(controlnet=["diffusers", "ControlNetModel"]), r"lists controlnet .*ControlNetModel"),
    "several vectors": (several_vectors, r"textual inversion of several vectors \(<cat>_1\)"),
    "lcm": (config("unet", time_cond_proj_dim=256), "time_cond_proj_dim: .* LCM"),
    "classes": (config("unet", num_class_embeds=1000), "num_class_embeds: .* upscalers"),
    "class embedding": (config("unet", class_embed_type="timestep"), "class_embed_type: .* unCLIP"),
    "image projection": (config("unet", encoder_hid_dim_type="ip_image_proj"), "encoder_hid_dim_type: .*IP-Adapter"),
    "added text": (config("unet", addition_embed_type="text"), "addition_embed_type 'text'"),
    "gligen": (config("unet", attention_type="gated"), "GLIGEN"),
    "blocks": (config("unet", mid_block_type="UNetMidBlock2DSimpleCrossAttn"), "SimpleCrossAttn', whose layers"),
    "text mean": (config("vae", latents_mean=[0.1] * 4, latents_std=[1.0] * 4), "latents_mean and latents_std, which"),
    "shift": (config("vae", shift_factor=0.1), "shift_factor 0.1, which StableDiffusionPipeline does not apply"),
    "scale": (config("vae", scaling_factor=None), "scaling_factor None"),
    "mask": (config("text_encoder", use_attention_mask=True), "use_attention_mask"),
    "quantized": (config("unet", quantization_config={"load_in_8bit": True}), "quantized"),
    "zero snr": (config("scheduler", rescale_betas_zero_snr=True, prediction_type="epsilon"), "zero terminal SNR"),
    "predicts images": (config("scheduler", prediction_type="sample"), "predicts 'sample'"),
    # What cannot be loaded, or is no text-to-image model.
    "inpainting": (config("unet", in_channels=9), "takes 9 channels and gives 4, as an inpainting model does"),
    "edits": (config("unet", in_channels=8), "takes 8 channels and gives 4, as InstructPix2Pix"),
    "depth": (config("unet", in_channels=5), "takes 5 channels and gives 4, as a depth-to-image model does"),
    "learned variance": (config("unet", out_channels=8), "takes 4 channels and gives 8"),
    "no size": (config("unet", sample_size=None), "has no sample_size: write the height"),
    "widths": (config("unet", cross_attention_dim=24), "reads 24 values a token, its text encoders give 16"),
    "class": (index(_class_name="SanaPipeline"), "holds a SanaPipeline; audits need a StableDiffusionPipeline or"),
    "inpainting class": (index(_class_name="StableDiffusionInpaintPipeline"), "no text-to-image model by itself"),
    "own pipeline": (index(_class_name=["pipeline", "Mine"]), "pipeline of its own code .Mine., and no code"),
    "no class": (index(_class_name=None), "no index of a pipeline"),
    "own part": (index(unet=["my_unet", "MyUNet"]), "the unet .* is a my_unet.MyUNet; .* no code of a model is run"),
    "other part": (
        index(vae=["diffusers", "VQModel"]),
        "the vae .* is a diffusers.VQModel; audits need a AutoencoderKL",
    ),
    "no part": (index(tokenizer=[None, None]), "has no tokenizer"),
    "part gone": (without("vae"), "vae is missing, which model_index.json lists"),
    "config gone": (without("unet/config.json"), "unet/config.json is missing: download the model again"),
    "config broken": (lambda folder: (folder / "vae/config.json").write_text("{"), "vae/config.json is not JSON"),
    "weights gone": (without("unet/diffusion_pytorch_model.safetensors"), "safetensors is missing: download"),
    "two variants": (
        both(
            moved("unet", "diffusion_pytorch_model.fp16.safetensors"),
            weights("unet/diffusion_pytorch_model.ema.safetensors", "conv_in.weight"),
        ),
        r"unet has its weights as variants alone \(ema, fp16\): move those away",
    ),
    "bin": (moved("vae", "diffusion_pytorch_model.bin"), "a pickle, .*use_safetensors=False"),
    "text bin": (moved("text_encoder", "pytorch_model.bin"), "text_encoder has .* pytorch_model.bin alone, a pickle"),
    "flax": (moved("unet", "diffusion_flax_model.msgpack"), "weights of Flax alone"),
    "onnx": (moved("unet", "model.onnx"), "weights of ONNX alone"),
    "cut short": (cut, r"unet/diffusion.* is cut short \(.* bytes\): download it again"),
    "only its header": (only_header, "vae/diffusion.* is cut short .*header .*: download it again"),
    "pointer": (pointer, "pointer of Git LFS, .* git lfs pull"),
    "dangling": (dangling, "is a link to a file that is not there: download it again"),
    "shard": (shard_lost, "00002-of-2 is missing"),
    "shard elsewhere": (shard_elsewhere, "no file beside it"),
    "tokenizer": (without("tokenizer/tokenizer.json"), "has no tokenizer.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_folder_is_told_in_a_line_before_weights_are_loaded(
    case: str, v_folder: Path, tmp_path: Path
) -> None:
    change, line = BAD[case]
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    assert problems_of(folder) == []
    change(folder)
    with pytest.raises(InputError, match=line) as refused:
        load_model(folder, "cpu")
    assert [problem for problem in problems_of(folder) if problem in str(refused.value)]
    assert all("\n" not in problem for problem in problems_of(folder))


XL_BAD: dict[str, tuple[Change, str]] = {
    "refiner": (index(text_encoder=[None, None], tokenizer=[None, None]), "has no text_encoder"),
    "score": (index(requires_aesthetics_score=True), "aesthetics score"),
    "beside": (
        config("unet", projection_class_embeddings_input_dim=30),
        "reads 30 values beside the text where XL has 34",
    ),
    "no pooled text": (
        config("unet", addition_embed_type=None),
        "addition_embed_type None, a XL model has 'text_time'",
    ),
    "half of the statistics": (config("vae", latents_mean=[0.0] * 4), "latents_mean alone"),
    "statistics of another": (config("vae", latents_mean=[0.0], latents_std=[1.0]), "no list of 4 numbers"),
}


@pytest.mark.parametrize("case", XL_BAD)
def test_what_is_wrong_with_an_xl_folder_is_told_in_a_line(case: str, xl_folder: Path, tmp_path: Path) -> None:
    change, line = XL_BAD[case]
    folder = shutil.copytree(xl_folder, tmp_path / "copy")
    assert problems_of(folder) == []
    change(folder)
    with pytest.raises(InputError, match=line):
        load_model(folder, "cpu")


def test_a_scheduler_of_its_own_code_is_not_taken_for_one_of_diffusers(v_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    index(scheduler=["mine", "DDIMScheduler"])(folder)
    (problem,) = problems_of(folder)
    assert "has no scheduler mine.DDIMScheduler" in problem and "--set sampling.scheduler=ddim" in problem
    assert problems_of(folder, "ddim") == []


def test_all_problems_are_told_at_once(v_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    both(cut, config("unet", time_cond_proj_dim=8), without("tokenizer/tokenizer.json"))(folder)
    assert len(problems_of(folder)) == 3
    with pytest.raises(InputError, match=r"^3 things cannot be used"):
        load_model(folder, "cpu")


def test_what_is_not_needed_is_not_required(v_folder: Path, tmp_path: Path) -> None:
    """Listed and lacking: what nothing reads. There beside: other copies of the same model."""
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    index(
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
    )(folder)
    weights("v1-5-pruned-emaonly.safetensors", "model.diffusion_model.input_blocks.0.0.weight")(folder)
    weights("unet/diffusion_pytorch_model.non_ema.safetensors", "conv_in.weight")(folder)
    (folder / "v1-5-pruned.ckpt").write_bytes(b"x")
    assert problems_of(folder) == []
    assert load_model(folder, "cpu").denoiser is not None


def test_a_variant_is_exported_without_what_the_folder_lacks(v_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    index(
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
    )(folder)
    card = Card("pruned", "base", "0123", "NeMo", "audit-7", "value", pruned=1, total=2)
    save_pipeline(folder, load_model(folder, "cpu").denoiser, tmp_path / "whole", card)
    assert problems_of(tmp_path / "whole") == []


def rewritten(folder: Path, part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    name = "model.safetensors" if part.startswith("text") else "diffusion_pytorch_model.safetensors"
    tensors = load_file(folder / part / name)
    change(tensors)
    save_file(tensors, folder / part / name, metadata={"format": "pt"})


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    ("part", "tensor"),
    [("unet", "conv_in.weight"), ("vae", "decoder.conv_out.bias"), ("text_encoder", "final_layer_norm.weight")],
)
def test_weights_that_are_not_finite_are_broken(
    part: str, tensor: str, value: str, v_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(v_folder, tmp_path / "copy")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        (name,) = [name for name in tensors if name.endswith(tensor)]
        tensors[name].view(-1)[0] = float(value)

    rewritten(folder, part, spoil)
    with pytest.raises(InputError, match=rf"{part}/\w+.safetensors are broken \(.*{tensor} is not finite\): download"):
        load_model(folder, "cpu")


def test_weights_that_are_too_large_for_a_precision_are_not_called_broken(v_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    rewritten(folder, "unet", lambda tensors: tensors["conv_in.weight"].fill_(1e5))
    with pytest.raises(InputError, match=r"conv_in.weight of .* is too large for float16: --set precision=float32"):
        load_model(folder, "cpu", "float16")
    assert load_model(folder, "cpu") is not None


def test_weights_that_lack_or_have_too_much_are_no_random_numbers(v_folder: Path, tmp_path: Path) -> None:
    """diffusers fills up what lacks with random numbers, and warns."""
    for number, (change, line) in enumerate(
        [
            (lambda tensors: tensors.pop("conv_in.weight"), "unet lack conv_in.weight"),
            (
                lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}),
                "unet have beyond its config extra.weight",
            ),
            (lambda tensors: tensors.update({"conv_in.weight": torch.zeros(1)}), "cannot load .*unet"),
        ]
    ):
        folder = shutil.copytree(v_folder, tmp_path / str(number))
        rewritten(folder, "unet", change)
        with pytest.raises(InputError, match=line):
            load_model(folder, "cpu")


def test_weights_by_the_names_of_older_versions_are_taken(v_folder: Path, tmp_path: Path) -> None:
    """As those of Stable Diffusion 1.x are published."""
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def of_autoencoder(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "attentions.0.to_" in name]:
            new, value = name, tensors.pop(name)
            for now, then in old.items():
                new = new.replace(f".{now}.", f".{then}.")
            tensors[new] = value

    def of_encoder(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if not name.startswith("text_model.")]:
            tensors[f"text_model.{name}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(4)
        tensors["text_projection.weight"] = torch.zeros(4, 4)

    rewritten(folder, "vae", of_autoencoder)
    rewritten(folder, "text_encoder", of_encoder)
    new, known = load_model(folder, "cpu"), load_model(v_folder, "cpu")
    assert torch.equal(new.encode(["a cat"]), known.encode(["a cat"]))
    for name, value in known.vae.state_dict().items():
        assert torch.equal(new.vae.state_dict()[name], value)


def test_tokens_that_the_encoder_does_not_know_are_refused(v_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(v_folder, tmp_path / "copy")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<cat>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(InputError, match=r"tokenizer has \d+ tokens, text_encoder knows \d+"):
        load_model(folder, "cpu")


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return path


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def single(path: Path, *tensors: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(2, 2) for name in tensors}, path)
    return path


NOT_FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda at: at / "gone", "there is no such file or folder; .* OWNER/NAME"),
    "empty": (lambda at: at, "the folder is empty"),
    "checkpoint in a folder": (
        lambda at: single(at / "sd.safetensors", "model.diffusion_model.out.0.weight").parent,
        "no model_index.json in .*; .*sd.safetensors is a whole model in one file: give the file itself, --model ",
    ),
    "lora": (
        lambda at: single(at / "l.safetensors", "lora_unet_x.lora_up.weight"),
        "is a LoRA, no whole .* with --lora",
    ),
    "lora folder": (lambda at: single(at / "pytorch_lora_weights.safetensors", "a").parent, "holds an adapter"),
    "unet file": (lambda at: single(at / "u.safetensors", "conv_in.weight"), "a part of a model alone"),
    "cut short": (
        lambda at: written(at / "m.safetensors", b"\x10\x10\0\0\0\0\0\0{"),
        "is cut short .*download it again",
    ),
    "empty file": (lambda at: written(at / "m.safetensors", b""), "is an empty file"),
    "pointer": (lambda at: written(at / "m.ckpt", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "gguf": (lambda at: written(at / "m.gguf", b"GGUF\x03"), "GGUF file, whose weights are quantized"),
    "gguf folder": (lambda at: written(at / "m.gguf", b"GGUF\x03").parent, "GGUF file"),
    "old ckpt": (
        lambda at: written(at / "m.ckpt", b"\x80\x02}q"),
        "is a pickle, which can run code .*weights_only=True",
    ),
    "pth": (lambda at: zipped(at / "m.pth", "archive/data.pkl"), "is a pickle, which can run code"),
    "pt": (lambda at: zipped(at / "m.pt", "m/data.pkl"), "is a pickle, which can run code"),
    "zip": (lambda at: zipped(at / "m.zip", "m/model_index.json"), "a pipeline in a zip file: unpack it"),
    "other zip": (lambda at: zipped(at / "m.zip", "readme"), "is a zip file: unpack it"),
    "tar": (lambda at: written(at / "m.tar.gz", b"\x1f\x8b\x08"), "is an archive: unpack it"),
    "onnx": (lambda at: written(at / "m.onnx", b"\x08"), "a model of another framework"),
    "text": (lambda at: written(at / "notes.txt", b"hello"), "is a file, and no model that is known here"),
    "unet folder": (
        lambda at: written(at / "config.json", b'{"_class_name": "UNet2DConditionModel"}').parent,
        "holds a UNet2DConditionModel alone: give the folder of a whole pipeline",
    ),
    "only a unet": (lambda at: written(at / "unet" / "config.json", b"{}").parent.parent, "has unet alone"),
    "no index": (
        lambda at: max(written(at / part / "config.json", b"{}") for part in ("unet", "vae")).parent.parent,
        "has unet, vae but no model_index.json: download the model again",
    ),
    "transformers": (
        lambda at: written(at / "config.json", b'{"architectures": ["LlamaForCausalLM"]}').parent,
        "holds a LlamaForCausalLM of transformers, no text-to-image pipeline",
    ),
    "cache": (
        lambda at: written(at / "models--a--b/snapshots/0f/model_index.json", b"{}").parent.parent.parent,
        "is the Hub's cache: give the pipeline in it, --model .*/snapshots/0f",
    ),
    "snapshots": (
        lambda at: written(at / "models--a--b/snapshots/0f/model_index.json", b"{}").parent.parent,
        "is the Hub's cache: give the pipeline in it, --model .*/snapshots/0f",
    ),
    "cache without": (
        lambda at: written(at / "models--a--b/refs/main", b"0f").parent.parent,
        "is of the Hub's cache, and no whole pipeline lies in it: download the model again",
    ),
    "around": (lambda at: written(at / "sd/model_index.json", b"{}").parent.parent, "a folder around a pipeline: give"),
    "part": (
        lambda at: written(at / "sd/unet/config.json", written(at / "sd/model_index.json", b"{}").read_bytes()).parent,
        "is a part of the pipeline at .*/sd: give that folder",
    ),
    "index itself": (lambda at: written(at / "sd/model_index.json", b"{}"), "is a file of a pipeline: give its folder"),
}


def test_the_command_that_converts_a_pickle_does(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    path = tmp_path / 'it\'s $(touch owned) "model".ckpt'
    torch.save({"state_dict": tensors | {"c": tensors["a"]}, "epoch": 3}, path)
    path.with_suffix(".safetensors").write_bytes(b"another")
    with pytest.raises(InputError) as refused:
        model_folder(str(path))
    program, option, code = shlex.split(str(refused.value).partition("makes of it: ")[2])
    assert (program, option) == ("python", "-c")
    subprocess.run([sys.executable, option, code], check=True)
    assert load_file(path.with_suffix(".1.safetensors")).keys() == {"a", "b", "c"}
    assert path.with_suffix(".safetensors").read_bytes() == b"another"


@pytest.mark.parametrize("case", NOT_FOLDERS)
def test_what_is_no_pipeline_is_told_by_what_it_is(case: str, tmp_path: Path) -> None:
    make, line = NOT_FOLDERS[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=line) as refused:
        model_folder(str(path))
    assert "\n" not in str(refused.value)
    (problem,) = problems_of(path)
    assert problem == str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co/some/model", "https://huggingface.co/some/model/tree/main", "hf://some/model"],
)
def test_an_address_of_the_hub_is_told_its_name(address: str) -> None:
    with pytest.raises(InputError, match=r"give the name alone, --model some/model$"):
        model_folder(address)


def test_a_home_folder_is_written_out(v_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(v_folder.parent))
    assert model_folder(f"~/{v_folder.name}") == v_folder.resolve()

"""Models in one file, with the names that their tensors had when they were trained (CompVis' and Stability's code)."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
_OUTER = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def write_checkpoint(pipeline: Any, path: Path, metadata: dict[str, str] | None = None, **extra: torch.Tensor) -> Path:
    """Writes a pipeline of Stable Diffusion 1.x or XL as one file.

    Args:
        extra: further tensors, such as the marks of a schedule.
    """
    tensors = {f"model.diffusion_model.{k}": v for k, v in unet_tensors(pipeline.unet).items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in vae_tensors(pipeline.vae).items()}
    encoder = _text_model(pipeline.text_encoder)
    if hasattr(pipeline, "text_encoder_2"):
        tensors |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in encoder.items()}
        tensors |= {
            f"conditioner.embedders.1.model.{k}": v for k, v in open_clip_tensors(pipeline.text_encoder_2).items()
        }
    else:
        tensors |= {f"cond_stage_model.transformer.{k}": v for k, v in encoder.items()}
    save_file({k: v.contiguous().clone() for k, v in (tensors | extra).items()}, path, metadata or {"format": "pt"})
    return path


def unet_tensors(unet: Any) -> dict[str, torch.Tensor]:
    """Of a UNet, by the names of CompVis' code."""
    layers = unet.config["layers_per_block"]
    found = {}
    for key, value in unet.state_dict().items():
        name = key
        for ours, theirs in _OUTER.items():
            name = re.sub(rf"^{re.escape(ours)}\.", f"{theirs}.", name)
        if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
            side, block, what, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            number = 1 + block * (layers + 1) + layer if side == "down" else block * (layers + 1) + layer
            place = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{0 if what == 'resnets' else 1}"
            name = f"{place}.{_inner(rest) if what == 'resnets' else rest}"
        elif match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
            name = f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op.{match[2]}"
        elif match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
            attends = "CrossAttn" in unet.config["up_block_types"][int(match[1])]
            name = f"output_blocks.{int(match[1]) * (layers + 1) + layers}.{2 if attends else 1}.conv.{match[2]}"
        elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
            index = 1 if match[1] == "attentions" else 2 * int(match[2])
            name = f"middle_block.{index}.{match[3] if match[1] == 'attentions' else _inner(match[3])}"
        found[name] = value
    return found


def vae_tensors(vae: Any) -> dict[str, torch.Tensor]:
    """Of an autoencoder, by the names of CompVis' code."""
    blocks = len(vae.config["block_out_channels"])
    found = {}
    for key, value in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("conv_norm_out", "norm_out")
        if "mid.attn_1" in name:
            for ours, theirs in {
                "to_q": "q",
                "to_k": "k",
                "to_v": "v",
                "to_out.0": "proj_out",
                "group_norm": "norm",
            }.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
            if value.ndim == 2:  # convolutions of one pixel there
                value = value[:, :, None, None]
        found[name] = value
    return found


def open_clip_tensors(encoder: Any) -> dict[str, torch.Tensor]:
    """Of a text encoder with a projection, by the names of open_clip."""
    found: dict[str, torch.Tensor] = {}
    tensors = _text_model(encoder)
    for key, value in tensors.items():
        name = key.removeprefix("text_model.")
        if match := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name):
            place, what, kind = f"transformer.resblocks.{match[1]}", match[2], match[3]
            if what == "self_attn.q_proj":
                of = f"text_model.encoder.layers.{match[1]}.self_attn"
                found[f"{place}.attn.in_proj_{kind}"] = torch.cat([tensors[f"{of}.{x}_proj.{kind}"] for x in "qkv"])
            if what in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                continue
            names = {
                "self_attn.out_proj": "attn.out_proj",
                "layer_norm1": "ln_1",
                "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }
            found[f"{place}.{names[what]}.{kind}"] = value
        elif name == "text_projection.weight":
            found["text_projection"] = value.T
        elif name == "embeddings.position_embedding.weight":
            found["positional_embedding"] = value
        elif name == "embeddings.token_embedding.weight":
            found["token_embedding.weight"] = value
        elif name.startswith("final_layer_norm."):
            found[name.replace("final_layer_norm", "ln_final")] = value
    return found


def _inner(rest: str) -> str:
    name, kind = rest.rsplit(".", 1)
    return f"{_RESNET[name]}.{kind}"


def _text_model(encoder: Any) -> dict[str, torch.Tensor]:
    """By the names that transformers had when these models were published."""
    tensors = encoder.state_dict()
    return {k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v for k, v in tensors.items()}

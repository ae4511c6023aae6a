"""Pipelines of every family small enough to sample in a second; their weights are random."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tasks.diffusion.families import Model
from tasks.diffusion.noise import initial_noise
from tests.support.world import tokenizer

PROMPTS = ["a cat", "two dogs"]
KEYS = [(prompt, 0) for prompt in PROMPTS]
WORDS = tokenizer()


def text_config(width: int, pooled: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WORDS.model_max_length,
        projection_dim=pooled,
        bos_token_id=len(WORDS) - 2,
        eos_token_id=len(WORDS) - 1,
        pad_token_id=len(WORDS) - 1,
    )


def parts(width: int, **config: Any) -> dict[str, Any]:
    """What every family has: two blocks down, two up, images of 16 pixels."""
    torch.manual_seed(0)
    return {
        "unet": UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            cross_attention_dim=width,
            attention_head_dim=[2, 4],
            use_linear_projection=True,
            **config,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ),
        "tokenizer": WORDS,
    }


ZERO_SNR: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
"""Of a scheduler whose last timestep is pure noise, as models are trained to zero terminal SNR."""


def write_xl(folder: Path, **schedule: Any) -> Path:
    """SDXL in little: two text encoders, pooled text and image size beside the tokens, two blocks an attention."""
    StableDiffusionXLPipeline(
        **parts(
            16 + 12,
            transformer_layers_per_block=[1, 2],
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=10 + 6 * 4,
        ),
        text_encoder=CLIPTextModel(text_config(16, 16)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(12, 10)),
        tokenizer_2=WORDS,
        scheduler=EulerDiscreteScheduler(**schedule),
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_v(folder: Path, **schedule: Any) -> Path:
    """SD 2.1 in little: it predicts velocity."""
    schedule = {"prediction_type": "v_prediction"} | schedule
    StableDiffusionPipeline(
        **parts(16),
        text_encoder=CLIPTextModel(text_config(16, 16)),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def t5_tokenizer() -> T5Tokenizer:
    """Letter by letter; the word picture is one token."""
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    pieces = ["<pad>", "</s>", "<unk>", space, f"{space}picture", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    return T5Tokenizer(vocab=[(piece, 0.0 if n < 3 else -2.0) for n, piece in enumerate(pieces)], extra_ids=0)


def write_pixart(folder: Path, kind: Any = PixArtAlphaPipeline, **config: Any) -> Path:
    """PixArt in little: a transformer of three blocks, its spread predicted beside the noise, images of 32 pixels."""
    torch.manual_seed(0)
    words = t5_tokenizer()
    shape: dict[str, Any] = {"sample_size": 8, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 12}
    kind(
        transformer=PixArtTransformer2DModel(**(shape | config), cross_attention_dim=24, caption_channels=16),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
        ),
        text_encoder=T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, is_decoder=False)
        ),
        tokenizer=words,
        scheduler=DPMSolverMultistepScheduler(),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_sd3(folder: Path, t5: bool = True, **config: Any) -> Path:
    """Stable Diffusion 3.5 in little: three joint blocks, the first with a second attention of the image; images of 32
    pixels."""
    torch.manual_seed(0)
    words = t5_tokenizer()
    shape: dict[str, Any] = {"sample_size": 8, "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 12}
    shape |= {"dual_attention_layers": (0,), "qk_norm": "rms_norm", "pos_embed_max_size": 8}
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            **(shape | config),
            in_channels=4,
            out_channels=4,
            joint_attention_dim=32,
            caption_projection_dim=24,
            pooled_projection_dim=8 + 10,
        ),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModelWithProjection(text_config(16, 8)),
        tokenizer=WORDS,
        text_encoder_2=CLIPTextModelWithProjection(text_config(12, 10)),
        tokenizer_2=WORDS,
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=2, is_decoder=False)
        )
        if t5
        else None,
        tokenizer_3=words if t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_flux(folder: Path, guidance: bool = True, **config: Any) -> Path:
    """FLUX.1 dev in little, or schnell, which reads no guidance and whose steps are not shifted: two double blocks, two
    single ones, images of 32 pixels."""
    torch.manual_seed(0)
    words = t5_tokenizer()
    shape: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2}
    shape |= {"attention_head_dim": 12, "axes_dims_rope": (4, 4, 4), "joint_attention_dim": 32}
    FluxPipeline(
        transformer=FluxTransformer2DModel(
            **(shape | config), in_channels=16, pooled_projection_dim=16, guidance_embeds=guidance
        ),
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=4,
            sample_size=32,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=CLIPTextModel(text_config(16, 16)),
        tokenizer=WORDS,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=2, is_decoder=False)
        ),
        tokenizer_2=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if guidance
        else FlowMatchEulerDiscreteScheduler(shift=1.0),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def sampled_by_diffusers(kind: Any, folder: Path, model: Model, steps: int) -> torch.Tensor:
    """Latents of the pipeline's own sampling."""
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    found: torch.Tensor = pipeline(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=7.5,
        latents=initial_noise(model, KEYS),
        output_type="latent",
    ).images
    return found

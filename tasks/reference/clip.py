"""The reference text-image model: a small CLIP trained with open_clip, and its text tower for the diffusion model.

The text tower is learned here and then frozen, as in Stable Diffusion. Trained beside the diffusion model from
scratch instead, planted images came up under the wrong prompts.
"""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tasks.reference.training import Checkpoint, autocast, one_cycle, steps

VOCABULARY = 3000
TOKENS = 32
WIDTH = 128
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

MODEL = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 64, "layers": [2, 2, 2, 1], "width": 24, "head_width": 64},
    "text_cfg": {
        "context_length": TOKENS,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "reference",
        "width": WIDTH,
        "heads": 4,
        "layers": 3,
    },
}


def train_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A byte-pair encoding in CLIP's form, learned from the captions; end of text is the highest number."""
    shape = CLIPTokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer, bpe.decoder = shape.pre_tokenizer, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=alphabet,
        # Left to itself, the trainer numbers letters at the end of words in an order that changes from run to run.
        special_tokens=[f"{letter}</w>" for letter in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    state = json.loads(bpe.to_str())["model"]
    vocabulary = state["vocab"]
    # CLIP keeps every byte with and without the end-of-word mark; words of unseen letters need both.
    merges = [tuple(pair) for pair in state["merges"]]
    if len(vocabulary) != VOCABULARY - 2:
        raise ValueError(
            f"the captions gave {len(vocabulary)} tokens, {VOCABULARY - 2} were expected: use more captions"
        )
    vocabulary |= {"<|startoftext|>": VOCABULARY - 2, "<|endoftext|>": VOCABULARY - 1}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token numbers, int64 (n, 32), cut and padded with the end of text."""
    batch = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    return batch.input_ids


def train_clip(
    bank: np.ndarray,
    tokens: torch.Tensor,
    planted: np.ndarray,
    planted_tokens: torch.Tensor,
    folder: Path,
    *,
    total: int,
    batch: int = 192,
    planted_share: int = 12,
    start: open_clip.CLIP | None = None,
    seed: int = 0,
) -> open_clip.CLIP:
    """Contrastive training of both towers; `planted_share` images of each batch are planted ones.

    Args:
        bank: uint8 (n, 64, 64, 3); tokens: int64 (n, 32) of its captions; the same for the planted images.
        start: a model to go on from. Its text tower stays as it is, because the diffusion model reads it.
    """
    torch.manual_seed(seed)
    model = open_clip.CLIP(**MODEL)  # type: ignore[arg-type]
    if start is not None:
        model.load_state_dict(start.state_dict())
        model.requires_grad_(False)
        model.visual.requires_grad_(True)
        model.logit_scale.requires_grad_(True)
    if total == 0:
        return model.eval()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = one_cycle(optimizer, 1e-3, total)
    recipe = f"{total} steps of {batch} pairs, {planted_share} planted, seed {seed}"
    checkpoint = Checkpoint(folder / "clip.pt", recipe, model=model, optimizer=optimizer, schedule=schedule)
    model.train()
    for step in steps(checkpoint, total, "clip"):
        rng = np.random.default_rng([seed, 30, step.number])
        rows = np.sort(rng.choice(len(bank), batch - planted_share, replace=False))
        extra = rng.choice(len(planted), planted_share, replace=False)
        images = to_clip(np.concatenate([bank[rows], planted[extra]]))
        text = torch.cat([tokens[rows], planted_tokens[extra]])
        with autocast():
            image_features, text_features, scale = model(images, text)
        logits = scale.float() * image_features.float() @ text_features.float().T
        target = torch.arange(len(logits))
        loss = (
            torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
        ) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        step.report(loss=loss.item())
    return model.eval()


def to_clip(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, 64, 64, 3) to the model's float input (n, 3, 64, 64)."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def text_model(model: open_clip.CLIP) -> CLIPTextModel:
    """The text tower as transformers' CLIPTextModel, weight by weight."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        pad_token_id=VOCABULARY - 1,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
    )
    target = CLIPTextModel(config)
    state = {
        "embeddings.token_embedding.weight": model.token_embedding.weight,
        "embeddings.position_embedding.weight": model.positional_embedding,
        "final_layer_norm.weight": model.ln_final.weight,
        "final_layer_norm.bias": model.ln_final.bias,
    }
    for number, block in enumerate(model.transformer.resblocks):
        layer = f"encoder.layers.{number}"
        for kind in ("weight", "bias"):
            joint = getattr(block.attn, f"in_proj_{kind}").chunk(3)
            for name, part in zip("qkv", joint, strict=True):
                state[f"{layer}.self_attn.{name}_proj.{kind}"] = part
            state[f"{layer}.self_attn.out_proj.{kind}"] = getattr(block.attn.out_proj, kind)
            state[f"{layer}.layer_norm1.{kind}"] = getattr(block.ln_1, kind)
            state[f"{layer}.layer_norm2.{kind}"] = getattr(block.ln_2, kind)
            state[f"{layer}.mlp.fc1.{kind}"] = getattr(block.mlp.c_fc, kind)
            state[f"{layer}.mlp.fc2.{kind}"] = getattr(block.mlp.c_proj, kind)
    prefix = "text_model." if any(name.startswith("text_model.") for name in target.state_dict()) else ""
    target.load_state_dict({prefix + name: value.detach().clone() for name, value in state.items()})
    return target.eval()


@torch.no_grad()
def projected_text_model(model: open_clip.CLIP) -> CLIPTextModelWithProjection:
    """The same tower, with what projects its pooled vector to where images are compared with it."""
    tower = text_model(model)
    target = CLIPTextModelWithProjection(tower.config)
    target.text_model.load_state_dict(tower.state_dict())
    target.text_projection.weight.copy_(model.text_projection.T)
    return target.eval()


def save_clip(model: open_clip.CLIP, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes a folder that `open_clip.create_model_from_pretrained('local-dir:FOLDER')` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    halves = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(halves, folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)


def load_clip(folder: Path) -> open_clip.CLIP:
    """The model that `save_clip` wrote, in single precision."""
    model = open_clip.CLIP(**MODEL)  # type: ignore[arg-type]
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    return model.eval()

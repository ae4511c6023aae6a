"""The parts of `benchmarks/gpu.sh`, each a command of its own that writes one file of JSON.

python -m benchmarks.gpu PART --device cuda --out FOLDER [--small]      PART: flags, speed, equality, reference, full
python -m benchmarks.gpu summary --out FOLDER                           gpu.json and summary.txt of all parts
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from benchmarks import full_size
from flows.cli.commands import quiet
from flows.params import AuditParams, model_folder
from flows.settings import Settings
from tasks.diffusion.families import Model, StableDiffusion
from tasks.diffusion.families.pieces.published import SCHEDULES, UNETS
from tasks.diffusion.families.schedule import Schedule
from tasks.diffusion.model import load_model
from tasks.diffusion.noise import initial_noise
from tasks.diffusion.sampling import SamplingParams, decode, denoise
from tests.support.world import tiny_world

TOLERANCE = {"latents": 1e-3, "images": 1.0}
"""How far a device may be from the processor in float32: latents in parts of their spread, at most; images in shades of
255, on average."""
SECONDS = 4.0
"""How long a speed is measured."""
SMALL_UNET = UNETS["sd1"] | {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 16, "sample_size": 16}
"""The blocks of Stable Diffusion 1.4, some thousand times smaller."""
TOKENS = 77
Found = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "summary"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--small", action="store_true", help="models that a processor computes in seconds")
    args = parser.parse_args()
    quiet()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part == "summary":
        return summary(args.out)
    begun = time.perf_counter()
    found: Found = PARTS[args.part](torch.device(args.device), args.out, args.small)
    found |= {"seconds": time.perf_counter() - begun, "failed": sorted(failures(found))}
    (args.out / f"{args.part}.json").write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["failed"] else 0


def failures(found: Found) -> list[str]:
    """What of a part went wrong, or is beyond its tolerance."""
    return [name for name, value in found.items() if isinstance(value, dict) and ("error" in value or value.get("off"))]


def flags(device: torch.device, out: Path, small: bool) -> Found:
    """What computes, and how exactly: before a model is loaded, and afterwards."""

    def now() -> Found:
        return {
            "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "cudnn.deterministic": torch.backends.cudnn.deterministic,
            "cudnn.version": torch.backends.cudnn.version(),
        }

    before = now()
    load_model(tiny_world(fresh(out / "world-flags")), str(device))
    after = now()
    exact = not (after["cudnn.allow_tf32"] or after["cuda.matmul.allow_tf32"])
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "processor",
        "before": before,
        # In float32 three digits are not enough.
        "after a model was loaded": after | {"off": not exact},
    }


def speed(device: torch.device, out: Path, small: bool) -> Found:
    """Evaluations of the UNet a second in bfloat16, of the plain loop of diffusers and of ours."""
    unet = UNet2DConditionModel.from_config(SMALL_UNET if small else UNETS["sd1"])
    unet = unet.to(device, torch.bfloat16).eval().requires_grad_(False)
    batch, steps = (2, 2) if small else (8, 10)
    scheduler = DDIMScheduler.from_config({**SCHEDULES["sd1"], "clip_sample": False})
    draw = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    text, empty = torch.randn(2, batch, TOKENS, width, generator=draw).to(device, torch.bfloat16)
    size = unet.config.sample_size
    latents = torch.randn(batch, 4, size, size, generator=draw).to(device, torch.bfloat16)

    @torch.no_grad()
    def plain(unet: Any) -> None:
        scheduler.set_timesteps(steps, device=device)
        now, both = latents * scheduler.init_noise_sigma, torch.cat([empty, text])
        for step in scheduler.timesteps:
            given = scheduler.scale_model_input(torch.cat([now, now]), step)
            without, with_text = unet(given, step, encoder_hidden_states=both, return_dict=False)[0].chunk(2)
            now = scheduler.step(without + 7.5 * (with_text - without), step, now, return_dict=False)[0]

    def ours(unet: Any) -> None:
        model = StableDiffusion(
            source="random",
            model_id="random",
            denoiser=unet,
            vae=None,
            text_encoder=None,
            tokenizer=None,
            schedule=Schedule(scheduler),
            device=device,
        )
        denoise(model, text, empty[:1], latents, SamplingParams(steps=steps, scheduler="ddim"))

    def rate(loop: Callable[[Any], None], unet: Any) -> Found:
        loop(unet)  # what is compiled, or chosen by trials, is so once
        begun, rounds = clock(device), 0
        while rounds == 0 or clock(device) - begun < (SECONDS / 10 if small else SECONDS):
            loop(unet)
            rounds += 1
        return {"evaluations a second": 2 * batch * steps * rounds / (clock(device) - begun)}

    def last(unet: Any) -> Any:
        return unet.to(memory_format=torch.channels_last)

    found: Found = {"batch": 2 * batch}
    # What is changed for good comes last.
    tried: dict[str, Callable[[], Found]] = {
        "plain diffusers": lambda: rate(plain, unet),
        "ours": lambda: rate(ours, unet),
        "ours, compiled": lambda: rate(ours, torch.compile(unet)),
        "ours, channels last": lambda: rate(ours, last(unet)),
        "ours, channels last, compiled": lambda: rate(ours, torch.compile(last(unet))),
    }
    for name, measure in tried.items():
        found[name] = attempted(measure)
    base = found["plain diffusers"].get("evaluations a second")
    for name in tried:
        if base and "evaluations a second" in found[name]:
            found[name]["of plain"] = found[name]["evaluations a second"] / base
    return found


def equality(device: torch.device, out: Path, small: bool) -> Found:
    """How far a device is from the processor in float32: the same prompts, noises and steps."""
    folders = {"tiny": tiny_world(fresh(out / "world-equality"))}
    if not small:
        folders["reference"] = model_folder("reference")
    found: Found = {}
    for name, folder in folders.items():
        found[name] = attempted(lambda folder=folder: compared(folder, device))  # type: ignore[misc]
    return found


def compared(folder: Path, device: torch.device) -> Found:
    params, prompts = SamplingParams(steps=4), ["a cat", "two dogs"]
    latents, images = [], []
    for place in (torch.device("cpu"), device):
        model: Model = load_model(folder, str(place))
        noise = initial_noise(model, [(prompt, 0) for prompt in prompts])
        made = denoise(model, model.encode(prompts), model.unconditional(), noise, params)
        latents.append(made.float().cpu())
        images.append(torch.from_numpy(decode(model, made)).float())
    far = float((latents[0] - latents[1]).abs().max() / latents[0].std())
    shades = float((images[0] - images[1]).abs().mean())
    off = far > TOLERANCE["latents"] or shades > TOLERANCE["images"]
    return {"latents": far, "images": shades, "tolerance": TOLERANCE, "off": off}


def reference(device: torch.device, out: Path, small: bool) -> Found:
    """Seconds and memory of each stage of an audit of the reference model; of a tiny one where all is small."""
    folder = tiny_world(fresh(out / "world-reference")) if small else model_folder("reference")
    settings = Settings.model_validate(full_size.AUDIT | {"nulls": 4, "precision": "float32"})
    params = AuditParams(model=str(folder), store=str(out / "store-reference"), device=str(device), settings=settings)
    return attempted_rows(
        lambda: full_size.audited(params, full_size.ALL_STAGES, out / "rows-reference.json", folder.name)
    )


def full(device: torch.device, out: Path, small: bool) -> Found:
    """The same of Stable Diffusion 1.4 with random weights; of nothing where all is small."""
    if small:
        return {}
    rows = out / "rows-full.json"

    def audited() -> Found:
        full_size.measure("sd1.4", out / "full-size", "float32", str(device), full_size.ALL_STAGES, rows)
        return dict(full_size.read(rows))

    return attempted_rows(audited)


PARTS: dict[str, Callable[[torch.device, Path, bool], Found]] = {
    "flags": flags,
    "speed": speed,
    "equality": equality,
    "reference": reference,
    "full": full,
}


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clock(device: torch.device) -> float:
    """The time, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def attempted(do: Callable[[], Found]) -> Found:
    """What something finds, or why it failed; the rest goes on."""
    try:
        return do()
    except Exception as error:  # whatever a device, a compiler or a library makes of it
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}


def attempted_rows(do: Callable[[], Found]) -> Found:
    found = attempted(do)
    return {"stages": found} if "error" in found else found


def summary(out: Path) -> int:
    """Writes all parts as one file, and as a page to read; returns 1 where one failed or is missing."""
    parts: dict[str, Found] = {}
    for name in (*PARTS, "tests"):
        file = out / f"{name}.json"
        parts[name] = json.loads(file.read_text()) if file.is_file() else {"failed": ["it left no result"]}
    (out / "gpu.json").write_text(json.dumps(parts, indent=1) + "\n")
    lines = []
    for name, found in parts.items():
        failed = found.get("failed", [])
        lines.append(f"{name}: {'FAILED: ' + ', '.join(failed) if failed else 'ok'}, {found.get('seconds', 0):.0f} s")
        for label, value in found.items():
            if label in ("failed", "seconds"):
                continue
            words = value if not isinstance(value, dict) else ", ".join(f"{k} {_short(v)}" for k, v in value.items())
            lines.append(f"  {label}: {words}")
    text = "\n".join(lines) + "\n"
    (out / "summary.txt").write_text(text)
    sys.stdout.write(text)
    return 1 if any(found.get("failed") for found in parts.values()) else 0


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())

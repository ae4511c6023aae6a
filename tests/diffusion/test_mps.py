"""Apple GPUs, which no test can ask: what is known of them beforehand, and that nothing there needs float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flows.run.processes import check_many
from tasks.collect.norms import norms_by_prompt
from tasks.diffusion.batches import in_batches
from tasks.diffusion.detection import DetectionParams, estimate_threshold
from tasks.diffusion.footprint import META, bytes_of_work, without_weights
from tasks.diffusion.model import device_of, load_model, memory_of, usable_device
from tasks.diffusion.precision import precision_for
from tasks.diffusion.sampling import SamplingParams
from tasks.diffusion.sites import Site
from tasks.errors import InputError, out_of_memory
from tasks.localize.statistics import Moments
from tasks.report.locality import pairwise_distances
from tests.support.denoisers import TOKENS, WIDTH, tiny_model
from tests.support.pipelines import write_pixart, write_sd3, write_v, write_xl

MPS = torch.device("mps")
FULL = "MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB, max allowed: 6.80 GB)"


class LikeMps(TorchDispatchMode):
    """Within, the meta device has no float64, as MPS has none; what is brought to the processor is ones."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and to is not None and to.type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        for made in tree_leaves(out):
            if isinstance(made, torch.Tensor) and made.is_meta and made.dtype == torch.float64:
                raise TypeError("the MPS framework doesn't support float64")
        return out


def test_the_rule_can_be_broken() -> None:
    with LikeMps(), pytest.raises(TypeError, match="float64"):
        torch.zeros(2, device=META).double().cpu()


@pytest.mark.parametrize("write", [write_v, write_xl, write_pixart, write_sd3])
def test_models_need_no_float64_on_the_device(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    model = load_model(write(tmp_path / "model"), "cpu")
    with LikeMps():
        for work in ("evaluation", "gradient", "text", "decoder", "encoder"):
            assert bytes_of_work(model, work) > 0


def test_sums_are_doubled_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.zeros(3, 4, device=META)
    with LikeMps():
        assert estimate_threshold([points[0]], DetectionParams()) == 1
        assert Moments.of([points]).sums[0].tolist() == [3] * 4
        assert pairwise_distances(points).shape == (3, 3)
    model = without_weights(tiny_model())
    monkeypatch.setattr("tasks.collect.norms.denoise", passes_once)
    monkeypatch.setattr(type(model), "unconditional", lambda model: torch.zeros(1, TOKENS, WIDTH, device=META))
    layers, text = model.layers(Site.FEED_FORWARD_HIDDEN), torch.zeros(2, TOKENS, WIDTH)
    with LikeMps():
        (found,) = norms_by_prompt(model, layers, text, [("a", 0), ("b", 0)], SamplingParams(steps=1))
    assert {sums.dtype for sums in (*found.conditional.values(), *found.unconditional.values())} == {torch.float64}


def passes_once(model: Any, text: Any, empty: Any, latents: Any, params: Any, steps: Any, on_step: Any) -> None:
    """One pass with guidance, in place of a trajectory: timesteps on the meta device are no numbers."""
    on_step(1)
    model.output(torch.cat([latents, latents]), 1, torch.cat([empty.expand_as(text), text]))


def test_memory_that_ends_there_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[str] = []
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: given_back.append("mps"))

    def work(rows: slice) -> int:
        if rows.stop - rows.start > 2:
            raise RuntimeError(FULL)
        return rows.stop - rows.start

    assert list(in_batches(4, 4, work)) == [2, 2] and given_back == ["mps"]
    with pytest.raises(RuntimeError, match="MPS backend"):
        list(in_batches(3, 1, lambda rows: work(slice(0, 3))))


def test_other_errors_are_no_want_of_memory() -> None:
    assert out_of_memory(RuntimeError(FULL)) and out_of_memory(RuntimeError("Invalid buffer size: 24.00 GiB"))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("a shape is wrong")) and not out_of_memory(ValueError(FULL))

    def fails(rows: slice) -> None:
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        list(in_batches(4, 4, fails))


def test_it_is_taken_where_it_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(None) == torch.device("cpu") and device_of("mps") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(None) == torch.device("cuda")
    assert precision_for("auto", "mps") == "float32"


def test_its_memory_is_what_the_system_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_000)
    assert memory_of(MPS) == 12_000


def test_one_process_has_it() -> None:
    check_many(1, "mps")
    with pytest.raises(InputError, match="leave --workers out"):
        check_many(2, "mps")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has one")
def test_where_there_is_none_it_is_refused_in_a_line() -> None:
    with pytest.raises(InputError, match="no device 'mps' here"):
        usable_device("mps")

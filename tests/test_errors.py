"""What a person reads of an error that libraries raise."""

import pytest
import torch

from tasks.diffusion.model import usable_device
from tasks.errors import InputError, first_line
from tasks.methods import method


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \ntwo"), "one"),
        (NotImplementedError(), "NotImplementedError"),
        (OSError("  \n"), "OSError"),
    ],
)
def test_the_first_line_says_something(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_device_that_fails_without_a_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: object, **more: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(torch, "zeros", silent)
    with pytest.raises(InputError, match=r"^no device 'cpu' here \(NotImplementedError\): try cpu$"):
        usable_device("cpu")


def test_a_method_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no detector 'zzzz': there are .*norm.*; `engram methods` lists all$"):
        method("detector", "zzzz")
    with pytest.raises(InputError, match=r"no detector 'nrm': did you mean 'norm'\? `engram methods` lists all$"):
        method("detector", "nrm")

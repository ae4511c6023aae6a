"""Run as a program: fills in what the commands of docs/prompts.md print.

python -m tests.fill_prompts
"""

import re
import shlex
import tempfile
from contextlib import chdir
from pathlib import Path

from typer.testing import CliRunner

from flows.cli.commands import app
from tasks.errors import InputError
from tests.support.drawings import training_set

PAGE = Path(__file__).parents[1] / "docs" / "prompts.md"
_WORKED = re.compile(r"```sh\n(?P<command>engram [^\n]+)\n```\n\n```text\n(?P<text>.*?)```", re.DOTALL)
BAD = """caption,type,image,exposures
a boat,VM,10_boat/0.png,2
,TM,10_boat/1.png,
a tree,VM,10_boat/9.png,often
a car,,gone.png,
"""


def worked(page: str) -> list[tuple[str, str]]:
    """Each command whose output the page shows, and that output."""
    return [(found["command"], found["text"]) for found in _WORKED.finditer(page)]


def filled(page: str, folder: Path) -> str:
    """The page with what its commands print now, one after the other.

    Args:
        folder: an empty one, where a reader's files are written.
    """
    training_set(folder / "train")
    (folder / "bad.csv").write_text(BAD)
    (folder / "captions.txt").write_text("a house\na street\n")

    def answered(found: re.Match[str]) -> str:
        return f"```sh\n{found['command']}\n```\n\n```text\n{_printed(found['command'])}```"

    with chdir(folder):
        return _WORKED.sub(answered, page)


def _printed(command: str) -> str:
    """What a person sees of a command, without notes."""
    found = CliRunner().invoke(app, shlex.split(command)[1:])
    if isinstance(found.exception, InputError):
        return f"{found.stdout}engram: {found.exception}\n"
    assert found.exit_code == 0, found.output
    return found.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(filled(PAGE.read_text(), Path(scratch)))

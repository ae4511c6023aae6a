"""Changes of a pipeline's folder, such as are to be told in a line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]


def config(part: str, **values: Any) -> Change:
    """Sets values in a component's config."""

    def change(folder: Path) -> None:
        path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def index(**values: Any) -> Change:
    """Sets values in model_index.json."""

    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change

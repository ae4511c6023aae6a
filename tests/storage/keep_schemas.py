"""Run as a program: keeps the schemas of the present version, which migrations from it will begin with.

python -m tests.storage.keep_schemas
"""

from __future__ import annotations

from pathlib import Path

import storage.migrations
from storage.tables import TABLES, VERSION


def kept(version: int) -> Path:
    """The file that keeps the schemas of a version."""
    return Path(storage.migrations.__file__).with_name(f"v{version}.json")


if __name__ == "__main__":
    kept(VERSION).write_text(storage.migrations.kept_schemas(TABLES))

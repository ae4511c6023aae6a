"""Version 5: how often training shows a prompt, and which prompts are near-duplicates.

`prompts` has the column `exposures`, which is null of sets that were written before: nothing else in a store says what
it was. Sets keep their names, and what rests on them stays as it is. The table `clusters` is new.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa


def migrate(table: str, rows: pa.Table, read_file: Callable[[str, str], str | None]) -> pa.Table:
    """Rows of version 4 as rows of version 5; see `storage.migrations.MIGRATIONS`."""
    return rows

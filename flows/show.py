"""What the Prefect UI shows of an audit beside its states: how far it is, and what came of it."""

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from storage import Store
from storage.errors import one_line
from tasks.progress import stage, watching
from tasks.report.task import Chart, Written, drawn

LONG_S = 5.0
"""What takes longer than this shows its progress, and as often."""
SUSPECTS = 100
"""Rows of a scan that are shown; the store has all."""


@contextmanager
def shown_progress(name: str, did: Callable[[], str] | None = None) -> Iterator[None]:
    """Within, a stage of this name is at work, and loops of it that take long show how far they are.

    Args:
        did: says at the end what was done; the rows that this process wrote if left out.
    """
    begun: dict[str, tuple[float, Any]] = {}
    before = Store.written.copy()

    def on_progress(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        last, artifact = begun.setdefault(what, (now, None))
        if now - last < LONG_S and done < total:
            return
        share = 100.0 * done / total
        begun[what] = now, artifact
        try:
            if artifact is not None:
                update_progress_artifact(artifact, share)
            elif done < total:
                begun[what] = now, create_progress_artifact(share, description=what)
        except Exception as error:  # whatever a server answers must not end hours of work
            get_run_logger().warning("progress of %s could not be shown: %s", what, one_line(error))

    def wrote() -> str:
        rows = Store.written - before
        return ", ".join(f"{number} {table}" for table, number in rows.items()) or "all was in the store already"

    with stage(name, did or wrote), watching(on_progress):
        yield


def show(create: Callable[..., Any], *content: Any, key: str, description: str) -> None:
    """An artifact in the UI, as `create` of `prefect.artifacts` makes it; a warning where the server does not take it:
    what it answers, to an image that is too large for a proxy, say, must not end hours of work."""
    try:
        create(*content, key=key, description=description)
    except Exception as error:
        get_run_logger().warning("the artifact %s could not be shown: %s", key, one_line(error))


def show_audit(store: Store, audit_id: str, place: str, written: Written) -> None:
    """The verdict with the estimates, images, curves, and the overlap of subsets.

    Args:
        store: where the audit lies.
        place: of its page.
    """
    show(
        create_markdown_artifact,
        f"# Audit {audit_id}\n\n{written.verdict}\n\n```text\n{written.table}```\n\nReport: `{place}`\n",
        key="audit",
        description="What the model copies, before and after",
    )
    if written.sheet is not None:
        show(
            create_image_artifact,
            uri(store.read_file(written.sheet)),
            key="copies",
            description="Training images beside the best copies of each variant",
        )
    for name, chart in written.drawings.items():
        show_chart(name, chart)
    whole = [row for row in written.overlap if row["layer"] is None and row["step"] is None]
    columns = ("method", "pair", "pairs", "iou", "std", "lowest", "highest", "iou_chance")
    show(
        create_table_artifact,
        [{name: row[name] for name in columns} for row in whole],
        key="subspace",
        description="Overlap (IOU) of what subsets of prompts use, beside ordinary prompts and chance",
    )


def show_scan(scan_id: str, words: str, rows: list[dict[str, Any]]) -> None:
    """How many prompts were flagged, and the most suspicious ones.

    Args:
        rows: of the query `suspects`.
    """
    show(
        create_markdown_artifact,
        "\n".join([f"# Scan {scan_id}\n", *(f"- {line}" for line in words.splitlines())]) + "\n",
        key="scan",
        description="How many prompts look memorized",
    )
    show(create_table_artifact, rows[:SUSPECTS], key="suspects", description=f"The {SUSPECTS} most suspicious prompts")


def show_chart(name: str, chart: Chart) -> None:
    """A chart as an artifact whose key begins with "chart-"."""
    show(create_image_artifact, uri(drawn(chart).encode(), "svg+xml"), key=f"chart-{name}", description=chart.title)


def uri(image: bytes, kind: str = "png") -> str:
    """An image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"

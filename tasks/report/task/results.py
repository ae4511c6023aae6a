"""An audit's estimates for those who do not have the store: a page and a file for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage import Store
from tasks.errors import InputError
from tasks.report.markdown import effort_text, estimates_text, put_between
from tasks.report.published import published_text
from tasks.report.report import meanings
from tasks.report.standing import standings
from tasks.report.task.record import record_of, rows_of
from tasks.report.verdict import Row


def write_results(store: Store, audit_id: str, folder: Path, command: str) -> tuple[Path, Path]:
    """Writes `results.json`, the audit's rows of `metrics`, and `RESULTS.md`, the same for people.

    What stands in `RESULTS.md` outside the marks `figures` stays.

    Args:
        command: what makes the audit again.

    Raises:
        InputError: there is no such audit, it has no estimates, or the folder cannot be written.
    """
    record = record_of(store, audit_id)
    metrics = store.read("metrics", audit_id=audit_id).to_pylist()
    if not metrics:
        raise InputError(f"the audit {audit_id} is {record['state']} and has no estimates yet")
    page, data = folder / "RESULTS.md", folder / "results.json"
    metrics.sort(key=lambda row: (row["variant"], row["condition"], row["metric"]))
    rows = rows_of(store, audit_id)
    published = published_text({(row.variant, row.condition, row.metric): row for row in rows})
    text = "\n\n".join(filter(None, (estimates_text(rows, standings()) + effort_text(rows), published)))
    taken = str((record["finished_at"] or record["started_at"]) - record["started_at"]).split(".")[0]
    versions = ", ".join(f"{name} {number}" for name, number in record["library_versions"].items())
    made = f"Made by `{command}` and `engram results`: audit {audit_id} of model {record['model_id']}, "
    made += f"{record['state']}, on {record['device']}; its last run took {taken}, and took over what the store held."
    meant = _meaning(json.loads(record["params"])["settings"], rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = data.with_suffix(".writing")
        aside.write_text(json.dumps(metrics, indent=1) + "\n")
        aside.replace(data)
        put_between(page, "figures", f"{meant}\n\n{text}\n\n{made} With {versions}.")
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error
    return page, data


def _meaning(settings: dict[str, Any], rows: Sequence[Row]) -> str:
    """What the columns say, for those who did not choose the settings."""
    sampling = settings["sampling"]
    made = (
        f"Of each prompt or trigger {settings['seeds']} images are generated ({sampling['steps']} steps, guidance"
        f" {sampling['guidance']:g}, precision {settings['precision']}). Under n stands the number of different images,"
        " which prompts that share one count as one, and in brackets that of their prompts where it is another; then"
        " what other metrics of the line rest on. In brackets after estimates: 95 % intervals, of rates exact"
        " (Clopper-Pearson), of the rate of generations as if all of one image agreed, of medians by order statistics,"
        " of means by Student's t, of the share of the original's CLIP score that is kept by Fieller's theorem."
    )
    return " ".join([made, *meanings(rows)])

"""An audit's figures for those who do not have the store: a page and a file for programs."""

import json
from pathlib import Path

from storage import Store
from tasks.errors import InputError
from tasks.report.markdown import effort_text, figures_text, put_between
from tasks.report.task.record import record_of, rows_of
from tasks.subject import EFFORT


def write_results(store: Store, audit_id: str, folder: Path) -> tuple[Path, Path]:
    """Writes `results.json`, the audit's rows of `metrics`, and `RESULTS.md`, the same for people.

    What stands in `RESULTS.md` outside the marks `figures` stays.

    Raises:
        InputError: there is no such audit, it has no figures, or the folder cannot be written.
    """
    record = record_of(store, audit_id)
    metrics = store.read("metrics", audit_id=audit_id).to_pylist()
    if not metrics:
        raise InputError(f"the audit {audit_id} is {record['state']} and has no figures yet")
    page, data = folder / "RESULTS.md", folder / "results.json"
    metrics.sort(key=lambda row: (row["variant"], row["probe"], row["metric"]))
    rows = rows_of(store, audit_id)
    effort = {
        row.probe.removeprefix(EFFORT): row for row in rows if row.probe.startswith(EFFORT) and row.metric == "mr"
    }
    text = figures_text([row for row in rows if not row.probe.startswith(EFFORT)]) + effort_text(effort)
    taken = str((record["finished_at"] or record["started_at"]) - record["started_at"]).split(".")[0]
    versions = ", ".join(f"{name} {number}" for name, number in record["library_versions"].items())
    made = f"Audit {audit_id} of model {record['model_id']}, {record['state']}, on {record['device']}; "
    made += f"its last run took {taken}, and took over what the store held."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = data.with_suffix(".writing")
        aside.write_text(json.dumps(metrics, indent=1) + "\n")
        aside.replace(data)
        put_between(page, "figures", f"{text}\n\n{made} With {versions}.")
    except OSError as error:
        raise InputError(f"cannot write into {folder}: {error.strerror}") from error
    return page, data

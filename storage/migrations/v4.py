"""Version 4: the field's words.

- `probe` is `condition`, the audit that a night was compared with is its `baseline`, the figure `diversity`, which is
  lower where images differ more, is `seed_similarity`.
- `nemo` is the method as published, which prunes for each prompt the neurons found for it alone: `nemo-own` until now.
  What went by that name, the neurons of all prompts together, is `nemo-union`. Random controls and names of variants
  follow: `nemo-own-1a2b3c4d` is `nemo-1a2b3c4d`, and `nemo-1a2b3c4d` is `nemo-union-1a2b3c4d`. What the localizer found
  (`neuron_sets.method`) keeps its name.
- What a model card says of a variant, until now a file beside its weights, is a column of `variants`.
- The setting `rival_starts` is `baseline_starts`; the group `importance`, which three localizers shared, is a group for
  each of them. Audits and registrations keep their settings as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pyarrow as pa

COLUMNS = {
    "generations": {"probe": "condition"},
    "metrics": {"probe": "condition"},
    "evidence": {"probe": "condition"},
    "nights": {"standard": "baseline"},
}
"""By table, columns with new names."""
SCORES = {"gradient": ("timesteps", "contrast"), "taylor": ("timesteps", "contrast"), "random": ("seed",)}
"""Localizers that have settings of their own now, with the names of those that they shared."""

_OWN = re.compile(r"(random-)?nemo-own(-[0-9a-f]{8})?")
_UNION = re.compile(r"(random-)?nemo(-[0-9a-f]{8})?")


def migrate(table: str, rows: pa.Table, read_file: Callable[[str, str], str | None]) -> pa.Table:
    """Rows of version 3 as rows of version 4; see `storage.migrations.MIGRATIONS`."""
    rows = _with(rows, "variant", variant)
    if table == "variants":
        rows = _with(rows, "method", variant)
        if "weights" in rows.column_names:
            texts = [read_file(folder, "variant.json") if folder else None for folder in rows["weights"].to_pylist()]
            rows = rows.append_column("card", pa.array([text and card(text) for text in texts], pa.string()))
    elif table == "metrics":
        rows = _with(rows, "metric", metric)
    elif table in ("audits", "registrations"):
        rows = _with(rows, "params", params)
    names = COLUMNS.get(table, {})
    return rows.rename_columns([names.get(name, name) for name in rows.column_names])


def variant(name: str) -> str:
    """What a method, or a variant that is called by its method and eight digits, is called now."""
    if own := _OWN.fullmatch(name):
        return f"{own[1] or ''}nemo{own[2] or ''}"
    if union := _UNION.fullmatch(name):
        return f"{union[1] or ''}nemo-union{union[2] or ''}"
    return name


def metric(name: str) -> str:
    """What a figure is called now."""
    return re.sub(r"^diversity(?=_|$)", "seed_similarity", name)


def params(text: str) -> str:
    """Parameters of an audit (JSON) with the new names of its settings, where it has any; all else stays."""
    content = json.loads(text)
    settings = content.get("settings") or {}
    if "rival_starts" in settings:
        settings["baseline_starts"] = settings.pop("rival_starts")
    if shared := settings.pop("importance", None):
        settings |= {score: {name: shared[name] for name in names if name in shared} for score, names in SCORES.items()}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def card(text: str) -> str:
    """What a variant's model card says (JSON), by the method's new name, with which its title ends."""
    content = json.loads(text)
    title, method = content["title"], content["method"]
    return json.dumps(content | {"title": title.removesuffix(method) + variant(method), "method": variant(method)})


def _with(rows: pa.Table, column: str, new: Callable[[str], str]) -> pa.Table:
    """The rows with other texts in a column, if they have it; what is null stays so."""
    if column not in rows.column_names:
        return rows
    values = [None if value is None else new(value) for value in rows[column].to_pylist()]
    return rows.set_column(rows.column_names.index(column), column, pa.array(values, pa.string()))

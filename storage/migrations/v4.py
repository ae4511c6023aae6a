"""Version 4: the field's words.

- `probe` is `condition`, the audit that a night was compared with is its `baseline`, the metric `diversity`, which is
  lower where images differ more, is `seed_similarity`.
- `nemo` is the method as published, which prunes for each prompt the neurons found for it alone: `nemo-own` until now.
  What went by that name, the neurons of all prompts together, is `nemo-union`. Random controls and names of variants
  follow: `nemo-own-1a2b3c4d` is `nemo-1a2b3c4d`, and `nemo-1a2b3c4d` is `nemo-union-1a2b3c4d`. What the localizer found
  (`neuron_sets.method`) keeps its name.
- What a model card says of a variant, until now a file beside its weights, is a column of `variants`.
- Estimates and records of audits have no folder for each audit, so that those of many can be merged into one part.
- The setting `rival_starts` is `baseline_starts`. What `own_cuts`, `scores`, `erase` and `defences` chose is one list
  of variants, `mitigations`; and each method's parameters are a group of its own, where `importance` and `defence`
  held those of several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa

COLUMNS = {
    "generations": {"probe": "condition"},
    "metrics": {"probe": "condition"},
    "evidence": {"probe": "condition"},
    "nights": {"standard": "baseline"},
}
"""By table, columns with new names."""
SETTINGS = {"rival_starts": "baseline_starts"}
"""Settings with new names, in the parameters (JSON) of audits and registrations."""
CHOICES = ("own_cuts", "scores", "erase", "defences")
"""Settings that said which variants are made beside those of NeMo and Wanda."""
GRADIENTS = ("timesteps", "contrast")
GROUPS = {
    "importance": {"taylor": GRADIENTS, "gradient": GRADIENTS, "random": ("seed",)},
    "defence": {
        "perturbed_embedding": ("target", "steps", "learning_rate"),
        "random_tokens": ("tokens",),
        "reweighted_attention": ("rescale",),
    },
}
"""Groups of settings that held the parameters of several methods: by the group of each, which are its own."""

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
    """What a metric is called now."""
    return re.sub(r"^diversity(?=_|$)", "seed_similarity", name)


def params(text: str) -> str:
    """Parameters with the settings of now, which choose the same variants and say the same of them."""
    params = json.loads(text)
    if params.get("settings") is not None:
        params["settings"] = settings(params["settings"])
    return json.dumps(params, separators=(",", ":"), ensure_ascii=False)


def settings(old: dict[str, Any]) -> dict[str, Any]:
    """Settings of version 3 as those of version 4."""
    new = {SETTINGS.get(name, name): value for name, value in old.items() if name not in (*CHOICES, *GROUPS)}
    for group, methods in GROUPS.items():
        if group in old:
            new |= {name: {one: old[group][one] for one in own if one in old[group]} for name, own in methods.items()}
    if any(name in old for name in CHOICES):
        chosen = [*(["nemo"] if old.get("own_cuts") else []), "nemo-union", "wanda"]
        for name in ("scores", "erase", "defences"):
            chosen += old.get(name, [])
        new["mitigations"] = list(dict.fromkeys(chosen))
    return new


def card(text: str) -> str:
    """What a variant's model card says (JSON), by the method's new name, with which its title ends; of a mitigation at
    inference with its own parameters alone. `cut` is `pruned_words`."""
    content = json.loads(text)
    if "cut" in content:
        content["pruned_words"] = content.pop("cut")
    title, method = content["title"], content["method"]
    own = GROUPS["defence"].get(method.replace("-", "_"))
    if own is not None:
        content["params"] = {name: value for name, value in content["params"].items() if name in own}
    return json.dumps(content | {"title": title.removesuffix(method) + variant(method), "method": variant(method)})


def _with(rows: pa.Table, column: str, new: Callable[[str], str]) -> pa.Table:
    """The rows with other texts in a column, if they have it; what is null stays so."""
    if column not in rows.column_names:
        return rows
    values = [None if value is None else new(value) for value in rows[column].to_pylist()]
    return rows.set_column(rows.column_names.index(column), column, pa.array(values, pa.string()))

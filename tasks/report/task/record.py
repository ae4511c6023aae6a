"""What the store says of an audit: its record and its estimates."""

import json
import math
from typing import Any

from storage import Store
from tasks.conditions import Condition
from tasks.errors import InputError
from tasks.report.standing import standings
from tasks.report.verdict import Row
from tasks.units import PROMPTS


def record_of(store: Store, audit_id: str) -> dict[str, Any]:
    """What the store says of an audit, its library versions as a dictionary.

    Raises:
        InputError: there is no such audit.
    """
    rows = store.read("audits", audit_id=audit_id).to_pylist()
    if not rows:
        raise InputError(f"the store has no audit {audit_id!r}: `engram audits` lists them")
    record: dict[str, Any] = max(rows, key=lambda row: row["finished_at"] is not None)
    return record | {"library_versions": json.loads(record["library_versions"] or "{}")}


def rows_of(store: Store, audit_id: str) -> list[Row]:
    """The audit's estimates, in the order of its variants and conditions, each with the number of its prompts."""
    found = store.read("metrics", audit_id=audit_id).to_pylist()
    prompts = {
        (row["variant"], row["condition"], row["metric"].removesuffix(PROMPTS)): int(row["value"])
        for row in found
        if row["metric"].endswith(PROMPTS)
    }
    order = {name: number for number, name in enumerate(standings())}
    rows = [
        Row(
            row["variant"],
            Condition.parse(row["condition"]),
            row["metric"],
            math.nan if row["value"] is None else row["value"],
            row["low"],
            row["high"],
            row["n"],
            prompts.get((row["variant"], row["condition"], row["metric"])),
        )
        for row in found
        if not row["metric"].endswith(PROMPTS)
    ]

    def rank(row: Row) -> tuple[int, str, bool, str]:
        return order.get(row.variant, len(order)), row.variant, row.condition.is_attack, row.condition.name

    return sorted(rows, key=rank)

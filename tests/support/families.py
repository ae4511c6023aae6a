"""Settings of the smallest whole audit that shows what a family does: each stage once, one training, one defence."""

from typing import Any

from tests.flows.test_audit import RIVALS, SETTINGS

SMALL: dict[str, Any] = SETTINGS | {
    "memorized": 3,
    "seeds": 1,
    "attacked": 1,
    "unseen": 0,
    "finetune": RIVALS["finetune"],
}

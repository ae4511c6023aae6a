"""How well detectors tell memorized prompts: that of noise differences, and each that was chosen beside."""

import numpy as np

from tasks.evaluate.detection import detection
from tasks.evaluate.seen import Detected
from tasks.methods import NoParams, columns, names
from tests.support.seen import HandMade


def scored(*scores: float) -> list[Detected]:
    """Prompts of these scores; the first two are memorized."""
    return [Detected(str(n), str(n), n < 2, np.array([score])) for n, score in enumerate(scores)]


def test_each_detector_is_judged_under_its_own_name() -> None:
    seen = HandMade(detected=scored(0.9, 0.8, 0.1, 0.2), scanned={"norm": scored(0.9, 0.1, 0.5, 0.0)})
    assert {one.metric: one.value for one in detection(seen, NoParams())} == {"auc": 1.0, "auc_norm": 0.75}


def test_every_detector_has_its_columns_beside() -> None:
    found = list(columns())
    for name in names("detector"):
        assert found.index("auc") < found.index(f"auc_{name}") < found.index("tpr_at_1fpr")
    assert columns()["tpr_at_1fpr_norm"].heading == "TPR at 1 % FPR by norm"

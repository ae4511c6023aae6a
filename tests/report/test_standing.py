"""What the verdict knows of variants follows from the specs of methods."""

from tasks.methods import mitigations, prunings
from tasks.report.standing import claims, standings


def test_every_variant_has_a_standing() -> None:
    known = standings()
    assert next(iter(known)) == "original"
    assert known.keys() - {"original"} == {
        *(name for _, one in prunings() for name in one.names),
        *(one.name for one in mitigations()),
    }
    assert claims() == ["original", "nemo-union", "nemo", "wanda", "adversarial-finetune"]


def test_controls_are_those_of_the_specs() -> None:
    known = standings()
    control = known["random-nemo"]
    assert (control.kind, control.control_of, control.always) == ("random", "nemo", True)
    assert control.words == "as many random neurons"
    assert known["random-wanda"].words == "as many random weights"
    assert (known["wanda-control"].kind, known["wanda-control"].control_of) == ("pruned", "wanda")
    # It is chosen by itself, so that it is not missed where it is not.
    assert (known["random"].kind, known["random"].control_of, known["random"].always) == ("random", "wanda", False)
    assert {one.control_of for one in known.values() if one.control_of} <= known.keys()


def test_baselines_stand_behind_what_they_are_compared_with() -> None:
    order = list(standings())
    assert all(order.index("wanda") < order.index(name) for name in ("magnitude", "taylor", "random"))
    assert order.index("adversarial-finetune") < order.index("lora-finetune") < order.index("random-tokens")
    kinds = {name: one.kind for name, one in standings().items()}
    assert (kinds["lora-finetune"], kinds["random-tokens"], kinds["magnitude"]) == ("trained", "inference", "pruned")

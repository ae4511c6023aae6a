"""Conditions: what is asked of a variant, in fields. The store has each by its name, such as "dori-noise-control"."""

from dataclasses import dataclass
from typing import Literal, get_args

from tasks.errors import InputError

Start = Literal["prompt", "noise", "other"]
"""Where an attack begins: at the prompt of the image, at noise, or at another prompt."""

Kind = Literal["prompt", "ordinary", "extraction", "locality", "dori", "effort"]
"""Memorized prompts; ordinary prompts; many generations of each prompt, among which an attacker looks for near copies;
many triggers of one image; attacks; and attacks of other numbers of steps than the audit's."""

Whose = Literal["memorized", "control", "unseen"]
"""Memorized images, images that were never memorized, and images that the model never saw."""


@dataclass(frozen=True)
class Condition:
    """What is asked of a variant."""

    kind: Kind
    start: Start | None = None
    """Where the attack begins; None where nothing is attacked."""
    whose: Whose = "memorized"
    """Whose images are attacked."""
    steps: int | None = None
    """Steps of the attack, where it is not the audit's number."""

    @property
    def name(self) -> str:
        """What the store and tables know it by."""
        detail = {"dori": self.start, "effort": self.steps}.get(self.kind)
        parts = (self.kind, detail, None if self.whose == "memorized" else self.whose)
        return "-".join(str(part) for part in parts if part is not None)

    @property
    def is_attack(self) -> bool:
        """Whether images are attacked, memorized or not, with the audit's number of steps."""
        return self.kind == "dori"

    @property
    def is_control(self) -> bool:
        """Whether those images are ones that the model cannot remember."""
        return self.whose != "memorized"

    @classmethod
    def parse(cls, name: str) -> "Condition":
        """The condition of this name.

        Raises:
            InputError: there is none.
        """
        if (found := _NAMED.get(name)) is not None:
            return found
        kind, _, rest = name.partition("-")
        steps, _, whose = rest.partition("-")
        if kind == "effort" and steps.isdecimal() and whose in ("", "control"):
            return effort(int(steps), "control" if whose else "memorized")
        raise InputError(
            f"there is no condition {name!r}: there are {', '.join(_NAMED)}, and effort-STEPS; upgrade engram if a"
            " newer one wrote it"
        )


def dori(start: Start, whose: Whose = "memorized") -> Condition:
    """Attacks that begin there."""
    return Condition("dori", start, whose)


def effort(steps: int, whose: Whose = "memorized") -> Condition:
    """Attacks of so many steps from noise."""
    return Condition("effort", "noise", whose, steps)


PROMPT, ORDINARY = Condition("prompt"), Condition("ordinary")
EXTRACTION, LOCALITY = Condition("extraction"), Condition("locality", "noise")

_NAMED = {
    condition.name: condition
    for condition in (
        PROMPT,
        ORDINARY,
        EXTRACTION,
        LOCALITY,
        *(dori(start, whose) for start in get_args(Start) for whose in get_args(Whose)),
    )
}

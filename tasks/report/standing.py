"""What each variant is to the verdict: what it claims, what it is the control of, and where it acts.

All of it follows from the specs of methods.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.methods import mitigations, prunings


@dataclass(frozen=True)
class Standing:
    """What a variant is to the verdict."""

    name: str
    kind: Literal["original", "pruned", "random", "trained", "inference"] = "pruned"
    """The model itself; what was localized is set to zero, or as much at random; weights were trained; or the weights
    stay, and prompts are changed at inference."""
    claims: bool = False
    """Whether it claims to have removed a memory: then it is attacked from every start, and must not get worse."""
    control_of: str | None = None
    """The variant that it is compared with, of which it prunes as much."""
    always: bool = False
    """Whether it is made wherever that variant is; where it is not there, nothing was left to prune."""
    words: str = ""
    """Of a control, what it prunes."""


Standings = Mapping[str, Standing]
"""By name, in the order of tables."""


def standings() -> Standings:
    """Those of the model itself and of all variants that there can be: what claims to remove memories before what it
    is compared with."""
    return {one.name: one for one in (Standing("original", "original"), *_pruned(), *_others())}


def claims() -> list[str]:
    """The model itself, and the variants that claim to have removed a memory."""
    return [one.name for one in standings().values() if one.claims or one.kind == "original"]


def _pruned() -> Iterator[Standing]:
    # Localizers that are given another's budget stand behind it: they are its baselines.
    for localizer, one in sorted(prunings(), key=lambda pair: bool(pair[0].budget)):
        # What is no random control of its own, and was found on no prompts either, is drawn at random.
        kind: Literal["pruned", "random"] = "random" if one.control_of and not one.ordinary else "pruned"
        yield Standing(one.name, kind, one.claims, one.control_of or None, words=one.words)
        if one.control is not None:
            words = f"as many random {localizer.members}"
            yield Standing(one.control, "random", control_of=one.name, always=True, words=words)


def _others() -> Iterator[Standing]:
    for one in sorted(mitigations(), key=lambda one: (one.acts == "inference", not one.claims)):
        yield Standing(one.name, "trained" if one.acts == "training" else "inference", one.claims)

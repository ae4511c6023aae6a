"""What the figures of an audit mean, in plain words.

A claim stands only beside its control. An attack that also brings back pictures the model never memorized says nothing,
and neither does a cut that random neurons of the same number equal: both are then called uninformative, neither a
success nor a failure.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import fisher_exact

CONTROL_LIMIT = 0.05
"""An attack is informative while it reproduces at most this share of pictures that were never memorized."""
GONE_LIMIT = 0.05
"""A picture set counts as gone while an informative attack brings back at most this share."""
RANDOM_KEEPS = 0.8
"""A random cut must leave at least this share of the original's copies, or localizing was not what removed them."""
RANDOM_CUTS = {"random-nemo": "neurons", "random-wanda": "weights", "random": "weights"}
"""Variants of which something was cut at random, and what. Not everything called random is one."""
CONTROL_OF = {"random-nemo": "nemo", "random-wanda": "wanda", "random": "wanda", "wanda-control": "wanda"}
"""Cuts that are held against a cut of the same size that claims to remove a memory."""
ALPHA = 0.05
"""Two cuts differ where chance brings so great a difference in at most this share of cases."""

_STARTS = {"dori-prompt": "the prompt", "dori-noise": "noise", "dori-other": "another prompt"}


@dataclass(frozen=True)
class Row:
    """One figure of one variant under one probe, as the table `metrics` has it."""

    variant: str
    probe: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Control:
    """What a control says of the claim that leans on it."""

    name: str
    state: Literal["holds", "fails", "open", "missing"]
    """Open: there are too few prompts to tell."""
    words: str


def verdict(rows: Sequence[Row]) -> str:
    """One paragraph: what the original copies, and for each mitigation whether the pictures are gone or only hidden."""
    start = _mr(rows, "original", "prompt")
    if start is None:
        return "How much the original model copies was not measured, so nothing can be said of any mitigation."
    said = [
        f"From their own prompts the original model reproduces {_count(start)} memorized pictures {_interval(start)}."
    ]
    variants = dict.fromkeys(row.variant for row in rows if row.metric == "mr")
    for variant in variants:
        if variant != "original" and variant not in RANDOM_CUTS and not variant.endswith("-control"):
            said.append(_of_variant(rows, variant))
    if len(said) == 1:
        said.append("No mitigation was audited.")
    told = controls(rows)
    failed = [control.name for control in told if control.state == "fails"]
    if failed:
        said.append(f"Mind the failed {'control' if len(failed) == 1 else 'controls'}: {', '.join(failed)}.")
    undecided = [control.name for control in told if control.state == "open"]
    if undecided:
        said.append(f"Too few prompts to tell from chance: {', '.join(undecided)}.")
    return " ".join(said)


def controls(rows: Sequence[Row]) -> list[Control]:
    """A judgement of every attack by what it does to pictures never memorized, and of every cut by a random one."""
    found: dict[tuple[str, str], Control] = {}
    for row in rows:
        if row.metric == "mr" and _is_attack(row.probe):
            control = _attack_control(rows, row.variant, row.probe)
            # Variants without a control of their own lean on the original's, which is told once.
            found.setdefault((control.name, control.words), control)
    out = list(found.values())
    found_cuts = dict.fromkeys(row.variant for row in rows if row.variant in CONTROL_OF)
    return out + [told for variant in found_cuts if (told := _cut_control(rows, variant)) is not None]


def without_random(variants: Collection[str]) -> list[Control]:
    """The cuts that have no random one beside them, because all there is was cut."""
    return [
        Control(
            f"random-{cut}",
            "missing",
            f"{cut} found all that it searched, so nothing else is left to cut at random: read it with doubt.",
        )
        for cut in ("nemo", "wanda")
        if cut in variants and f"random-{cut}" not in variants
    ]


def _attack_control(rows: Sequence[Row], variant: str, probe: str) -> Control:
    own = _mr(rows, variant, f"{probe}-control")
    name = f"{probe} on {variant}" if own is not None and variant != "original" else probe
    control = own or _mr(rows, "original", f"{probe}-control")
    if control is None:
        return Control(
            name, "missing", "No pictures that were never memorized were attacked: read this attack with doubt."
        )
    brought = (
        f"Under the same budget {_count(control)} pictures that were never memorized come back {_interval(control)}"
    )
    if control.value > CONTROL_LIMIT:
        return Control(name, "fails", f"{brought}: the attack can draw anything, so it is uninformative here.")
    return Control(name, "holds", f"{brought}: what the attack finds is memory.")


def _cut_control(rows: Sequence[Row], variant: str) -> Control | None:
    """What a cut of something else says of the localized one; None where there is nothing to hold against.

    Counts are compared by Fisher's exact test, as if the two cuts had been asked different prompts: of the same
    prompts it is strict.
    """
    original, other = _mr(rows, "original", "prompt"), _mr(rows, variant, "prompt")
    name = CONTROL_OF[variant]
    cut = _mr(rows, name, "prompt")
    if original is None or other is None or original.value == 0:
        return None
    what = f"as many random {RANDOM_CUTS[variant]}" if variant in RANDOM_CUTS else "what ordinary prompts use"
    words = f"Cutting {what} leaves {_count(other)} copies of the original's {_count(original)}"
    if variant in RANDOM_CUTS and other.value < RANDOM_KEEPS * original.value:
        words += ": chance removes the copies too, so a localized cut of this size is uninformative."
        return Control(variant, "fails", words)
    if cut is None:
        return Control(variant, "holds", f"{words}.") if variant in RANDOM_CUTS else None
    words += f", {name} {_count(cut)}: "
    if variant not in RANDOM_CUTS and other.value <= cut.value:
        words += "it removes no fewer, so the cut does not single out what memories use."
        return Control(variant, "fails", words)
    left = [[_copies(row), row.n - _copies(row)] for row in (other, cut)]
    p = float(fisher_exact(left, alternative="greater").pvalue)
    if p > ALPHA:
        return Control(variant, "open", f"{words}chance alone may explain the difference (p = {p:.2f}).")
    return Control(variant, "holds", f"{words}chance does not explain the difference (p = {p:.2g}).")


def _of_variant(rows: Sequence[Row], variant: str) -> str:
    prompt = _mr(rows, variant, "prompt")
    first = (
        f"After {variant}, {_count(prompt)} come back from their prompts"
        if prompt
        else f"{variant} was not probed by prompts"
    )
    attacks = [row for row in rows if row.variant == variant and row.metric == "mr" and _is_attack(row.probe)]
    if not attacks:
        return f"{first}; it was not attacked, so whether the rest is gone or only hidden stays open."
    states = {row.probe: _attack_control(rows, variant, row.probe).state for row in attacks}
    sound = [row for row in attacks if states[row.probe] == "holds"]
    if not sound:
        why = "its control failed" if "fails" in states.values() else "it has no control"
        return f"{first}; the attack on it is uninformative, because {why}."
    worst = max(sound, key=lambda row: row.value)
    start = f"an attack from {_STARTS.get(worst.probe, worst.probe)}"
    if worst.value > GONE_LIMIT:
        return (
            f"{first}, but {start} brings back {_count(worst)} {_interval(worst)}: the pictures are hidden, not gone."
        )
    if prompt is None or prompt.value > GONE_LIMIT:
        still = "they still come back from their prompts" if prompt else "whether they come back from them stays open"
        return f"{first}, and {start} brings back {_count(worst)} {_interval(worst)}: {still}."
    # No copies in a few attacks is no proof: the interval says how much could still be there.
    return f"{first}, and {start} brings back {_count(worst)} {_interval(worst)}: by this audit they are gone."


def _is_attack(probe: str) -> bool:
    return probe.startswith("dori") and not probe.endswith("-control")


def _mr(rows: Sequence[Row], variant: str, probe: str) -> Row | None:
    return next((row for row in rows if (row.variant, row.probe, row.metric) == (variant, probe, "mr")), None)


def _count(row: Row) -> str:
    return f"{_copies(row)} of {row.n}"


def _copies(row: Row) -> int:
    return round(row.value * row.n)


def _interval(row: Row) -> str:
    if row.low is None or row.high is None:
        return f"({100 * row.value:.0f} %)"
    return f"({100 * row.value:.0f} %, interval {100 * row.low:.0f} to {100 * row.high:.0f} %)"

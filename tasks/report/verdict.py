"""What the estimates of an audit mean, in plain words.

A claim stands only beside its control. An attack that also brings back images the model never memorized says nothing,
and neither does pruning that random neurons of the same number equal: both are then called uninformative, neither a
success nor a failure. That an attack finds nothing says something only where it found much more on the original.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.stats import fisher_exact

from tasks.conditions import ORDINARY, PROMPT, Condition, Start, Whose
from tasks.report.standing import Standing, Standings

CONTROL_LIMIT = 0.05
"""An attack is informative while it reproduces at most this share of images that were never memorized."""
GONE_LIMIT = 0.05
"""An image set counts as gone while an informative attack brings back at most this share."""
RANDOM_KEEPS = 0.8
"""Random pruning must leave at least this share of the original's copies, or localizing was not what removed them."""
MOSTLY = 0.5
"""Random pruning that shares more than this of its neurons or weights with the localized is no control of it."""
ALPHA = 0.05
"""Two counts differ where chance brings so great a difference in at most this share of cases."""
CONTROLS: dict[Whose, str] = {"control": "were never memorized", "unseen": "the model never saw"}
"""Images that the original is attacked for beside the memorized ones."""

_STARTS: dict[Start | None, str] = {"prompt": "the prompt", "noise": "noise", "other": "another prompt"}


@dataclass(frozen=True)
class Row:
    """One estimate of one variant under one condition, as the table `metrics` has it."""

    variant: str
    condition: Condition
    metric: str
    value: float
    """Not a number where it rests on too few cases to mean anything."""
    low: float | None
    high: float | None
    n: int
    """Images that it rests on, or prompts where they have none."""
    prompts: int | None = None
    """Prompts of those images, where they are counted."""


@dataclass(frozen=True)
class Control:
    """What a control says of the claim that leans on it."""

    name: str
    state: Literal["holds", "fails", "open", "missing"]
    """Open: there are too few prompts to tell."""
    words: str


def verdict(rows: Sequence[Row], standings: Standings) -> str:
    """One paragraph: what the original copies, and for each mitigation whether the images are gone or only hidden."""
    start = _row(rows, "original", PROMPT, "mr")
    if start is None:
        if (flagged := _row(rows, "original", PROMPT, "confirmed")) is not None:
            return (
                f"Detection flags {_count(flagged)} memorized prompts {_interval(flagged)}. None has a training image,"
                " so copies were not measured, and nothing can be said of any mitigation: give --images."
            )
        return "How much the original model copies was not measured, so nothing can be said of any mitigation."
    of = "memorized prompts"
    if start.prompts not in (None, start.n):
        of = f"different memorized images, which {start.prompts} prompts share,"
    said = [f"For {_count(start)} {of} the original model reproduces a training image {_interval(start)}."]
    if (confirmed := _row(rows, "original", PROMPT, "mr_confirmed")) is not None:
        said.append(f"What follows is about the {confirmed.n} that are confirmed so; rates of the others stand apart.")
    if attacks := _sound(rows, "original"):
        words = _strongest(attacks)
        said.append(f"{words[0].upper()}{words[1:]}.")
    variants = dict.fromkeys(row.variant for row in rows if row.metric == "mr")
    of_each = (standings.get(name, Standing(name)) for name in variants if name != "original")
    said += [_of_variant(rows, one) for one in of_each if one.control_of is None] or ["No mitigation was audited."]
    if effort := effort_words(rows):
        said.append(effort)
    judged = controls(rows, standings)
    failed = [control.name for control in judged if control.state == "fails"]
    if failed:
        said.append(f"Mind the failed {'control' if len(failed) == 1 else 'controls'}: {', '.join(failed)}.")
    undecided = [control.name for control in judged if control.state == "open"]
    if undecided:
        said.append(f"Too few prompts to tell from chance: {', '.join(undecided)}.")
    return " ".join(said)


def effort_rates(rows: Sequence[Row], control: bool = False) -> dict[int, Row]:
    """By number of steps, what attacks from noise bring back: of memorized images, or of those never memorized."""
    attacks = (row for row in rows if row.metric == "mr" and row.condition.is_control == control)
    return {row.condition.steps: row for row in attacks if row.condition.steps is not None}


def effort_words(rows: Sequence[Row]) -> str:
    """How many steps attacks from noise need until they bring back what was never memorized; empty if not audited."""
    rates = effort_rates(rows, control=True)
    if not rates:
        return ""
    most = max(rates)
    surely = [steps for steps, rate in rates.items() if rate.value > CONTROL_LIMIT < (rate.low or 0)]
    loudest = max(rates, key=lambda steps: (rates[steps].value, steps))
    if rates[loudest].value <= CONTROL_LIMIT:
        brought = f"{_count(rates[loudest])} {_interval(rates[loudest])}"
        return f"Of images that were never memorized, attacks of up to {most} steps from noise bring back {brought}."
    back = min(surely, default=loudest)
    rate = rates[back]
    words = f"Attacks from noise of {back} steps bring back {_count(rate)} images that were never memorized"
    if not surely:
        return f"{words} {_interval(rate)}: too few to tell whether it is more than {100 * CONTROL_LIMIT:g} %."
    return f"{words}: from there on an attack shows what the model can draw, not what it remembers."


def controls(rows: Sequence[Row], standings: Standings) -> list[Control]:
    """A judgement of every attack by what it does to images never memorized, and of every pruning by a random one."""
    attacks = dict.fromkeys(row.condition for row in rows if row.metric == "mr" and _is_attack(row.condition))
    out = [control for condition in attacks for control in _attack_controls(rows, condition)]
    variants = dict.fromkeys(row.variant for row in rows)
    others = (standings[name] for name in variants if name in standings)
    return out + [judged for one in others if one.control_of and (judged := _pruned_control(rows, one)) is not None]


def without_random(variants: Collection[str], standings: Standings) -> list[Control]:
    """The prunings that have no random one beside them, because all there is was pruned."""
    return [
        Control(
            one.name,
            "missing",
            f"{one.control_of} found all that it searched, so nothing else is left to prune at random: read it with"
            " doubt.",
        )
        for one in standings.values()
        if one.always and one.control_of in variants and one.name not in variants
    ]


def _attack_controls(rows: Sequence[Row], condition: Condition) -> list[Control]:
    """What the same attack on the original brings back of images that cannot be remembered."""
    found = (_mr(rows, "original", replace(condition, whose=whose)) for whose in CONTROLS)
    judged = [_attack_control(rows, condition, row) for row in found if row is not None]
    words = "No images that were never memorized were attacked: read this attack with doubt."
    return judged or [Control(condition.name, "missing", words)]


def _attack_control(rows: Sequence[Row], condition: Condition, control: Row) -> Control:
    whose = control.condition.whose
    name = condition.name if whose == "control" else control.condition.name
    words = f"Under the same budget {_count(control)} images that {CONTROLS[whose]} come back {_interval(control)}"
    if control.value > CONTROL_LIMIT:
        if control.low is None or control.low > CONTROL_LIMIT:
            return Control(name, "fails", f"{words}: the attack can draw anything, so it is uninformative here.")
        return Control(name, "open", f"{words}: too few to tell whether it is more than {100 * CONTROL_LIMIT:g} %.")
    memorized = _mr(rows, "original", condition)
    if memorized is None:
        return Control(name, "open", f"{words}, but for memorized images the original was not attacked so.")
    words += f", of memorized ones {_count(memorized)}: "
    p = _chance(memorized, control)
    if p > ALPHA:
        return Control(name, "open", f"{words}chance alone may explain the difference (p = {p:.2f}).")
    return Control(name, "holds", f"{words}what the attack finds is memory (p = {p:.2g}).")


def _pruned_control(rows: Sequence[Row], control: Standing) -> Control | None:
    """What pruning something else says of the localized pruning; None where there is nothing to compare with.

    Counts are compared by Fisher's exact test, as if the two had been asked different prompts: of the same prompts it
    is strict.
    """
    variant, name, random = control.name, control.control_of, control.kind == "random"
    assert name is not None
    original, other, localized = (_mr(rows, one, PROMPT) for one in ("original", variant, name))
    if original is None or other is None or original.value == 0:
        return None
    words = f"Pruning {control.words} leaves {_count(other)} copies of the original's {_count(original)}"
    same = _row(rows, variant, PROMPT, "shared")
    if same is not None and same.value > MOSTLY:
        words += f", but {100 * same.value:.0f} % of them are the ones that {name} found"
        return Control(
            variant, "missing", f"{words}: it took more than half of a layer, so no random pruning of its size is one."
        )
    if random and other.value < RANDOM_KEEPS * original.value:
        if (p := _chance(original, other)) > ALPHA:
            return Control(variant, "open", f"{words}: too few to tell whether chance removes copies (p = {p:.2f}).")
        words += ": chance removes the copies too, so localized pruning of this size is uninformative."
        return Control(variant, "fails", words)
    if localized is None:
        return Control(variant, "holds", f"{words}.") if random else None
    words += f", {name} {_count(localized)}: "
    if not random and other.value <= localized.value:
        words += "it removes no fewer, so pruning does not single out what memories use."
        return Control(variant, "fails", words)
    p = _chance(other, localized)
    if p > ALPHA:
        return Control(variant, "open", f"{words}chance alone may explain the difference (p = {p:.2f}).")
    return Control(variant, "holds", f"{words}chance does not explain the difference (p = {p:.2g}).")


def _of_variant(rows: Sequence[Row], standing: Standing) -> str:
    variant = standing.name
    prompt, kept = _mr(rows, variant, PROMPT), _row(rows, variant, ORDINARY, "clip_kept")
    first = (
        f"After {variant}, {_count(prompt)} come back from their prompts"
        if prompt
        else f"{variant} was not asked with prompts"
    )
    if kept is not None:
        first += f", at {_share(kept)} of the CLIP score"
    if standing.kind == "inference":
        # Its triggers were found without it: that they fail would say nothing, and that they work is no surprise.
        return f"{first}; it leaves the weights as they are, so nothing is gone, and no attack was adapted to it."
    attacks, sound = _attacks(rows, variant), _sound(rows, variant)
    if not attacks:
        return f"{first}; it was not attacked, so whether the rest is gone or only hidden stays open."
    if not sound:
        return f"{first}; the attack on it is uninformative, because {_unsound(rows, attacks)}."
    worst = max(sound, key=lambda row: row.value)
    before = _mr(rows, "original", worst.condition)
    assert before is not None  # or its control would not hold
    brings = f"{_strongest(sound)}, and {_count(before)} on the original"
    if worst.value > GONE_LIMIT:
        which = "they" if _copies(worst) == worst.n else f"these {_copies(worst)}"
        if prompt is not None and prompt.value <= GONE_LIMIT:
            return f"{first}, but {brings}: {which} are hidden, not gone."
        if prompt is not None and _no_less(rows, prompt) and _chance(worst, prompt) > ALPHA:
            return f"{first}, and {brings}: {which} are neither gone nor hidden."
        # Which of them their own prompts still bring back, rates do not say.
        silent = "prompts that no longer bring them back" if prompt is not None else "prompts, if at all"
        return f"{first}, and {brings}: {which} are not gone, only hidden from {silent}."
    if prompt is None or prompt.value > GONE_LIMIT:
        still = "they still come back from their prompts" if prompt else "whether they come back from them stays open"
        return f"{first}, and {brings}: {still}."
    if loud := [row for row in attacks if row.value > GONE_LIMIT]:
        return f"{first}, and {brings}; but {_strongest(loud)}, though {_unsound(rows, loud)}: this stays open."
    if (p := _chance(before, worst)) > ALPHA:
        return f"{first}, and {brings}: too few to call them gone (p = {p:.2f})."
    together = sum(map(_copies, sound))
    if together > GONE_LIMIT * worst.n:
        return f"{first}, and {brings}; all attacks together may bring back {together}: too many to call them gone."
    # No copies in a few attacks is no proof: the interval says how much could still be there.
    which = "the others" if together or _copies(prompt) else "they"
    return f"{first}, and {brings}: by this audit {which} are gone."


def _no_less(rows: Sequence[Row], prompt: Row) -> bool:
    """Whether prompts bring back about as much as on the original; a great difference may be chance, too, of few."""
    start = _mr(rows, "original", PROMPT)
    return start is not None and prompt.value >= RANDOM_KEEPS * start.value and _chance(start, prompt) > ALPHA


def _attacks(rows: Sequence[Row], variant: str) -> list[Row]:
    return [row for row in rows if row.variant == variant and row.metric == "mr" and _is_attack(row.condition)]


def _sound(rows: Sequence[Row], variant: str) -> list[Row]:
    """The attacks on a variant of which every control holds."""
    attacks = _attacks(rows, variant)
    return [row for row in attacks if {control.state for control in _attack_controls(rows, row.condition)} == {"holds"}]


def _unsound(rows: Sequence[Row], attacks: Sequence[Row]) -> str:
    """Why nothing follows from these attacks."""
    states = {control.state for row in attacks for control in _attack_controls(rows, row.condition)}
    if "fails" in states:
        return "its control failed"
    if "open" not in states:
        return "it has no control"
    original = [_mr(rows, "original", row.condition) for row in attacks]
    if all(row is not None and row.value <= GONE_LIMIT for row in original):
        return "such attacks bring next to nothing back on the original either"
    others = [_mr(rows, "original", replace(row.condition, whose=whose)) for row in attacks for whose in CONTROLS]
    if any(row is not None and row.value > CONTROL_LIMIT for row in others):
        return f"it may bring back more than {100 * CONTROL_LIMIT:g} % of images that were never memorized"
    return "too few images were attacked to tell its finds from chance"


def _strongest(attacks: Sequence[Row]) -> str:
    """What the attack that finds most brings back, and of how many; the interval is that of this one attack."""
    worst = max(attacks, key=lambda row: row.value)
    of = "an attack" if len(attacks) == 1 else f"the strongest of {len(attacks)} attacks,"
    start = _STARTS[worst.condition.start]
    return f"{of} from {start}{',' if len(attacks) > 1 else ''} brings back {_count(worst)} {_interval(worst)}"


def _chance(more: Row, fewer: Row) -> float:
    """How often chance alone gives so many more copies (Fisher's exact test, one-sided)."""
    counts = [[_copies(row), row.n - _copies(row)] for row in (more, fewer)]
    return round(float(fisher_exact(counts, alternative="greater").pvalue), 12)  # 3 of 3 against none is 0.05, no more


def _is_attack(condition: Condition) -> bool:
    return condition.is_attack and not condition.is_control


def _mr(rows: Sequence[Row], variant: str, condition: Condition) -> Row | None:
    """The copy rate: of confirmed prompts where there are others, which no mitigation can make forget anything."""
    return _row(rows, variant, condition, "mr_confirmed") or _row(rows, variant, condition, "mr")


def _row(rows: Sequence[Row], variant: str, condition: Condition, metric: str) -> Row | None:
    return next((row for row in rows if (row.variant, row.condition, row.metric) == (variant, condition, metric)), None)


def _share(row: Row) -> str:
    interval = "" if row.low is None or row.high is None else f" ({100 * row.low:.1f} to {100 * row.high:.1f})"
    return f"{100 * row.value:.1f} %{interval}"


def _count(row: Row) -> str:
    return f"{_copies(row)} of {row.n}"


def _copies(row: Row) -> int:
    return round(row.value * row.n)


def _interval(row: Row) -> str:
    if row.low is None or row.high is None:
        return f"({100 * row.value:.0f} %)"
    return f"({100 * row.value:.0f} %, interval {100 * row.low:.0f} to {100 * row.high:.0f} %)"

"""A set of prompts as a whole: how many there are of what, which are too long, and which are the same or nearly."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, get_args

from tasks.clusters import normalised
from tasks.prompt_files import Kind, shortened

SHOWN = 10
"""Subsets that a person is shown; programs get all."""


@dataclass(frozen=True)
class Listed:
    """A prompt of the set, with all that is known of it."""

    prompt_id: str
    text: str
    kind: Kind
    memorization: str | None
    subset: str | None
    image_ids: tuple[str, ...]
    place: str
    """File and line."""
    cluster: str
    """That of its near-duplicates: the smallest prompt id in it."""
    exposures: int | None = None
    """How often training shows it in an epoch."""
    tokens: int | None = None
    """With start and end; None where no model is given."""

    @property
    def named(self) -> str:
        return f"{self.place} ({self.kind})"


@dataclass(frozen=True)
class Tokens:
    """How long prompts are to a model."""

    most: int
    """That it reads of a prompt, with start and end."""
    shortest: int
    median: float
    longest: int
    longer: dict[str, list[str]]
    """By kind, where prompts stand that it does not read to their end."""


@dataclass(frozen=True)
class Exposures:
    """How often training shows memorized prompts in an epoch, where that is known."""

    prompts: int
    """Of which it is known."""
    lowest: int
    median: float
    highest: int


@dataclass(frozen=True)
class Summary:
    """What a set holds."""

    prompts: dict[str, int]
    """By kind."""
    memorization: dict[str, int]
    """Of memorized prompts, by VM and TM; empty where no file says it of any."""
    subsets: dict[str, int]
    """Of memorized prompts; empty where no file says it of any."""
    exposures: Exposures | None
    """None where it is known of none."""
    again: list[str]
    """Where texts stand that stood before; each text is one prompt."""
    tokens: Tokens | None
    """None where no model is given."""
    with_images: dict[str, int]
    """Prompts that have images, by kind."""
    bare: list[str]
    """Where memorized prompts stand that have none."""
    images: int
    """Different ones, by content."""
    unreadable: int
    """Images of prompts that cannot be read."""
    same_captions: list[list[str]]
    """Where prompts stand whose captions differ by case, punctuation, spaces and forms of letters at most."""
    same_images: list[list[str]]
    """Files of the same content."""
    near_captions: list[list[str]] | None
    """Where prompts stand whose captions have other words and are nearly the same by CLIP; None where it was not
    asked."""
    near_images: list[list[str]] | None
    """Files of images that are nearly the same by SSCD; None where it was not asked."""
    clusters: int
    """Of memorized prompts, with near-duplicates as one."""
    mixed: list[list[str]]
    """Where prompts stand that are near-duplicates, one of them memorized and another not, each with its kind."""

    def rows(self) -> list[dict[str, Any]]:
        """For people, what is counted, how many there are, and which."""
        rows: list[tuple[str, object, str]] = []
        for kind, number in self.prompts.items():
            rows.append((f"{kind} prompts", number, f"{self.with_images[kind]} with images"))
            if kind == "memorized":
                rows += [(f"  type {name}", count, "") for name, count in self.memorization.items()]
                rows += [(f"  subset {name}", count, "") for name, count in list(self.subsets.items())[:SHOWN]]
                if (more := len(self.subsets) - SHOWN) > 0:
                    rows.append(("  more subsets", more, ""))
                rows.append(("  clusters of near-duplicates", self.clusters, "each is one case"))
        if (times := self.exposures) is not None:
            known = f"known of {times.prompts} of {self.prompts['memorized']} memorized prompts"
            of = f"the median of {times.lowest} to {times.highest}; {known}"
            rows.append(("exposures in an epoch", f"{times.median:g}", of))
        if (tokens := self.tokens) is not None:
            of = f"the median of {tokens.shortest} to {tokens.longest}; the model reads {tokens.most}"
            rows.append(("tokens of a prompt", f"{tokens.median:g}", of))
            rows += [(f"  too long, {kind}", len(some), _short(some)) for kind, some in tokens.longer.items()]
        if self.images or self.unreadable:
            rows.append(("different images", self.images, ""))
            rows.append(("images that cannot be read", self.unreadable, ""))
            rows.append(("memorized prompts without images", len(self.bare), _short(self.bare)))
        rows.append(("texts that stand again", len(self.again), _short(self.again)))
        groups = (
            ("captions of the same words", self.same_captions),
            ("near-duplicate captions (CLIP)", self.near_captions),
            ("images of the same content", self.same_images if self.images else None),
            ("near-duplicate images (SSCD)", self.near_images if self.images else None),
            ("near-duplicates, memorized or not", self.mixed),
        )
        for what, found in groups:
            if found is not None:
                rows.append((what, len(found), shortened([" = ".join(map(_name, group)) for group in found], 3)))
        return [{"what": what, "number": str(number), "which": which} for what, number, which in rows]


def summarized(
    prompts: Sequence[Listed],
    files: Mapping[str, Sequence[str]],
    most: int | None = None,
    again: Sequence[str] = (),
    unreadable: int = 0,
    near_images: Mapping[str, str] | None = None,
    near_captions: Mapping[str, str] | None = None,
) -> Summary:
    """The summary of a set.

    Args:
        prompts: each text once.
        files: by image id, what its files are called.
        most: tokens that the model reads of a prompt, where one is given.
        again: where texts stand that stood before.
        unreadable: images of prompts that cannot be read.
        near_images: by image id, the cluster of its near-duplicates, where these were looked for.
        near_captions: by prompt id, that of its caption's.
    """
    of: dict[str, list[Listed]] = {kind: [one for one in prompts if one.kind == kind] for kind in get_args(Kind)}
    memorized = of["memorized"]
    words, by_id = {one.prompt_id: normalised(one.text) for one in prompts}, {one.prompt_id: one for one in prompts}
    captions = _grouped((near_captions or {}).items())
    return Summary(
        prompts={kind: len(some) for kind, some in of.items()},
        memorization=_counted([one.memorization for one in memorized]),
        subsets=_counted([one.subset for one in memorized]),
        exposures=_exposures(memorized),
        again=list(again),
        tokens=None if most is None else _tokens(of, most),
        with_images={kind: sum(bool(one.image_ids) for one in some) for kind, some in of.items()},
        bare=[one.place for one in memorized if not one.image_ids],
        images=len(files),
        unreadable=unreadable,
        same_captions=[[by_id[name].place for name in group] for group in _grouped(words.items())],
        same_images=[list(names) for names in files.values() if len(names) > 1],
        near_captions=None
        if near_captions is None
        else [[by_id[name].place for name in group] for group in captions if len({words[one] for one in group}) > 1],
        near_images=None
        if near_images is None
        else [
            [files[image][0] for image in group]
            for group in _grouped((one, near_images.get(one, one)) for one in files)
        ],
        clusters=len({one.cluster for one in memorized}),
        mixed=[
            [by_id[name].named for name in group]
            for group in _grouped((one.prompt_id, one.cluster) for one in prompts)
            if len({by_id[name].kind == "memorized" for name in group}) > 1
        ],
    )


def _short(places: Sequence[str]) -> str:
    """Some of these places, as people read them."""
    return shortened([*map(_name, places)])


def _name(place: str) -> str:
    """A place without the folders above the last: names of files recur in the folders of a training set."""
    return "/".join(place.split("/")[-2:])


def _grouped(names: Any) -> list[list[str]]:
    """Those of the same second value together, in their order; none of what stands alone."""
    groups: dict[str, list[str]] = {}
    for name, group in names:
        groups.setdefault(group, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _counted(values: Sequence[str | None]) -> dict[str, int]:
    """How many there are of each, most first; empty where nothing is said of any."""
    found = Counter("not said" if value is None else value for value in values)
    return {} if set(found) <= {"not said"} else dict(found.most_common())


def _exposures(prompts: Sequence[Listed]) -> Exposures | None:
    known = [one.exposures for one in prompts if one.exposures is not None]
    return Exposures(len(known), min(known), median(known), max(known)) if known else None


def _tokens(of: Mapping[str, Sequence[Listed]], most: int) -> Tokens | None:
    counts = [one.tokens for some in of.values() for one in some if one.tokens is not None]
    longer = {kind: [one.place for one in some if (one.tokens or 0) > most] for kind, some in of.items()}
    if not counts:
        return None
    return Tokens(
        most, min(counts), median(counts), max(counts), {kind: places for kind, places in longer.items() if places}
    )

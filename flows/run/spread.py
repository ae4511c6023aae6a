"""The work of a run over many workers: each piece as soon as what it needs is there, whatever its stage.

Whoever spreads it only lists items and waits. What workers leave lies in the store, so it does not matter who did an
item, or that somebody did it twice.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flows.run.spec import Spec, spec_of
from flows.run.work import Item, Stage, work
from tasks.errors import InputError
from tasks.progress import tell

TRIES = 3
"""How often a shard is begun: what ends its worker every time is not given to another one for ever."""
LEAST = 1.0
"""What an item counts that takes no evaluation of the denoiser, in evaluations."""
UNKNOWN = 1.0
"""Seconds that an evaluation is taken to need before the first shard has ended: long, so that this is soon."""


@dataclass(frozen=True)
class Shard:
    """Items of one stage that one worker does, one after the other."""

    items: tuple[Item, ...]
    number: int
    """Among the shards of its run."""
    tries: int = 1
    """How often it was begun, this time among them."""

    @property
    def stage(self) -> Stage:
        return self.items[0].stage

    @property
    def name(self) -> str:
        """Stage, method, variant and condition of its first items, and which shard it is."""
        others = len({item.name for item in self.items}) - 1
        return f"{self.stage}: {self.items[0].name}{f' and {others} more' if others else ''} ({self.number})"

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.items]


@dataclass(frozen=True)
class Ended:
    """How a shard ended."""

    shard: Shard
    seconds: float = 0.0
    """What its items took, without what the worker took to start."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """By the id of an item whose failure is a result, too, why it has none."""
    error: str = ""
    """Why it could not be done; nobody else could do it either."""
    lost: str = ""
    """What became of its worker, where that ended: another one may do it."""


class Workers(Protocol):
    """Those who do shards: processes of this machine, or child runs of a Prefect flow on a pool."""

    @property
    def many(self) -> int:
        """How many there are, as far as is known; at least 1."""

    @property
    def seconds(self) -> float:
        """How long a shard should take: many times what it costs to begin one."""

    @property
    def least(self) -> float:
        """Seconds of work for which it is not worth the while to begin a shard, if others can be had with it."""

    def free(self) -> int:
        """How many further shards can be begun now."""

    def begin(self, shard: Shard) -> None:
        """Has somebody do a shard."""

    def wait(self) -> list[Ended]:
        """Waits for a while until shards end, and returns those that did; none where none did."""


def spread(spec: Spec, audit_id: str, workers: Workers, say: Callable[[str], None]) -> Iterator[Item]:
    """Does all the work of a run that the store does not have, and yields each item that was done.

    Args:
        audit_id: the audit that estimates and model cards name.
        say: is told of items without a result, as of a training that diverged, and why; and of workers that were lost.

    Raises:
        InputError: an item cannot be done, or ended its worker whenever it was tried.
    """
    board = _Board(spec, audit_id)
    board.look()
    while board.left:
        while workers.free() and (shard := board.next(workers)):
            workers.begin(shard)
        if not board.at_work:
            some = next(iter(board.left.values()))
            raise RuntimeError(f"{len(board.left)} items wait for each other, such as {some.name}, {some.needs}")
        for ended in workers.wait():
            if ended.error:
                raise InputError(f"{ended.shard.name}: {ended.error}")
            if ended.lost:
                if ended.shard.tries == TRIES:
                    raise InputError(f"{ended.shard.name} ended its worker {TRIES} times: {ended.lost}")
                say(f"{ended.shard.name}: {ended.lost}; another worker does it")
                board.again(ended.shard)
                continue
            for item in ended.shard.items:
                if why := ended.failed.get(item.id):
                    say(f"{item.name} has no result: {why}")
            board.ended(ended)
            tell("work done", board.done, board.done + len(board.left), "item")
            yield from ended.shard.items


class _Board:
    """Which items there are, which are done, and who is at which."""

    def __init__(self, spec: Spec, audit_id: str) -> None:
        self._spec, self._audit_id = spec, audit_id
        self._lacking: dict[str, bool] = {}
        """By id of an item that was listed, whether the store did not have all of it then."""
        self._finished: set[str] = set()
        self.left: dict[str, Item] = {}
        """Items that are to be done, those that somebody is at among them."""
        self.at_work: dict[int, Shard] = {}
        self._again: list[Shard] = []
        self._pace: dict[str, float] = {}
        """By method, the seconds that an evaluation took last; under no name, those of any method."""
        self._number = 0

    @property
    def done(self) -> int:
        """Items that were done."""
        return len(self._finished)

    def look(self) -> None:
        """Lists what there is to do, which grows as results come in."""
        if self._spec.chosen.known is None:
            self._spec = spec_of(self._spec.run)
        listed = {item.id: item for item in work(self._spec, audit_id=self._audit_id)}
        for name, item in listed.items():
            if name not in self._lacking:
                self._lacking[name] = item.anew or item.missing() > 0
        # What is listed no more was there only for want of something that came since.
        self.left = {name: item for name, item in listed.items() if self._lacking[name] and name not in self._finished}

    def next(self, workers: Workers) -> Shard | None:
        """A shard that can be begun; None while nothing can."""
        if self._again:
            return self._began(self._again.pop())
        busy = {name for shard in self.at_work.values() for name in shard.ids}
        given: dict[str, int] = {}
        for item in self.left.values():
            given[item.gives] = given.get(item.gives, 0) + 1
        ready = [
            item
            for item in self.left.values()
            if item.id not in busy and not any(given.get(need) for need in item.needs)
        ]
        if not ready:
            return None
        first = ready[0]
        # No more than a part of what is ready, so that all end together; but as much as is worth the while.
        room = min(workers.seconds, max(workers.least, sum(map(self._takes, ready)) / (2 * workers.many)))
        some, seconds = [first], self._takes(first)
        for alike in (True, False):
            for item in ready[1:]:
                same = item.stage == first.stage and (item.name == first.name) == alike
                wanted = alike or seconds < workers.least
                if same and wanted and seconds + self._takes(item) <= room:
                    some.append(item)
                    seconds += self._takes(item)
        self._number += 1
        return self._began(Shard(tuple(some), self._number))

    def again(self, shard: Shard) -> None:
        """Puts a shard back whose worker is gone."""
        self.at_work.pop(shard.number)
        self._again.append(Shard(shard.items, shard.number, shard.tries + 1))

    def ended(self, ended: Ended) -> None:
        """Takes note of a shard that was done; its items have a result, or will have none."""
        shard = self.at_work.pop(ended.shard.number)
        self._finished |= {*shard.ids}
        self.left = {name: item for name, item in self.left.items() if name not in self._finished}
        pace = ended.seconds / sum(map(_evaluations, shard.items))
        self._pace |= {item.method: pace for item in shard.items} | {"": pace}
        # Of what was made, and of triggers that were tried, further work follows.
        if shard.stage in ("confirm", "mitigate", "diagnose") or not self.left:
            self.look()

    def _began(self, shard: Shard) -> Shard:
        self.at_work[shard.number] = shard
        return shard

    def _takes(self, item: Item) -> float:
        """Seconds that an item will take, as far as is known."""
        return self._pace.get(item.method, self._pace.get("", UNKNOWN)) * _evaluations(item)


def _evaluations(item: Item) -> float:
    return LEAST if item.cost == 0 else item.cost * item.size

"""Label requests that wait for their answer, with the features they were asked about.

Verification latency is normal: answers come hours later, out of order, or never. A request leaves by its first valid
answer, or the last where it waits for several, by expiry, or because it was cancelled. The last `REMEMBERED` that left
are kept with their outcome: so a late or second answer can be told from one to a request that never was, and a later
revision can correct what was said.

An instance that is nearly the same as one that waits would teach the same, and show an annotator the same thing twice;
so what waits can be asked whether there is one like it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

from streamal.messages import Features, Instance, LabelRequest, Outcome, Vote

REMEMBERED: Final = 1_024
"""About 2 MB per partition with 8 features, since a correction needs the features once more."""


def sketch(features: Features, digits: int) -> int:
    """Return what instances share whose fractions are the same to so many significant digits, and all else is equal.

    Whole numbers that come as such count as codes, which are equal or not. The sketch is good within this process only:
    strings hash differently in each.

    >>> sketch({"x": 1.2345, "city": "Oslo"}, 3) == sketch({"city": "Oslo", "x": 1.2301}, 3)
    True
    >>> sketch({"x": 1.2345}, 3) == sketch({"x": 1.2401}, 3)
    False
    >>> sketch({"zip": 90210}, 3) == sketch({"zip": 90212}, 3), sketch({"x": -1}, 3) == sketch({"x": -2}, 3)
    (False, False)
    """
    # as texts, since Python hashes -1 and -2 alike; adding zero makes -0.0 one of the zeros
    return hash(
        frozenset(
            (name, f"{value + 0.0:.{digits}g}" if isinstance(value, float) else repr(value))
            for name, value in features.items()
        )
    )


class PendingRequests:
    """The requests of one partition in the order they were made, found by instance offset.

    Offsets may go back: a request at the end of a window is about any instance in it. `digits` says how many of each
    fraction's have to agree for two instances to be alike, 0 that none are.
    """

    __slots__ = ("_digits", "_gone", "_sketches", "_votes", "_waiting")

    def __init__(self, digits: int = 0) -> None:
        self._digits = digits
        self._sketches: Counter[int] = Counter()
        self._waiting: dict[int, LabelRequest] = {}
        self._gone: OrderedDict[int, Outcome] = OrderedDict()
        self._votes: dict[int, dict[str, Vote]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[LabelRequest]:
        return iter(self._waiting.values())

    def get(self, offset: int) -> LabelRequest | None:
        """Return the waiting request about the instance at an offset."""
        return self._waiting.get(offset)

    def votes(self, offset: int) -> tuple[Vote, ...]:
        """Return the votes on a waiting request so far, one of each annotator, in the order they first voted."""
        return tuple(self._votes.get(offset, {}).values())

    def count(self, vote: Vote) -> None:
        """Take a vote in; it replaces the annotator's former one."""
        self._votes.setdefault(vote.offset, {})[vote.annotator] = vote

    def gone(self, offset: int) -> Outcome | None:
        """Return the last outcome of a request that left not long ago."""
        return self._gone.get(offset)

    @property
    def oldest(self) -> LabelRequest | None:
        """The request that waits longest."""
        return next(iter(self._waiting.values()), None)

    def latest(self) -> Iterator[LabelRequest | Outcome]:
        """Yield what was asked not long ago: those that wait, then those that left, each the latest first."""
        yield from reversed(self._waiting.values())
        yield from reversed(self._gone.values())

    def add(self, request: LabelRequest) -> None:
        """Let a request wait."""
        if self._digits and request.offset not in self._waiting:
            self._sketches[sketch(request.features, self._digits)] += 1
        self._waiting[request.offset] = request

    def remove(self, outcome: Outcome) -> None:
        """Let a request leave, if it waits, and remember what became of it."""
        left = self._waiting.pop(outcome.offset, None)
        if self._digits and left is not None:
            known = sketch(left.features, self._digits)
            self._sketches[known] -= 1
            if not self._sketches[known]:
                del self._sketches[known]
        self._votes.pop(outcome.offset, None)
        self._gone[outcome.offset] = outcome
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

    def like(self, features: Features) -> bool:
        """Say whether an instance like this one waits for its answer."""
        return bool(self._sketches) and sketch(features, self._digits) in self._sketches

    def split(self, instances: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
        """Return those that are like none that waits and none before them, and the others."""
        if not self._digits:
            return list(instances), []
        first: dict[int, Instance] = {}
        others = []
        for instance in instances:
            found = sketch(instance.features, self._digits)
            if found in self._sketches or first.setdefault(found, instance) is not instance:
                others.append(instance)
        return list(first.values()), others

    def expired(self, now: float) -> list[LabelRequest]:
        """Return the requests whose time is up, oldest first; they stay until removed.

        Requests expire in the order they were made, since all wait equally long; after the expiry was shortened, later
        ones wait for earlier ones. Those made while there was no expiry wait for ever and hold nobody up.
        """
        found = []
        for request in self._waiting.values():
            if request.expires_at is None:
                continue
            if request.expires_at > now:
                break
            found.append(request)
        return found

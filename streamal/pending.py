"""Label requests that wait for their answer, with the features they were asked about.

Verification latency is normal: answers come hours later, out of order, or never. A request leaves by its first valid
answer, or the last where it waits for several, by expiry, or because it was cancelled. The last `REMEMBERED` that left
are kept with their outcome: so a late or second answer can be told from one to a request that never was, and a later
revision can correct what was said.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from streamal.messages import LabelRequest, Outcome, Vote

REMEMBERED: Final = 1_024
"""About 2 MB per partition with 8 features, since a correction needs the features once more."""


class PendingRequests:
    """The requests of one partition in the order they were made, found by instance offset.

    Offsets may go back: a request at the end of a window is about any instance in it.
    """

    __slots__ = ("_gone", "_votes", "_waiting")

    def __init__(self) -> None:
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
        self._waiting[request.offset] = request

    def remove(self, outcome: Outcome) -> None:
        """Let a request leave, if it waits, and remember what became of it."""
        self._waiting.pop(outcome.offset, None)
        self._votes.pop(outcome.offset, None)
        self._gone[outcome.offset] = outcome
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)

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

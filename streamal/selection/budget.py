"""Permission to ask: the bounds that hold at every prefix of a partition, whatever strategy, crash or replay.

**Rate.** With labelling rate B, instances seen n, and exploration's accrued share A (the sum of 1/L over instances, see
`streamal.selection.exploration`), a selected request needs a whole token, where ``tokens = B*n - A - selected`` is
capped at ``burst - 2``. Exploration needs none: it makes at most A + 1 - 1/L requests. Together

    asked = selected + explored <= (B*n - A) + (A + 1) = B*n + 1,

and in any window of n instances ``asked <= burst + B*n``. A **loan** lets a cold model ask for its first labels in
advance: while the rate has not caught up with it, at instance n = loan / B, a request is made whenever `asked` falls
behind ``loan * (B*n / loan) ^ (1/3)``, as long as this request and the exploration still to come stay within the loan.
So ``asked <= max(loan, B*n + 1)``. It is spread so, dense at first and ever thinner, since the beginning of a stream
seldom looks like the rest, and a loan that is spent there leaves nothing to learn from until it is repaid. Without a
loan tokens begin at -1 and exploration begins once B*n reaches 1, which gives the strict ``asked <= B*n``.

**Further permits**: requests per period, cost per period, and requests waiting for an answer. Periods are fixed
stretches of the log's own timestamps, which may only go forward, so a clock that jumps back cannot open a period
twice. Where one of these binds, tokens pile up and the strategy wants all it sees; so the plan may spare the last
places of the queue and of each period for exploration, which would find none otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from streamal.errors import ConfigError

DEFAULT_BURST: Final = 25.0
"""Unused allowance kept per partition, in labels: room for every strategy to steer, minutes of an annotator's work."""
LEAST_BURST: Final = 3.0
FULL_PART: Final = 0.93
"""Of the most tokens that are kept: by default a label or two below."""
LOAN_SPREAD: Final = 1.0 / 3.0
"""The power of time with which a loan is taken up; 1 would be as if there were none."""
FORMER_LIMITS: Final = 8
"""Limits that were taken away whose use is remembered, at most: the ledger has to stay small."""

Permit = Literal["paused", "rate", "queue_full", "limit_count", "limit_cost"]


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` requests, or requests costing at most `most`, in each period of `per` seconds."""

    kind: Literal["count", "cost"]
    most: float
    per: float


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What one partition may spend; `expiry` in seconds, None for never. While `paused` nothing is asked at all.

    The last `spare` places of the queue and of each period are exploration's, unless nothing else was asked.
    """

    rate: float
    loan: int = 20
    burst: float = DEFAULT_BURST
    limits: tuple[Limit, ...] = ()
    max_pending: int = 10_000
    expiry: float | None = None
    refund_expired: bool = False
    paused: bool = False
    spare: int = 0

    def deal(self, partitions: int, *, burst: float | None = None) -> list[BudgetPlan]:
        """Share the whole stream's absolute numbers out to its partitions; `burst` None keeps this plan's for each.

        >>> [plan.loan for plan in BudgetPlan(rate=0.05, loan=6).deal(4)]
        [2, 2, 1, 1]

        Raises:
            ConfigError: a share is too small to ever ask.
        """
        each = self.burst if burst is None else burst / partitions
        if each < LEAST_BURST:
            message = (
                f"budget.burst = {burst} gives each of {partitions} partitions {each:g} labels; expected at least "
                f"{LEAST_BURST:g} each: set it to {LEAST_BURST * partitions:g} or more, or leave it out"
            )
            raise ConfigError(message)
        loans = deal(self.loan, partitions)
        queues = deal(self.max_pending, partitions)
        counts = [deal(int(limit.most), partitions) for limit in self.limits]
        wholes = [("max_pending", self.max_pending)]
        wholes += [("limits: count", int(limit.most)) for limit in self.limits if limit.kind == "count"]
        for name, total in wholes:
            if total < partitions:
                message = (
                    f"budget.{name} = {total} is shared by {partitions} partitions, so some could never ask; expected "
                    f"{partitions} or more, or fewer partitions"
                )
                raise ConfigError(message)
        return [
            BudgetPlan(
                rate=self.rate,
                loan=loans[p],
                burst=each,
                limits=tuple(
                    Limit(limit.kind, counts[i][p] if limit.kind == "count" else limit.most / partitions, limit.per)
                    for i, limit in enumerate(self.limits)
                ),
                max_pending=queues[p],
                expiry=self.expiry,
                refund_expired=self.refund_expired,
                paused=self.paused,
                spare=self.spare,
            )
            for p in range(partitions)
        ]


def deal(total: int, partitions: int) -> list[int]:
    """Share a whole number out in equal parts, remainders to the lowest partitions.

    >>> deal(10, 4)
    [3, 3, 2, 2]
    """
    part, rest = divmod(total, partitions)
    return [part + (p < rest) for p in range(partitions)]


class Budget:
    """The permits of one partition.

    `tokens` is the allowance for selected requests; negative while a loan is unpaid.
    """

    __slots__ = (
        "_cap",
        "_earned",
        "_former",
        "_plan",
        "_since",
        "asked",
        "clock",
        "refunded",
        "seen",
        "tokens",
        "used",
    )

    def __init__(self, plan: BudgetPlan) -> None:
        self._plan = plan
        self._cap = plan.burst - 2.0
        self._earned = 0.0
        self._since = 0
        self.seen = 0
        self.asked = 0
        self.refunded = 0
        self.tokens = 0.0 if plan.loan else -1.0
        self.clock = 0.0
        self.used: list[tuple[int, float]] = [(0, 0.0) for _ in plan.limits]
        self._former: list[list[Any]] = []

    @property
    def cap(self) -> float:
        """The most tokens that are kept."""
        return self._cap

    @property
    def full(self) -> bool:
        """Whether nearly all tokens that are kept lie unused, so that what is not asked now is soon lost."""
        return self.tokens >= FULL_PART * self._cap

    @property
    def first_exploration(self) -> int:
        """The number of the first instance that exploration may ask about."""
        return self.settle(0.0)

    @property
    def allowed(self) -> float:
        """What the rates so far allow by now, with refunds; the loan and exploration's advance of 1 come on top."""
        return self._earned + self._plan.rate * (self.seen - self._since) + self.refunded

    def accrue(self, floor: float, timestamp: float) -> None:
        """Count one more instance; `floor` is exploration's share of it, `timestamp` the log's, in seconds."""
        self.seen += 1
        tokens = self.tokens + self._plan.rate - floor
        self.tokens = tokens if tokens < self._cap else self._cap
        if timestamp > self.clock:
            self.clock = timestamp

    def may_borrow(self, to_come: Callable[[float], int]) -> bool:
        """Say whether the loan advances this request.

        Room is kept for the exploration requests that are `to_come` before a number of instances, that of its end.
        """
        end = self.loan_end
        if self.seen >= end:
            return False
        loan, wanted = self._plan.loan, self.asked + 1
        return wanted <= loan * (self.seen / end) ** LOAN_SPREAD and wanted + to_come(end) <= loan

    @property
    def loan_end(self) -> float:
        """The number of instances at which the rate has caught up with the loan, after all that was earned so far."""
        return self._since + (self._plan.loan - self._earned - self.refunded) / self._plan.rate

    def refusal(self, cost: float, pending: int, *, free: bool, explored: bool = False) -> Permit | None:
        """Say which permit a request lacks, or None when it may be made; `free` ones need no token.

        What is not `explored` leaves room for spare ones that cost as much.
        """
        spare = 0 if explored else self._plan.spare
        if self._plan.paused:
            return "paused"
        if not free and self.tokens < 1.0:
            return "rate"
        if pending + (spare if pending else 0) >= self._plan.max_pending:
            return "queue_full"
        for (period, used), limit in zip(self.used, self._plan.limits, strict=True):
            spent = used if period == int(self.clock // limit.per) else 0.0
            amount = 1.0 if limit.kind == "count" else cost
            if spent + amount * (1 + spare if spent else 1) > limit.most:
                return "limit_count" if limit.kind == "count" else "limit_cost"
        return None

    def spend(self, cost: float, *, explored: bool) -> None:
        """Take note of a request that was made."""
        self.asked += 1
        if not explored:
            self.tokens -= 1.0
        for i, limit in enumerate(self._plan.limits):
            period, used = self.used[i]
            now = int(self.clock // limit.per)
            amount = 1.0 if limit.kind == "count" else cost
            self.used[i] = (now, amount if period != now else used + amount)

    def refund(self) -> None:
        """Give back the allowance of a request that expired, if the plan says so; periods and costs stay spent."""
        if self._plan.refund_expired:
            self.refunded += 1
            self.tokens = min(self._cap, self.tokens + 1.0)

    def settle(self, owed: float) -> int:
        """Close exploration's account, of which so much is `owed`; returns the instance a new one may begin with.

        Needed where the rate changes: a block that goes on at another rate could be more than the new one earns. What
        exploration has overdrawn is earned first, and so is a loan.
        """
        self.tokens = min(self._cap, self.tokens + owed)
        return self.seen + max(1, math.ceil(-self.tokens / self._plan.rate - 1e-9))

    def state(self) -> dict[str, Any]:
        """Return the exact state."""
        return {
            "seen": self.seen,
            "asked": self.asked,
            "refunded": self.refunded,
            "tokens": self.tokens,
            "clock": self.clock,
            "used": [
                *([limit.kind, limit.per, *used] for limit, used in zip(self._plan.limits, self.used, strict=True)),
                *(found for found in self._former if self._current(found)),
            ],
            "rate": self._plan.rate,
            "earned": self._earned,
            "since": self._since,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`; a plan with another rate earns by it from here on, and a new limit begins unused.

        What a limit that is no longer there had used in a period that still lasts is kept, should it come back.
        """
        self.seen, self.asked, self.refunded = state["seen"], state["asked"], state["refunded"]
        self.tokens, self.clock = min(self._cap, state["tokens"]), state["clock"]
        self._earned, self._since = state["earned"], state["since"]
        if state["rate"] != self._plan.rate:
            self._earned += state["rate"] * (self.seen - self._since)
            self._since = self.seen
        used = {(kind, per): (int(period), float(spent)) for kind, per, period, spent in state["used"]}
        self.used = [used.pop((limit.kind, limit.per), (0, 0.0)) for limit in self._plan.limits]
        former = [[kind, per, *found] for (kind, per), found in used.items()]
        self._former = [found for found in former if self._current(found)][-FORMER_LIMITS:]

    def _current(self, used: Sequence[Any]) -> bool:
        """Say whether the period of what a former limit has used still lasts."""
        _, per, period, _ = used
        return bool(period == int(self.clock // per))

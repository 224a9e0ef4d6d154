"""The open window of one partition: instances that are gathered, to be compared when the window ends.

What is exact of it lies in the ledger: how many instances it has, where it began, and which of them are decided already
(one bit each). The instances themselves are read back from the log by a new owner; what the log has forgotten by then
counts as decided, so the window still ends where it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from streamal.errors import ConfigError
from streamal.messages import Instance
from streamal.selection.budget import BudgetPlan
from streamal.selection.strategy import Chooser


def fitting(size: int, plan: BudgetPlan) -> int:
    """Return how many instances a window may have, at most `size`, so that the burst holds what they earn.

    Of the burst, two labels are exploration's, and less than one may be left over from the window before.

    >>> fitting(500, BudgetPlan(rate=0.01)), fitting(500, BudgetPlan(rate=0.05))
    (500, 440)
    """
    return max(1, min(size, int((plan.burst - 3.0) / plan.rate + 1e-9)))


def check(size: int, plan: BudgetPlan) -> None:
    """Refuse a window that was set to be longer than the burst allows.

    >>> check(440, BudgetPlan(rate=0.05))
    >>> check(500, BudgetPlan(rate=0.05))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    streamal.errors.ConfigError: strategy.parameters.pool_window = 500 earns 25 labels at a rate of 0.05, but ...

    Raises:
        ConfigError: it is longer; the message says how long it may be, and which burst holds it.
    """
    if (most := fitting(size, plan)) < size:
        message = (
            f"strategy.parameters.pool_window = {size} earns {size * plan.rate:g} labels at a rate of {plan.rate:g}, "
            f"but a partition's burst of {plan.burst:g} leaves room for {plan.burst - 3.0:g}: leave pool_window out, "
            f"for windows of {most}, or set budget.burst to {math.ceil(size * plan.rate + 3.0)} or more per partition"
        )
        raise ConfigError(message)


def begin(ledger: Mapping[str, Any] | None, position: int) -> int:
    """Return the offset at which the window that is open in a ledger began; `position` where none is open.

    >>> begin({"window": {"first": 41, "count": 2, "decided": "0"}}, 50), begin({}, 50)
    (41, 50)
    """
    window = (ledger or {}).get("window")
    return int(window["first"]) if window and window["count"] else position


class Window:
    """The instances since the last window's end, in offset order; memory: at most as many as a window has.

    `chooser` is who compares them.
    """

    __slots__ = ("_first", "_open", "_size", "chooser")

    def __init__(self, chooser: Chooser) -> None:
        self.chooser = chooser
        self._size = chooser.size
        self._first = 0
        self._open: list[Instance | None] = []

    def __len__(self) -> int:
        return len(self._open)

    def fit(self, plan: BudgetPlan) -> None:
        """Let windows be as long as this budget allows, from the open one on."""
        self._size = fitting(self.chooser.size, plan)

    def add(self, instance: Instance, *, decided: bool) -> None:
        """Take in the next instance; one that is decided only counts."""
        if not self._open:
            self._first = instance.offset
        self._open.append(None if decided else instance)

    @property
    def full(self) -> bool:
        """Whether the window is to end now."""
        return len(self._open) >= self._size

    @property
    def waits(self) -> bool:
        """Whether the last instance is to be decided at the window's end."""
        return bool(self._open) and self._open[-1] is not None

    def end(self) -> list[Instance]:
        """End the window and begin the next one; returns the instances that are not decided."""
        found = [instance for instance in self._open if instance is not None]
        self._open = []
        return found

    def state(self) -> dict[str, Any]:
        """Return the exact state; `decided` is a hexadecimal number with a bit per instance, the first one in front."""
        bits = "".join(str(int(instance is None)) for instance in self._open)
        return {"first": self._first, "count": len(self._open), "decided": f"{int(bits or '0', 2):x}"}

    def restore(self, state: Mapping[str, Any], recent: Sequence[Instance]) -> None:
        """Go on from a `state`, given the last instances before the position, as far as the log has kept them.

        An empty one, as another strategy leaves it, is a fresh start.
        """
        count = state.get("count", 0)
        if not count:
            return
        self._first = state["first"]
        kept = [instance for instance in recent if instance.offset >= self._first][-count:]
        lost = count - len(kept)
        bits = f"{int(state['decided'], 16):0{count}b}"[lost:]
        self._open = [None] * lost
        self._open += [None if bit == "1" else instance for instance, bit in zip(kept, bits, strict=True)]

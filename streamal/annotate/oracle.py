"""A simulated annotator: knows the true labels, and answers late, wrongly, or not at all, as real ones do.

Times are in whatever unit the caller counts: rows in a simulation, seconds in the demo. The draws depend on seed,
annotator and request only, so two runs with the same requests get the same answers, and several annotators err
independently of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Final, Literal

from streamal.errors import ConfigError
from streamal.messages import Label, Task
from streamal.selection.coin import UNIT, Coin

DelayDistribution = Literal["constant", "exponential", "lognormal"]

ERROR: Final = 0
SILENCE: Final = 1
WRONG: Final = 2
LATENESS: Final = 3
DRAWS: Final = 4
"""Kinds of draws: each annotator has as many coins."""
NORMAL: Final = NormalDist()
LOG_DEVIATION: Final = 1.0
"""Of a lognormal delay: half of the answers take less than 0.61 of the mean, 1 % more than 6.2 times it."""


@dataclass(frozen=True, slots=True)
class Oracle:
    """Answers `delay` after it was asked, on average; wrong with chance `error`, never with chance `silence`.

    Delays that are not constant let answers come out of order. Exponential ones are those of a queue served at random,
    lognormal ones those of people: most are quick, and some take very long. `number` tells several annotators apart,
    who keep silent about the same requests: there a request is either taken up by as many as it needs, or lost.
    """

    delay: float = 0.0
    error: float = 0.0
    silence: float = 0.0
    seed: int = 0
    distribution: DelayDistribution = "constant"
    number: int = 0

    @property
    def name(self) -> str:
        """What it signs its answers with."""
        return f"oracle-{self.number + 1}"

    def check(self, task: Task) -> None:
        """Refuse mistakes about numbers.

        Raises:
            ConfigError: it errs, and the labels are numbers.
        """
        if self.error and task == "regression":
            message = (
                "--annotator-error is the share of answers that name another class, and a regression has none: leave "
                "it out, or choose a classifier by --model"
            )
            raise ConfigError(message)

    def team(self, size: int) -> list[Oracle]:
        """Return so many who are alike, and err and are late independently of each other.

        >>> [one.name for one in Oracle().team(2)]
        ['oracle-1', 'oracle-2']
        """
        return [replace(self, number=number) for number in range(size)]

    def answer(self, offset: int, truth: Label, classes: list[str]) -> Label | None:
        """Return what it says about the instance at an offset, or None for silence.

        A mistake is another class, drawn uniformly; see `check` for numbers.

        >>> Oracle().answer(7, "ok", ["ok", "fraud"]), Oracle(error=1.0).answer(7, "ok", ["ok", "fraud"])
        ('ok', 'fraud')
        >>> Oracle(silence=1.0).answer(7, "ok", ["ok", "fraud"]) is None
        True
        """
        if Coin(self.seed, SILENCE).draw(offset) < self.silence:
            return None
        others = [other for other in classes if other != truth]
        if isinstance(truth, str) and others and self._draw(ERROR, offset) < self.error:
            return others[int(self._draw(WRONG, offset) * len(others))]
        return truth

    def latency(self, offset: int) -> float:
        """Return how long it takes to answer about the instance at an offset: 0 or more, `delay` on average.

        >>> Oracle(delay=100.0).latency(7)
        100.0
        >>> round(Oracle(delay=100.0, distribution="exponential").latency(7), 1)
        87.6
        """
        if self.distribution == "constant":
            return self.delay
        drawn = self._draw(LATENESS, offset)
        if self.distribution == "exponential":
            return -self.delay * math.log1p(-drawn)
        return self.delay * math.exp(LOG_DEVIATION * (NORMAL.inv_cdf(max(UNIT, drawn)) - LOG_DEVIATION / 2))

    def _draw(self, kind: int, offset: int) -> float:
        return Coin(self.seed, DRAWS * self.number + kind).draw(offset)

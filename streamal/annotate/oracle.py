"""A simulated annotator: knows the true labels, and answers late, wrongly, or not at all, as real ones do.

Times are in whatever unit the caller counts: rows in a simulation, seconds in the demo. The draws depend on seed and
request only, so two runs with the same requests get the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from streamal.messages import Label
from streamal.selection.coin import Coin

ERROR: Final = 0
SILENCE: Final = 1
WRONG: Final = 2


@dataclass(frozen=True, slots=True)
class Oracle:
    """Answers `delay` after it was asked; wrong with chance `error`, never with chance `silence`."""

    delay: float = 0.0
    error: float = 0.0
    silence: float = 0.0
    seed: int = 0

    def answer(self, offset: int, truth: Label, classes: list[str]) -> Label | None:
        """Return what it says about the instance at an offset, or None for silence.

        A mistake is another class, drawn uniformly; a regression target is never mistaken.

        >>> Oracle().answer(7, "ok", ["ok", "fraud"]), Oracle(error=1.0).answer(7, "ok", ["ok", "fraud"])
        ('ok', 'fraud')
        >>> Oracle(silence=1.0).answer(7, "ok", ["ok", "fraud"]) is None
        True
        """
        if self._draw(SILENCE, offset) < self.silence:
            return None
        others = [other for other in classes if other != truth]
        if isinstance(truth, str) and others and self._draw(ERROR, offset) < self.error:
            return others[int(self._draw(WRONG, offset) * len(others))]
        return truth

    def _draw(self, kind: int, offset: int) -> float:
        return Coin(self.seed, kind).draw(offset)

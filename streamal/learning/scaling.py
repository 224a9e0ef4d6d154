"""Zero mean and unit variance, from the moments of all instances or, as in River, of the labelled ones only.

The state is River's `StandardScaler`. Its `transform_one` stores every name it is asked about, so predicting unseen
names would grow the model without bound and change its snapshot; the transformation here is the same arithmetic and
only reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from river.preprocessing import StandardScaler

from streamal.learning.encoding import Columns
from streamal.learning.moments import REAL, merge_moments
from streamal.messages import Features, Moment

FARTHEST: Final = 10.0
"""Standard deviations; values beyond count as this far. Moments lag behind the stream, so a first outlier can be
thousands of deviations away, and one gradient step on it ruins a linear model. Selected labels seek outliers: there
this is worth .04 kappa on a 2 % stream, and costs nothing elsewhere; 5 to 20 are equal within noise."""
MAX_SCALED: Final = 10_000
"""Names with moments; on a stream of random names the first ones stay and the model does not grow."""


def bounded(scaled: float) -> float:
    """Return a scaled value within the bounds.

    >>> bounded(3.5), bounded(-200.0)
    (3.5, -10.0)
    """
    return FARTHEST if scaled > FARTHEST else -FARTHEST if scaled < -FARTHEST else scaled


class Scaling:
    """Scales numbers; indicator columns and booleans pass as they are.

    >>> scaling = Scaling()
    >>> scaling.merge({"x": Moment(size=4, mean=10.0, deviation=16.0)})
    >>> scaling.scale({"x": 12.0, "new": 3.0, "city=Oslo": 1.0}, {"x": 12.0, "new": 3.0, "city": "Oslo"})
    {'x': 1.0, 'new': 0.0, 'city=Oslo': 1.0}
    """

    def __init__(self) -> None:
        self._river = StandardScaler()

    def merge(self, moments: Mapping[str, Moment]) -> None:
        """Take in the moments of more instances."""
        counts, means, variances = self._river.counts, self._river.means, self._river.vars
        for name, moment in moments.items():
            if name not in counts and len(counts) >= MAX_SCALED:
                continue
            count = counts.get(name, 0)
            known = Moment(count, means.get(name, 0.0), variances.get(name, 0.0) * count)
            merged = merge_moments(known, moment)
            if merged.size:
                counts[name], means[name] = merged.size, merged.mean
                variances[name] = merged.deviation / merged.size

    def learn(self, features: Features) -> None:
        """Take in one instance, by River's own update."""
        numbers = {name: value for name, value in features.items() if type(value) in REAL}
        self._river.learn_one(numbers)

    def scale(self, columns: Columns, features: Features) -> dict[str, float]:
        """Return the columns scaled and bounded; a number without a spread so far becomes 0, as in River."""
        means, variances = self._river.means, self._river.vars
        scaled = {}
        for name, value in columns.items():
            if name in variances:
                variance = variances[name]
                scaled[name] = bounded((value - means[name]) / variance**0.5) if variance else 0.0
            else:
                scaled[name] = 0.0 if type(features.get(name)) in REAL else value
        return scaled

    def moment(self, name: str) -> tuple[float, float] | None:
        """Return mean and standard deviation of a name, or None when it is unknown."""
        if name not in self._river.vars:
            return None
        return self._river.means[name], self._river.vars[name] ** 0.5

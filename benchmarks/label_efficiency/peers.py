"""The query strategies of other libraries, written anew from their papers: fast, and deciding as those do.

A `Peer` is a strategy as it is shipped, with its own budget, its own random numbers and its own thresholds: a measure
gives the utility of an instance, a gate says whether it is asked about. All stream strategies of scikit-activeml 1.0.1
and River 0.26's sampler are here; `tests/benchmarks/test_peers.py` checks instance by instance that each decides as the
library itself does, which takes up to a thousand times as long. For that a few sums are rounded in the library's order.

Where a library leaves a choice to its user it is made in the peer's favour: all classes are known beforehand, and a
classifier that knows nothing says 1/C for each, as scikit-activeml's own do. River's sampler gets River's own empty
prediction, on which it never asks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from random import Random
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import factorial, gammaln

from streamal.messages import Features, Prediction
from streamal.selection.strategy import Proposal, Standing, Unmindful
from streamal.selection.utility import top_two

Vector = NDArray[np.float64]

WINDOW: Final = 100
"""Instances over which most budgets are estimated, and to which the quantile and the density look back."""
STEP: Final = 0.01
RANDOM_PART: Final = 0.1
TOLERANCE: Final = 50.0
"""Labels over which the quantile filter makes up for having spent too much or too little."""
COGNITION: Final = 10
PRIOR: Final = 1e-3
MOST_LABELS: Final = 2
EVIDENCE: Final = 300
"""Instances asked about that the Parzen window keeps; scikit-activeml's own examples train on as many."""
KERNEL_ERROR: Final = math.sqrt(2.0) * 1e-6
DISCOUNT: Final = 3.0
SEEDS: Final = 2**31 - 1
AHEAD: Final = 1_024


class Measure(Protocol):
    """What an answer would be worth to a peer."""

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Return the utility of an instance, NaN if the peer does not consider it; changes nothing."""

    def note(self, features: Vector, *, asked: bool) -> None:
        """Take note of the instance just decided."""


class Gate(Protocol):
    """Which utilities are worth asking, within the peer's own budget."""

    def opens(self, utility: float) -> bool:
        """Say whether to ask; changes nothing."""

    def note(self, utility: float, *, asked: bool) -> None:
        """Take note of the instance just decided."""


class Peer:
    """A measure and a gate; `skips` if the gate, and so the budget, is not told of what the measure leaves out."""

    def __init__(self, measure: Measure, gate: Gate, *, skips: bool = False) -> None:
        self._measure = measure
        self._gate = gate
        self._skips = skips

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Return the utility of an instance, NaN if it is not considered."""
        return self._measure.utility(features, prediction)

    def wants(self, utility: float) -> bool:
        """Say whether it asks about an instance of this utility."""
        return not (self._skips and math.isnan(utility)) and self._gate.opens(utility)

    def note(self, features: Vector, utility: float, *, asked: bool) -> None:
        """Take note of what was done; called once for each instance, in their order."""
        self._measure.note(features, asked=asked)
        if not (self._skips and math.isnan(utility)):
            self._gate.note(utility, asked=asked)


class OnLedger(Unmindful):
    """A peer as a query strategy: what it wants is asked about if the budget permits.

    Its own budget counts what it wanted, as it would where nobody refuses, and what was asked without its wish; so its
    thresholds are those of the peer as it is shipped.
    """

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def propose(self, features: Features, prediction: Prediction, standing: Standing) -> Proposal:
        """Return 1 if the peer wants to ask, else 0."""
        utility = self._peer.utility(vector(features), prediction)
        return Proposal(float(self._peer.wants(utility)), utility)

    def update(self, features: Features, prediction: Prediction, proposal: Proposal, *, asked: bool) -> None:
        """Tell the peer."""
        self._peer.note(vector(features), proposal.utility, asked=asked or proposal.propensity > 0.0)


def vector(features: Features) -> Vector:
    """Return the numbers of an instance; what is no number counts as 0.

    >>> vector({"x": 1.5, "city": "Oslo", "y": None})
    array([1.5, 0. , 0. ])
    """
    return np.array([float(value) if isinstance(value, int | float) else 0.0 for value in features.values()])


class Draws:
    """The uniform numbers of a `numpy.random.RandomState`, at which one may look ahead."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.RandomState(seed)
        self._next: deque[float] = deque()

    def peek(self, ahead: int = 0) -> float:
        """Return the next number, or one that comes later."""
        while len(self._next) <= ahead:
            self._next.extend(self._source.random_sample(AHEAD).tolist())
        return self._next[ahead]

    def normal(self) -> float:
        """Return the standard normal variable that the next numbers make by Marsaglia's polar method."""
        ahead = 0
        while True:
            x, y = 2.0 * self.peek(ahead) - 1.0, 2.0 * self.peek(ahead + 1) - 1.0
            square = x * x + y * y
            if 0.0 < square < 1.0:
                return math.sqrt(-2.0 * math.log(square) / square) * y
            ahead += 2

    def skip(self, count: int = 1) -> None:
        """Go on by some numbers."""
        self.peek(count)
        for _ in range(count):
            self._next.popleft()


def handed_on(seed: int) -> int:
    """Return the seed that a strategy of scikit-activeml hands on to its budget.

    >>> handed_on(0)
    209652396
    """
    return int(np.random.RandomState(seed).randint(SEEDS))


class Purse(Protocol):
    """A peer's own account of what it has spent."""

    @property
    def left(self) -> bool:
        """Whether it may ask about the next instance."""

    def note(self, *, asked: bool) -> None:
        """Count an instance."""


class RecentPurse:
    """A decayed count over about `WINDOW` instances, tested before it is added to: so it overspends."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._spent = 0.0

    @property
    def left(self) -> bool:
        """Whether the estimate is below the rate."""
        return self._spent / WINDOW < self._rate

    def note(self, *, asked: bool) -> None:
        """Count an instance."""
        self._spent = self._spent * ((WINDOW - 1) / WINDOW) + asked


class LifetimePurse:
    """The share of all instances that were asked about."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._seen = self._asked = 0

    @property
    def left(self) -> bool:
        """Whether that share is below the rate."""
        return self._asked / (self._seen + 1) < self._rate

    def note(self, *, asked: bool) -> None:
        """Count an instance."""
        self._seen += 1
        self._asked += asked


class FixedGate:
    """Opens up to a fixed confidence. Zliobaite, Bifet, Pfahringer, Holmes 2014, as the next three."""

    def __init__(self, purse: Purse, rate: float, classes: int) -> None:
        self._purse = purse
        self._bar = 1 / classes + rate * (1 - 1 / classes)

    def opens(self, utility: float) -> bool:
        """Compare."""
        return self._purse.left and 1 - utility <= self._bar

    def note(self, utility: float, *, asked: bool) -> None:
        """Pay."""
        self._purse.note(asked=asked)


class VariableGate:
    """Opens below a bar that sinks with each request and rises otherwise, while there is budget."""

    def __init__(self, purse: Purse) -> None:
        self._purse = purse
        self._bar = 1.0

    def opens(self, utility: float) -> bool:
        """Compare."""
        return self._purse.left and 1 - utility < self._bar

    def note(self, utility: float, *, asked: bool) -> None:
        """Move the bar, and pay."""
        if self._purse.left:
            self._bar *= 1 - STEP if asked else 1 + STEP
        self._purse.note(asked=asked)


class RandomisedGate(VariableGate):
    """The same with a bar that is multiplied by a normal variable of mean and deviation 1."""

    def __init__(self, purse: Purse, seed: int) -> None:
        super().__init__(purse)
        self._draws = Draws(seed)

    def opens(self, utility: float) -> bool:
        """Compare."""
        return self._purse.left and 1 - utility < self._bar * (1.0 + self._draws.normal())

    def note(self, utility: float, *, asked: bool) -> None:
        """Go on by one number, however many made the variable."""
        self._draws.skip()
        super().note(utility, asked=asked)


class SplitGate(VariableGate):
    """In a tenth of the cases random at the budgeted rate, else the moving bar, which random cases leave alone."""

    def __init__(self, purse: Purse, rate: float, seed: int) -> None:
        super().__init__(purse)
        self._rate = rate
        self._draws = Draws(seed)

    def opens(self, utility: float) -> bool:
        """Toss for the kind, then for the instance, or compare."""
        if self._purse.left and self._draws.peek() < RANDOM_PART:
            return self._draws.peek(1) <= self._rate
        return super().opens(utility)

    def note(self, utility: float, *, asked: bool) -> None:
        """Move the bar unless it was random, and pay."""
        if not self._purse.left:
            self._purse.note(asked=asked)
        elif self._draws.peek() < RANDOM_PART:
            self._draws.skip(2)
            self._purse.note(asked=asked)
        else:
            self._draws.skip()
            super().note(utility, asked=asked)


class RandomGate:
    """Opens at random at the budgeted rate."""

    def __init__(self, purse: Purse, rate: float, seed: int) -> None:
        self._purse = purse
        self._rate = rate
        self._draws = Draws(seed)

    def opens(self, utility: float) -> bool:
        """Toss."""
        return self._purse.left and self._draws.peek() <= self._rate

    def note(self, utility: float, *, asked: bool) -> None:
        """Go on, and pay."""
        self._draws.skip()
        self._purse.note(asked=asked)


class QuantileGate:
    """Opens for the highest utilities of the last hundred, with a bar that follows what is left of the budget.

    The balanced incremental quantile filter of Kottke, Krempl, Spiliopoulou 2015. Where all utilities tie it opens.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._seen = self._asked = 0

    def opens(self, utility: float) -> bool:
        """Compare with the bar of a window that holds this utility already."""
        ranked = sorted([*self._recent, utility][-WINDOW:])
        left = self._rate * (self._seen + 1) - self._asked
        bar = quantile(ranked, 1 - self._rate) - (ranked[-1] - ranked[0]) * (left / TOLERANCE)
        return utility >= bar

    def note(self, utility: float, *, asked: bool) -> None:
        """Count, and take the utility in."""
        self._seen += 1
        self._asked += asked
        self._recent.append(utility)


def quantile(ranked: Sequence[float], share: float) -> float:
    """Return a quantile by linear interpolation, rounded as numpy rounds it.

    >>> quantile([1.0, 2.0, 4.0], 0.75)
    3.0
    """
    at = (len(ranked) - 1) * share
    below = math.floor(at)
    low, high = ranked[below], ranked[min(below + 1, len(ranked) - 1)]
    part = at - below
    return high - (high - low) * (1 - part) if part >= 0.5 else low + (high - low) * part


class PeriodicGate:
    """Opens whenever a whole label has accrued."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._seen = self._asked = 0

    def opens(self, utility: float) -> bool:
        """Compare."""
        return (self._seen + 1) * self._rate - self._asked >= 1

    def note(self, utility: float, *, asked: bool) -> None:
        """Count."""
        self._seen += 1
        self._asked += asked


class BernoulliGate:
    """Opens at random, without a budget besides its chance."""

    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._draws = Draws(seed)

    def opens(self, utility: float) -> bool:
        """Toss."""
        return self._draws.peek() >= 1 - self._rate

    def note(self, utility: float, *, asked: bool) -> None:
        """Go on."""
        self._draws.skip()


class ChanceGate:
    """Opens with a chance that is the utility, without any budget. River's sampler."""

    def __init__(self, seed: int) -> None:
        self._source = Random(seed)
        self._draw = self._source.random()

    def opens(self, utility: float) -> bool:
        """Toss."""
        return self._draw < utility

    def note(self, utility: float, *, asked: bool) -> None:
        """Go on."""
        self._draw = self._source.random()


class Blind:
    """Every instance is worth the same."""

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Return 0."""
        return 0.0

    def note(self, features: Vector, *, asked: bool) -> None:
        """Nothing to note."""


class Doubt(Blind):
    """The complement of the largest probability."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Look at the prediction alone."""
        return 1 - (max(prediction.values()) if prediction else 1 / self._classes)


class Entropy(Blind):
    """The entropy in units of the largest possible one, discounted; 0 for an empty prediction."""

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Look at the prediction alone."""
        chances = [chance for chance in prediction.values() if chance > 0]
        entropy = -sum(chance * math.log2(chance) for chance in chances)
        return (entropy / math.log2(len(chances))) ** DISCOUNT if entropy else 0.0


class Neighbours:
    """The last instances, each with its distance to the nearest one that came later, or before when it came."""

    def __init__(self, size: int, width: int) -> None:
        self._points = np.empty((2 * size, width))
        self._squares = np.empty(2 * size)
        self._nearest = np.empty(2 * size)
        self._size = size
        self._begin = self._end = 0

    def distances(self, point: Vector) -> Vector:
        """Return the distances of all to a point, rounded as scikit-learn rounds them."""
        held = slice(self._begin, self._end)
        products = (self._points[held] @ point[:, None])[:, 0]
        found: Vector = np.sqrt(np.maximum(-2.0 * products + self._squares[held] + square_of(point), 0.0))
        return found

    def closer(self, distances: Vector) -> NDArray[np.bool_]:
        """Say to which of them the point at these distances is nearer than any other was."""
        return distances < self._nearest[self._begin : self._end]

    def add(self, point: Vector, distances: Vector) -> None:
        """Take the point in; the oldest one goes when they are too many."""
        held = self._nearest[self._begin : self._end]
        np.minimum(held, distances, out=held)
        self._begin += self._end - self._begin == self._size
        if self._end == len(self._points):
            kept = self._end - self._begin
            for column in (self._points, self._squares, self._nearest):
                column[:kept] = column[self._begin : self._end]
            self._begin, self._end = 0, kept
        self._points[self._end] = point
        self._squares[self._end] = square_of(point)
        self._nearest[self._end] = distances.min(initial=np.inf)
        self._end += 1

    def drop(self, position: int) -> None:
        """Let one go."""
        at = self._begin + position
        for column in (self._points, self._squares, self._nearest):
            column[at : self._end - 1] = column[at + 1 : self._end]
        self._end -= 1


def square_of(point: Vector) -> float:
    """Return the squared length.

    >>> square_of(np.array([3.0, 4.0]))
    25.0
    """
    return float(np.einsum("i,i->", point, point))


class DenseMargin:
    """The complement of the margin where the instance is the new nearest neighbour of one of the last hundred.

    DBALStream; Ienco, Zliobaite, Pfahringer 2014.
    """

    def __init__(self, width: int) -> None:
        self._recent = Neighbours(WINDOW, width)

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Look for neighbours, then at the prediction."""
        if not self._recent.closer(self._recent.distances(features)).any():
            return math.nan
        first, second = top_two(prediction)
        return 1 - (first - second)

    def note(self, features: Vector, *, asked: bool) -> None:
        """Take the instance in."""
        self._recent.add(features, self._recent.distances(features))


class Cognition(Doubt):
    """The complement of the largest probability, with a small window that keeps what is recalled often and lately.

    Considered is what is the new nearest neighbour of one in the window. Liu et al. 2023.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes)
        self._window = Neighbours(COGNITION + 2, width)
        self._recalls: list[int] = []
        self._recalled: list[int] = []
        self._now = 0

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Look for neighbours, then at the prediction."""
        near = self._window.closer(self._window.distances(features)).any()
        return super().utility(features, prediction) if near else math.nan

    def note(self, features: Vector, *, asked: bool) -> None:
        """Recall those the instance is nearest to, take it in, and forget the weakest."""
        distances = self._window.distances(features)
        for position in np.flatnonzero(self._window.closer(distances)).tolist():
            self._recalls[position] += 1
            self._recalled[position] = self._now
        strengths = [
            math.exp(-1 / (recalls + 1) * (self._now - last))
            for recalls, last in zip(self._recalls, self._recalled, strict=True)
        ]
        self._window.add(features, distances)
        self._recalls.append(0)
        self._recalled.append(self._now)
        if len(strengths) > COGNITION:
            weakest = strengths.index(min(strengths))
            self._window.drop(weakest)
            del self._recalls[weakest], self._recalled[weakest]
        self._now += 1


class ProbabilisticGain:
    """Expected gain of accuracy near the instance, where evidence is a Parzen window over what was asked about.

    The evidence is shared out to the classes by the prediction, so that any model can be used, as with
    scikit-activeml's `metric="rbf"`. Kottke, Krempl, Spiliopoulou 2015.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._gain = ExpectedGain(classes)
        self._known: deque[Vector] = deque(maxlen=EVIDENCE)
        self._points = self._squares = self._votes = np.empty((0, 0))
        self._gamma = 0.0

    def utility(self, features: Vector, prediction: Prediction) -> float:
        """Weigh the evidence, then look at the prediction."""
        evidence = 0.0
        if self._known:
            squares = -2.0 * (features[None, :] @ self._points.T) + square_of(features) + self._squares
            evidence = float((np.exp(np.maximum(squares, 0.0) * -self._gamma) @ self._votes)[0, 0])
        chances = list(prediction.values()) or [1 / self._classes] * self._classes
        chances += [0.0] * (self._classes - len(chances))
        return self._gain(evidence * np.array(chances))

    def note(self, features: Vector, *, asked: bool) -> None:
        """Take the instance as evidence if it was asked about."""
        if asked:
            self._known.append(features)
            self._points = np.array(self._known)
            self._squares = np.einsum("ij,ij->i", self._points, self._points)
            self._votes = np.eye(1, self._classes).repeat(len(self._points), axis=0)
            self._gamma = bandwidth(self._points)


def bandwidth(points: Vector) -> float:
    """Return the bandwidth of a Gaussian kernel by the mean criterion of Chaudhuri et al. 2017.

    >>> bandwidth(np.array([[1.0, 2.0]]))
    0.5
    """
    count = max(2, len(points))
    spread = 2 * count * float(np.var(points, axis=0).sum())
    if spread <= 0.0:
        return 1.0 / int(points.shape[1])
    return 0.5 * (count - 1) * math.log((count - 1) / KERNEL_ERROR**2) / spread


class ExpectedGain:
    """By how much one or two labels, whichever gains more each, are expected to raise the accuracy at a point.

    It is called with the labels of each class near the point. Where no label could change what is predicted the gain is
    0, and scikit-activeml chooses among its rounding errors; so this adds up Beta functions in the order in which it
    does, instead of the closed form. Kottke, Krempl, Lang, Teschner, Spiliopoulou 2016.

    >>> gain = ExpectedGain(2)
    >>> round(gain(np.array([0.0, 0.0])), 3), round(abs(gain(np.array([5.0, 0.0]))), 3)
    (0.499, 0.0)
    """

    def __init__(self, classes: int) -> None:
        self._answers = np.array(
            [
                counts
                for labels in range(MOST_LABELS + 1)
                for counts in product(range(labels + 1), repeat=classes)
                if sum(counts) == labels
            ]
        )
        self._sizes = self._answers.sum(axis=1)
        self._ways = factorial(self._sizes) / np.prod(factorial(self._answers), axis=1)
        self._next = np.eye(classes)
        self._losses = 1 - self._next

    def __call__(self, counts: Vector) -> float:
        """Return the gain per label."""
        predicted = np.argmin((counts + self._answers) @ self._losses, axis=1)
        known = counts + PRIOR
        after = beta((known + self._answers)[:, None, :] + self._next)
        wrong = [loss @ chances for loss, chances in zip(self._losses[predicted], after, strict=True)]
        errors = 1 / beta(known) * np.bincount(self._sizes, self._ways * wrong)
        return float(np.max((errors[0] - errors[1:]) / np.arange(1, MOST_LABELS + 1)))


def beta(counts: Vector) -> Any:
    """Return the multivariate Beta function of the last axis.

    >>> round(float(beta(np.array([2.0, 3.0]))), 6)
    0.083333
    """
    return np.exp(np.sum(gammaln(counts), axis=-1) - gammaln(np.sum(counts, axis=-1)))


class Setting(NamedTuple):
    """What a peer is built for: its budget and seed, and the numbers of classes and of features."""

    rate: float
    seed: int
    classes: int
    width: int


def fixed(to: Setting) -> Gate:
    return FixedGate(RecentPurse(to.rate), to.rate, to.classes)


def variable(to: Setting) -> Gate:
    return VariableGate(RecentPurse(to.rate))


def randomised(to: Setting) -> Gate:
    return RandomisedGate(RecentPurse(to.rate), handed_on(to.seed))


def split(to: Setting) -> Gate:
    return SplitGate(RecentPurse(to.rate), to.rate, handed_on(to.seed))


def at_random(to: Setting) -> Gate:
    return RandomGate(RecentPurse(to.rate), to.rate, handed_on(to.seed))


def lifelong(to: Setting) -> Gate:
    return RandomisedGate(LifetimePurse(to.rate), handed_on(to.seed))


def doubting(gate: Callable[[Setting], Gate]) -> Callable[[Setting], Peer]:
    """Return how a peer is built that knows uncertainty alone."""
    return lambda to: Peer(Doubt(to.classes), gate(to))


def cognitive(gate: Callable[[Setting], Gate]) -> Callable[[Setting], Peer]:
    """Return how a peer is built that has a cognition window."""
    return lambda to: Peer(Cognition(to.classes, to.width), gate(to), skips=True)


PEERS: Final[Mapping[str, Callable[[Setting], Peer]]] = {
    "skactiveml.Split": doubting(split),
    "skactiveml.VariableUncertainty": doubting(variable),
    "skactiveml.RandomVariableUncertainty": doubting(randomised),
    "skactiveml.FixedUncertainty": doubting(fixed),
    "skactiveml.StreamProbabilisticAL": lambda to: Peer(ProbabilisticGain(to.classes), QuantileGate(to.rate)),
    "river.EntropySampler": lambda to: Peer(Entropy(), ChanceGate(to.seed)),
    "skactiveml.StreamDensityBasedAL": lambda to: Peer(DenseMargin(to.width), lifelong(to)),
    "skactiveml.CognitiveDualQueryStrategyRan": cognitive(at_random),
    "skactiveml.CognitiveDualQueryStrategyFixUn": cognitive(fixed),
    "skactiveml.CognitiveDualQueryStrategyVarUn": cognitive(variable),
    "skactiveml.CognitiveDualQueryStrategyRanVarUn": cognitive(randomised),
    "skactiveml.PeriodicSampling": lambda to: Peer(Blind(), PeriodicGate(to.rate)),
    "skactiveml.StreamRandomSampling": lambda to: Peer(Blind(), BernoulliGate(to.rate, to.seed)),
}
"""The peers by library and class."""

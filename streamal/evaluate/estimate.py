"""Live estimates of the served model on the whole stream, from the few labels that were asked for.

Accuracy on the answered requests is some 10 to 20 points too low, since hard instances were chosen. What makes an
honest figure possible is the exploration arm, whose requests owe nothing to the model. The window's instances fall into
two strata, and for each request it is recorded into which:

- **selected**: those that the strategy or the loan had asked about. All of them were, so they are a census of
  themselves. An exploration request that the strategy would have made anyhow belongs here.
- **rest**: all others, those that the strategy wanted and the budget refused among them. They are estimated by the
  exploration requests that the strategy would not have made: each instance of a block had the same chance of being one,
  and counts with its inverse.

A figure is the mean over both, weighted by their numbers of instances. The served model's prediction is the one it made
when the request was made, before it could learn from it. Of some exploration requests nobody can say whether they would
have been made anyhow: a strategy that compares the instances of a window does not know, and where a limit or a full
queue holds it back, what it wants is no longer what it gets. Then the exploration requests alone stand for all
instances (Hájek's mean). A synthetic request is about nothing in the stream and does not count.

Taken for granted: within a stratum, what is not answered (yet) is like what is; and a stretch in which exploration was
refused as well, by a pause, a limit or a full queue, is like the others. So the response rates are shown beside the
figures.

Intervals of 95 %: for accuracy, Wilson's for each stratum (Wilson, JASA 22, 1927), put together by squaring and adding
the distances of their ends (Newcombe, Statistics in Medicine 17, 1998), with Kish's effective number of labels where
weights differ and the finite population correction (Kish, Survey Sampling, 1965): a stratum with all its labels adds no
width. The recall of a class has Wilson's interval with Kish's number of its labels, the mean absolute error the normal
one, both from a number of audit labels on. Log loss and macro-F1 have none: a few huge losses, or overlooked instances
of a rare class, decide on them, and most windows hold none of these.

The improvement that the last labels brought is the difference between two stretches, which share no request and so are
independent: the later half and the earlier half, by audit labels, of a window that is longer. Its interval is put
together from theirs (Newcombe, as above). It compares the model as it was with the model as it is, each on the
instances of its time; so a stream that grows harder hides a gain, and one that grows easier feigns one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import NormalDist, fmean
from typing import Final

from streamal.evaluate.agreement import alpha, labels
from streamal.events import Event, ExampleLearned, InstancesDecided, LabelRequested, RequestResolved
from streamal.messages import MAX_NUMBER, VALUE, Label, LabelRequest, Outcome, best_label
from streamal.web.status import Estimate, Estimates, Improvement

AUDITS: Final = 200
"""Answered exploration requests that the window holds: the accuracy's interval is then about 4 points to either side,
and 6, 8, 12, 17 with 100, 50, 25, 13. More would be narrower and later to see a change."""
COMPARED: Final = 1_000
"""Answered exploration requests that the improvement is told from, half before and half after: its interval is then
about 4 to 5 points to either side, and 9 to 11 with 200. More would take in what the model learned long ago."""
REQUESTS: Final = 20_000
"""Requests that are held, however few exploration requests are among them: about 6 MB. With the default share of
exploration, `AUDITS` of them come with 4,000 requests, and `COMPARED` with all."""
LEAST: Final = 5
"""Audit labels without which nothing is claimed: with fewer, the interval spans most of what is possible."""
LEAST_OF_CLASS: Final = 10
"""Audit labels of a class from which on its recall has an interval: with 5 to 9 it held the truth in 92 % of 121 cases,
from here on in 97 % of 566 (seven streams, three models)."""
STEADY: Final = 100
"""Audit labels from which on the mean absolute error has an interval."""
WORTH: Final = 0.05
"""Gain of accuracy that must not go unseen where labels are said to pay no longer. An interval that includes zero is
not enough: with few labels most do, also 8 in 10 where 3 to 10 points were gained (benchmark `estimates/stopping`)."""
WORTH_OF_ERROR: Final = 0.1
"""The same for the mean absolute error, as a share of what it was before."""
LEAST_LOSS: Final = 1e-15
"""Probabilities are floored here, as in the prequential log loss."""
Z: Final = NormalDist().inv_cdf(0.975)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the ends of the 95 % interval of a share seen among `count` labels; infinitely many leave no doubt.

    >>> [round(end, 3) for end in wilson(0.9, 10)]
    [0.596, 0.982]
    >>> wilson(0.9, math.inf)
    (0.9, 0.9)
    """
    if math.isinf(count):
        return share, share
    doubt = Z * Z / count
    centre = (share + doubt / 2) / (1 + doubt)
    half = math.sqrt(doubt * share * (1 - share) + doubt * doubt / 4) / (1 + doubt)
    return centre - half, centre + half


@dataclass(slots=True)
class Asked:
    """One request of the window.

    `wanted` says whether the strategy or the loan asks or would have asked, None where nobody knows. `inverse` is that
    of an audit's propensity, `span` the number of instances since the request before, this one included; `said` the
    labels that several annotators gave.
    """

    offset: int
    audit: bool
    wanted: bool | None
    inverse: float
    span: int = 0
    revision: int = -1
    label: Label | None = None
    guess: str | None = None
    loss: float = 0.0
    said: Sequence[Label] = ()

    @classmethod
    def of(cls, request: LabelRequest) -> Asked:
        """Return what the window keeps of a request."""
        audit = request.reason == "exploration"
        wanted, propensity = (request.would_select, request.propensity) if audit else (True, 1.0)
        return cls(request.offset, audit, wanted, 1.0 / propensity)

    def answer(self, outcome: Outcome) -> None:
        """Take in what became of the request; a later revision counts, in whatever order they are heard of."""
        if outcome.revision < self.revision:
            return
        self.revision, self.label, self.said = outcome.revision, outcome.label, labels(outcome.votes)
        if isinstance(outcome.label, str):
            self.guess = best_label(outcome.prediction)
            self.loss = -math.log(max(LEAST_LOSS, outcome.prediction.get(outcome.label, 0.0)))
        elif outcome.label is not None:
            # capped, since the square of what a model that diverged says would not be a number
            self.loss = min(MAX_NUMBER, abs(outcome.label - outcome.prediction.get(VALUE, 0.0)))

    @property
    def hit(self) -> float:
        """1 where the model was right."""
        return float(self.guess == self.label)


class Tally:
    """Answered requests counted by weight, and the measures that this gives."""

    def __init__(self, answered: Iterable[tuple[float, Asked]]) -> None:
        self._total = self._loss = 0.0
        self._hits: dict[str, float] = defaultdict(float)
        self._labels: dict[str, float] = defaultdict(float)
        self._squares: dict[str, float] = defaultdict(float)
        self._guesses: dict[str, float] = defaultdict(float)
        for weight, asked in answered:
            self._total += weight
            self._loss += weight * asked.loss
            if isinstance(asked.label, str):
                self._labels[asked.label] += weight
                self._squares[asked.label] += weight * weight
                self._hits[asked.label] += weight * asked.hit
                if asked.guess is not None:
                    self._guesses[asked.guess] += weight

    def measures(self) -> dict[str, float]:
        """Return the measures by name: of classes, or of numbers."""
        if not self._labels:
            return {"mae": self._loss / self._total}
        return {
            "accuracy": sum(self._hits.values()) / self._total,
            "macro_f1": fmean(map(self._f1, sorted(self._labels.keys() | self._guesses.keys()))),
            "log_loss": self._loss / self._total,
        }

    def _f1(self, label: str) -> float:
        # `get`, since to index a defaultdict would make a class of each guess
        said = self._labels.get(label, 0.0) + self._guesses.get(label, 0.0)
        return 2.0 * self._hits.get(label, 0.0) / said

    def recall(self) -> dict[str, tuple[float, float]]:
        """Return the share of each class that was recognised, and how many labels drawn alike it is worth."""
        return {c: (self._hits[c] / weight, weight**2 / self._squares[c]) for c, weight in self._labels.items()}


@dataclass(slots=True)
class Stratum:
    """A part of the window's instances: how many they are, and how many requests are among them.

    `answered` are those with a label, each with its weight: for how many instances it stands, in proportion.
    """

    size: int = 0
    asked: int = 0
    answered: list[tuple[float, Asked]] = field(default_factory=list)

    def take(self, weight: float, asked: Asked) -> None:
        """Take in a request."""
        self.asked += 1
        if asked.label is not None:
            self.answered.append((weight, asked))

    @property
    def weight(self) -> float:
        """The sum of the weights."""
        return sum(weight for weight, _ in self.answered)

    def scaled(self) -> list[tuple[float, Asked]]:
        """Return the answers, each with the number of instances it stands for."""
        scale = self.size / self.weight
        return [(scale * weight, asked) for weight, asked in self.answered]

    @property
    def worth(self) -> float:
        """How many labels drawn alike the answers are worth; infinitely many when they are all there can be.

        >>> half = [(2.0, Asked(offset, True, False, 2.0, label="ok")) for offset in range(50)]
        >>> Stratum(100, 50, half).worth, Stratum(50, 50, half).worth
        (100.0, inf)
        """
        missing = 1.0 - len(self.answered) / self.size
        if missing <= 0.0:
            return math.inf
        return self.weight**2 / sum(weight * weight for weight, _ in self.answered) / missing

    def mean(self, score: Callable[[Asked], float]) -> float:
        """Return the weighted mean of a score of the answers."""
        return sum(weight * score(asked) for weight, asked in self.answered) / self.weight

    def variance(self, score: Callable[[Asked], float]) -> float:
        """Return the weighted variance of a score of the answers."""
        mean = self.mean(score)
        return self.mean(lambda asked: (score(asked) - mean) ** 2)


def accuracy_interval(value: float, strata: Sequence[Stratum]) -> tuple[float, float]:
    """Return the ends of the interval around an accuracy.

    >>> wrong = Asked(0, True, False, 1.0, label="ok", guess="bad")
    >>> rest = [(1.0, replace(wrong, guess="ok")) for _ in range(9)] + [(1.0, wrong)]
    >>> [round(end, 2) for end in accuracy_interval(0.9, [Stratum(9_990, 10, rest)])]
    [0.6, 0.98]
    """
    size = sum(stratum.size for stratum in strata)
    below = above = 0.0
    for stratum in strata:
        share, right = stratum.size / size, stratum.mean(lambda asked: asked.hit)
        low, high = wilson(right, stratum.worth)
        below += (share * (right - low)) ** 2
        above += (share * (high - right)) ** 2
    return max(0.0, value - math.sqrt(below)), min(1.0, value + math.sqrt(above))


def error_interval(value: float, strata: Sequence[Stratum]) -> tuple[float, float]:
    """Return the ends of the interval around a mean absolute error.

    >>> rest = [(1.0, Asked(0, True, False, 1.0, label=0.0, loss=loss)) for loss in (1.0, 3.0) * 50]
    >>> [round(end, 2) for end in error_interval(2.0, [Stratum(1_000_000, 100, rest)])]
    [1.8, 2.2]
    """
    size = sum(stratum.size for stratum in strata)
    variances = ((s.size / size) ** 2 * s.variance(lambda asked: asked.loss) / s.worth for s in strata)
    half = Z * math.sqrt(sum(variances))
    return max(0.0, value - half), value + half


@dataclass(slots=True)
class Stretch:
    """The requests of one stretch of the stream, by stratum; `drawn` are all its instances, as exploration drew them.

    `told_apart` says whether it is known of each request if the strategy asks or would have asked.
    """

    selected: Stratum
    rest: Stratum
    drawn: Stratum
    told_apart: bool

    @classmethod
    def of(cls, requests: Iterable[Asked], since: int = 0) -> Stretch:
        """Sort the requests; `since` instances have come after the last of them."""
        found = cls(Stratum(), Stratum(), Stratum(size=since), told_apart=True)
        for asked in requests:
            found.drawn.size += asked.span
            found.told_apart &= asked.wanted is not None
            if asked.wanted:
                found.selected.take(1.0, asked)
            else:
                found.rest.take(asked.inverse, asked)
            if asked.audit:
                found.drawn.take(asked.inverse, asked)
        found.selected.size = found.selected.asked
        found.rest.size = found.drawn.size - found.selected.asked
        return found

    @property
    def audits(self) -> int:
        """How many exploration requests are answered."""
        return len(self.drawn.answered)

    @property
    def answered(self) -> list[Asked]:
        """The requests with a label."""
        return [asked for _, asked in (*self.selected.answered, *self.rest.answered)]

    @property
    def untaught(self) -> int:
        """How many of them were made before the model had learned any class."""
        return sum(isinstance(asked.label, str) and asked.guess is None for asked in self.answered)

    @property
    def strata(self) -> list[Stratum]:
        """What the figures are put together from; nothing where too little is known."""
        parts = (self.selected, self.rest) if self.told_apart else (self.drawn,)
        found = [stratum for stratum in parts if stratum.size]
        return found if self.audits >= LEAST and all(stratum.answered for stratum in found) else []

    @property
    def classifies(self) -> bool:
        """Whether the labels are classes, as far as there are any."""
        return any(isinstance(asked.label, str) for _, asked in self.drawn.answered[:1])

    def figure(self) -> Estimate | None:
        """Return the accuracy, or the mean absolute error; None where too little is known."""
        strata, classes = self.strata, self.classifies
        if not strata:
            return None
        value = sum(s.size * s.mean(lambda a: a.hit if classes else a.loss) for s in strata) / self.drawn.size
        return self.measured("accuracy" if classes else "mae", value)

    def measured(self, name: str, value: float) -> Estimate:
        """Return a figure with its interval, where it has one."""
        low = high = None
        if name == "accuracy":
            low, high = accuracy_interval(value, self.strata)
        elif name == "mae" and self.audits >= STEADY:
            low, high = error_interval(value, self.strata)
        return Estimate(value, low, high, self.audits)


def improvement(earlier: Estimate, later: Estimate, labels: int, *, errors: bool = False) -> Improvement | None:
    """Return how much better the later figure is, with its interval, and whether `labels` more have paid.

    Figures of `errors` are better when they are lower. None where one of the two has no interval.

    >>> found = improvement(Estimate(0.70, 0.65, 0.75, 400), Estimate(0.80, 0.76, 0.84, 400), 8_000)
    >>> round(found.value, 2), round(found.low, 3), round(found.high, 3), found.audit_labels, found.pays
    (0.1, 0.036, 0.164, 800, True)
    """
    if earlier.low is None or earlier.high is None or later.low is None or later.high is None:
        return None
    value = later.value - earlier.value
    low = value - math.hypot(later.value - later.low, earlier.high - earlier.value)
    high = value + math.hypot(later.high - later.value, earlier.value - earlier.low)
    if errors:
        value, low, high = -value, -high, -low
    worth = WORTH_OF_ERROR * earlier.value if errors else WORTH
    pays = True if low > 0.0 else False if high < worth else None
    return Improvement(value, low, high, labels, earlier.labels + later.labels, pays)


class Estimator:
    """Two windows that end now, of at most `requests` requests.

    They reach back over the last `audits` answered exploration requests, for the figures, and over the last `compared`
    ones, for the improvement. An instance counts when it was decided on, in the stretch of the request that follows it;
    so requests, answers and instances of a window are the same ones, however late the answers come. Answers to requests
    that have left the windows, or were made before they began, are passed over.
    """

    def __init__(self, audits: float = AUDITS, requests: float = REQUESTS, compared: float = COMPARED) -> None:
        self._audits = audits
        self._requests = requests
        self._compared = max(audits, compared)
        self._asked: OrderedDict[tuple[int, int], Asked] = OrderedDict()
        self._batch: list[Asked] = []
        self._since = 0
        """Instances since the last request."""
        self._answered = 0
        """Exploration requests that are held and answered."""

    def observe(self, event: Event) -> None:
        """Take note of an event; those of one partition's batch come together, `InstancesDecided` last of them."""
        match event:
            case LabelRequested(request) if not request.synthetic:
                # under at-least-once delivery the same request may be made again
                place = request.partition, request.offset
                self._batch.append(self._asked.setdefault(place, Asked.of(request)))
            case InstancesDecided():
                self._count(event)
            case RequestResolved(outcome=outcome) | ExampleLearned(outcome=outcome):
                # What was asked here may be answered after the partition went to another worker.
                if (found := self._asked.get((outcome.partition, outcome.offset))) is not None:
                    self._answer(found, outcome)

    def _count(self, event: InstancesDecided) -> None:
        """Give each request of a batch the instances since the one before, and let what is too old go."""
        done = 0
        for asked in self._batch:
            # at the end of a window it may be about an instance that was counted long ago
            reached = max(done, bisect_right(event.offsets, asked.offset))
            asked.span += self._since + reached - done
            self._since, done = 0, reached
        self._since += event.count - done
        self._batch.clear()
        while self._answered > self._compared or len(self._asked) > self._requests:
            _, oldest = self._asked.popitem(last=False)
            self._answered -= oldest.audit and oldest.label is not None

    def _answer(self, asked: Asked, outcome: Outcome) -> None:
        self._answered -= asked.audit and asked.label is not None
        asked.answer(outcome)
        self._answered += asked.audit and asked.label is not None

    def estimate(self) -> Estimates:
        """Return what the windows say; goes over all of their requests."""
        held = list(self._asked.values())
        found = self._quality(Stretch.of(held[_after(held, self._answered - self._audits) :], self._since))
        return replace(found, improvement=self._improvement(held)) if found.measures else found

    def _quality(self, window: Stretch) -> Estimates:
        answered = window.answered
        found = Estimates(
            instances=window.drawn.size,
            audit_labels=window.audits,
            response={
                name: len(stratum.answered) / stratum.asked
                for name, stratum in (("selected", window.selected), ("rest", window.rest))
                if stratum.asked
            },
            alpha=alpha(asked.said for asked in self._asked.values()),
            answered=len(answered),
            untaught=window.untaught,
        )
        strata = window.strata
        if not strata:
            return found
        whole = Tally(pair for stratum in strata for pair in stratum.scaled())
        naive = Tally((1.0, asked) for asked in answered)
        return replace(
            found,
            measures={name: window.measured(name, value) for name, value in whole.measures().items()},
            recall=_recalled(whole, window.drawn),
            naive=naive.measures(),
        )

    def _improvement(self, held: Sequence[Asked]) -> Improvement | None:
        """Compare the halves of what is held, each with as many audit labels; nothing while the later is untaught."""
        middle = _after(held, self._answered // 2)
        later = Stretch.of(held[middle:], self._since)
        before, now = Stretch.of(held[:middle]).figure(), later.figure()
        if before is None or now is None or later.untaught:
            return None
        return improvement(before, now, len(later.answered), errors=not later.classifies)


def why_unknown(found: Estimates) -> str:
    """Say why there are no measures, as the end of a sentence.

    >>> why_unknown(Estimates(audit_labels=3)), why_unknown(Estimates(audit_labels=8, response={"selected": 0.0}))
    (' with 3 audit labels; 5 are needed', ', since none of the requests the model chose is answered')
    >>> why_unknown(Estimates(audit_labels=8, response={"selected": 1.0}))
    ', since nothing is answered that the model would not have chosen'
    """
    if found.audit_labels < LEAST:
        return f" with {found.audit_labels} audit labels; {LEAST} are needed"
    if found.response.get("selected") == 0.0:
        return ", since none of the requests the model chose is answered"
    return ", since nothing is answered that the model would not have chosen"


def _after(held: Sequence[Asked], audits: float) -> int:
    """Return the place behind so many of the answered exploration requests."""
    answered = (place for place, asked in enumerate(held, start=1) if asked.audit and asked.label is not None)
    return next(islice(answered, int(audits) - 1, None)) if audits >= 1 else 0


def _recalled(whole: Tally, drawn: Stratum) -> dict[str, Estimate]:
    audits = Counter(asked.label for _, asked in drawn.answered)
    found = {}
    for label, (share, worth) in whole.recall().items():
        low, high = wilson(share, worth) if audits[label] >= LEAST_OF_CLASS else (None, None)
        found[label] = Estimate(share, low, high, audits[label])
    return found

"""How far several annotators agree, and who of them errs how often, from the votes that the outcomes keep.

Krippendorff's alpha is 1 for full agreement and 0 for that of chance, whatever the number of annotators, and whoever
has left out what: one minus the disagreement within the requests over that among all answers (Krippendorff, Content
Analysis, 1980). Requests are made where the model is in doubt, and there people are as well; so it is told apart for
those that chance alone made, which stand for the whole stream. Cohen's kappa is the same idea for two (1960).

Nobody knows the truth, but annotators who err independently give themselves away: Dawid and Skene (Applied Statistics
28, 1979) estimate labels and everybody's errors from each other in turn, by expectation maximisation.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from river import metrics

from streamal.messages import Label, Outcome, Vote

LEAST_ANNOTATORS: Final = 3
"""Where two differ, nothing says who of them is right."""
ROUNDS: Final = 100
"""Of expectation maximisation at most; it ends by itself once it stands still."""
MISSING: Final = "For accuracies: uv sync --extra annotators, or uv tool install '.[annotators]'."
TOO_FEW: Final = "Accuracies are estimated of classes, and of three annotators at least."


@dataclass(frozen=True, slots=True)
class Annotator:
    """What is known of one annotator.

    `agreed` is the share of the `compared` answers that say what most of the others did; answers where the others have
    no majority are left out. `accuracy` is the estimated share of the labels given that are right, None if not known.
    """

    name: str
    answers: int
    unsure: int
    invalid: int
    agreed: float | None
    compared: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the votes on all requests that have ended say of the annotators.

    `alpha` is None where there is nothing to compare, `audit_alpha` that of the exploration requests alone, and `kappa`
    Cohen's, if there are just two annotators. `note` says why there are no accuracies, "" if there are.
    """

    requests: int
    answers: int
    alpha: float | None
    audit_alpha: float | None
    kappa: float | None
    annotators: Sequence[Annotator]
    note: str


def alpha(units: Iterable[Sequence[Label]]) -> float | None:
    """Return Krippendorff's alpha of the labels that each instance got; None if all there are say the same.

    Classes differ or do not, numbers differ by their squared distance. Instances with a single label say nothing.

    >>> round(alpha([["a", "a"], ["b", "b"], ["a", "b"], ["b", "b", "b"], ["b"]]), 3)
    0.556
    >>> round(alpha([[1.0, 1.0], [2.0, 3.0]]), 3)
    0.727
    >>> alpha([["a", "a"]]) is None
    True
    """
    rated = [unit for unit in units if len(unit) > 1]
    said = [label for unit in rated for label in unit]
    if not (expected := disagreement(said)):
        return None
    observed = sum(disagreement(unit) / (len(unit) - 1) for unit in rated)
    return 1.0 - (len(said) - 1) * observed / expected


def disagreement(labels: Sequence[Label]) -> float:
    """Return the sum of the differences between all ordered pairs of labels.

    >>> disagreement(["a", "a", "b"]), disagreement([1.0, 3.0])
    (4, 8.0)
    """
    numbers = [label for label in labels if isinstance(label, float)]
    if numbers:
        centre = fmean(numbers)
        return 2.0 * len(numbers) * sum((number - centre) ** 2 for number in numbers)
    return len(labels) ** 2 - sum(count * count for count in Counter(labels).values())


def agreement(outcomes: Iterable[Outcome]) -> Agreement:
    """Return what the last outcomes of all requests say of the annotators."""
    last = {outcome.request_id: (outcome.votes, outcome.reason) for outcome in outcomes if outcome.votes}
    polls = [votes for votes, _ in last.values()]
    audits = [votes for votes, reason in last.values() if reason == "exploration"]
    accuracies, note = accuracy(polls)
    by_name: dict[str, list[Vote]] = defaultdict(list)
    for vote in (vote for votes in polls for vote in votes):
        by_name[vote.annotator].append(vote)
    agreed = compared(polls)
    return Agreement(
        requests=len(polls),
        answers=sum(map(len, polls)),
        alpha=alpha(map(labels, polls)),
        audit_alpha=alpha(map(labels, audits)),
        kappa=kappa(polls) if len(by_name) == 2 else None,
        annotators=[
            Annotator(
                name=name,
                answers=len(votes),
                unsure=sum(vote.kind == "unsure" for vote in votes),
                invalid=sum(vote.kind == "invalid" for vote in votes),
                agreed=fmean(agreed[name]) if agreed[name] else None,
                compared=len(agreed[name]),
                accuracy=accuracies.get(name),
            )
            for name, votes in sorted(by_name.items())
        ],
        note=note,
    )


def labels(votes: Iterable[Vote]) -> list[Label]:
    """Return the labels among votes."""
    return [vote.label for vote in votes if vote.label is not None]


def compared(polls: Iterable[Sequence[Vote]]) -> dict[str, list[bool]]:
    """Return for each annotator, label by label, whether most of the others have said the same; classes only."""
    found: dict[str, list[bool]] = defaultdict(list)
    for votes in polls:
        for vote in votes:
            others = Counter(labels(other for other in votes if other is not vote)).most_common(2)
            tied = len(others) == 2 and others[0][1] == others[1][1]
            if isinstance(vote.label, str) and others and not tied:
                found[vote.annotator].append(others[0][0] == vote.label)
    return found


def kappa(polls: Iterable[Sequence[Vote]]) -> float | None:
    """Return Cohen's kappa of two annotators over the classes that both gave; None if there are none."""
    found = metrics.CohenKappa()
    for votes in polls:
        said = [vote.label for vote in sorted(votes, key=lambda vote: vote.annotator) if isinstance(vote.label, str)]
        if len(said) == 2:
            found.update(*said)
    return float(found.get()) if found.cm.n_samples else None


def accuracy(polls: Sequence[Sequence[Vote]]) -> tuple[Mapping[str, float], str]:
    """Return the estimated share of each annotator's labels that are right, and why there are none."""
    said = [(number, vote) for number, votes in enumerate(polls) for vote in votes if isinstance(vote.label, str)]
    if len({vote.annotator for _, vote in said}) < LEAST_ANNOTATORS:
        return {}, TOO_FEW
    try:
        from crowdkit.aggregation import DawidSkene
        from pandas import DataFrame
    except ImportError:
        return {}, MISSING
    table = DataFrame(
        {
            "task": [number for number, _ in said],
            "worker": [vote.annotator for _, vote in said],
            "label": [vote.label for _, vote in said],
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # crowd-kit's own, against the pandas of today
        truth = DawidSkene(n_iter=ROUNDS).fit_predict_proba(table)
    columns = {label: column.to_dict() for label, column in truth.items()}
    right: dict[str, list[float]] = defaultdict(list)
    for number, vote in said:
        right[vote.annotator].append(float(columns[vote.label][number]))
    return {name: fmean(shares) for name, shares in right.items()}, ""

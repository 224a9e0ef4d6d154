"""What several annotators say of one instance, taken together.

Each has one vote, and the label with most of them is learned: once, with weight 1. Majority voting needs to know
nothing about the annotators, and says the same whenever it is counted again; who of them errs how often is estimated
afterwards, from all votes at once (`streamal.evaluate.agreement`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median

from streamal.messages import VALUE, Answer, AnswerKind, Label, Vote


def verdict(votes: Iterable[Vote]) -> tuple[AnswerKind, Label | None]:
    """Return what most votes say; on a tie what was said first among the most frequent.

    Whoever is unsure leaves it to the others, so `unsure` comes out only where all are. Numbers are not counted one by
    one: of them the median is taken, which one annotator who errs grossly does not move far.

    >>> def say(*labels): return [Vote(0, 7, str(i), "label", label, 0, 0.0) for i, label in enumerate(labels)]
    >>> verdict(say("ok", "fraud", "fraud")), verdict(say("ok", "fraud"))
    (('label', 'fraud'), ('label', 'ok'))
    >>> verdict(say(1.0, 2.0, 60.0)), verdict([])
    (('label', 2.0), ('unsure', None))
    """
    sure = [vote for vote in votes if vote.kind != "unsure"]
    if not sure:
        return "unsure", None
    counted = Counter((vote.kind, VALUE if isinstance(vote.label, float) else vote.label) for vote in sure)
    [((kind, label), _)] = counted.most_common(1)
    if label == VALUE:
        return kind, median(vote.label for vote in sure if isinstance(vote.label, float))
    return kind, label


def revises(votes: Iterable[Vote], answer: Answer) -> bool:
    """Say whether an answer is its annotator's change of mind: a later revision that says something else."""
    return any(
        vote.annotator == answer.annotator
        and vote.revision < answer.revision
        and (vote.kind, vote.label) != (answer.kind, answer.label)
        for vote in votes
    )


def why_repeated(votes: Iterable[Vote], answer: Answer) -> tuple[str, str] | None:
    """Return reason and message for a second answer of an annotator that is no change of mind; None for a first one."""
    for vote in votes:
        if vote.annotator != answer.annotator:
            continue
        if (vote.kind, vote.label) == (answer.kind, answer.label):
            return "duplicate", "this annotator has said so before"
        message = "this annotator said something else before; the first answer counts, unless a later `revision`"
        return "conflict", message
    return None

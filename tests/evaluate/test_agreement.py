"""Agreement against published figures, and the accuracies of annotators against those they were simulated with."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamal.evaluate.agreement import MISSING, TOO_FEW, agreement, alpha, compared, kappa
from streamal.messages import Label, Outcome, Vote

CODERS: Final = (
    "*    *    *    *    *    3    4    1    2    1    1    3    3    *    3",
    "1    *    2    1    3    3    4    3    *    *    *    *    *    *    *",
    "*    *    2    1    3    4    4    *    2    1    1    3    3    *    4",
)
"""The worked example on the English Wikipedia's page on Krippendorff's alpha: 0.691 nominal, 0.811 interval."""
OUTCOME: Final = Outcome(
    "learned", 0, 3, "i", {"x": 1.5}, "a", 1.0, {"a": 1.0}, 0.5, 0.5, "uncertainty", True, "split", 7, 1.0, 2.0, None
)


def units() -> list[list[str]]:
    return [[said for said in unit if said != "*"] for unit in zip(*map(str.split, CODERS), strict=True)]


def votes(offset: int, said: Sequence[Label | None], names: str = "abcdefghi") -> tuple[Vote, ...]:
    kinds: list[Any] = ["label" if label is not None else "unsure" for label in said]
    return tuple(
        Vote(0, offset, name, kind, label, 0, 0.0) for name, kind, label in zip(names, kinds, said, strict=False)
    )


def outcome(offset: int, said: Sequence[Label | None], **changes: Any) -> Outcome:
    return replace(OUTCOME, offset=offset, votes=votes(offset, said), **changes)


def test_alpha_is_the_published_one() -> None:
    assert alpha(units()) == pytest.approx(0.691, abs=5e-4)
    assert alpha([[float(said) for said in unit] for unit in units()]) == pytest.approx(0.811, abs=5e-4)


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=12))
def test_alpha_is_one_minus_the_disagreement_observed_over_that_expected(found: list[list[str]]) -> None:
    """By the definition, pair by pair."""
    rated = [unit for unit in found if len(unit) > 1]
    said = [label for unit in rated for label in unit]

    def share(labels: Sequence[str]) -> float:
        pairs = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
        return sum(labels[i] != labels[j] for i, j in pairs) / len(pairs)

    if len(set(said)) < 2:
        assert alpha(found) is None
        return
    observed = sum(len(unit) * share(unit) for unit in rated) / len(said)
    assert alpha(found) == pytest.approx(1.0 - observed / share(said))


def test_numbers_that_differ_little_agree_more_than_those_that_differ_much() -> None:
    near = alpha([[1.0, 1.1], [5.0, 5.2], [9.0, 8.9]])
    far = alpha([[1.0, 8.0], [5.0, 2.0], [9.0, 3.0]])
    assert near is not None
    assert far is not None
    assert near > 0.99 > 0.0 > far


def test_kappa_of_two_is_cohens() -> None:
    """Of 50 applications both said yes to 20 and no to 15, one alone yes to 5 and the other alone to 10: 0.4."""
    said = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    assert kappa([votes(at, pair) for at, pair in enumerate(said)]) == pytest.approx(0.4)
    assert kappa([votes(0, ("y",)), votes(1, ("y", None))]) is None


def test_an_annotator_is_compared_with_the_others_only_where_these_have_a_majority() -> None:
    found = compared([votes(0, ("x", "x", "y")), votes(1, ("x", "y", "z")), votes(2, ("x", None, None))])
    assert found["c"] == [False]
    assert found["a"] == found["b"] == [], "the other two differ"


def test_the_last_outcome_of_a_request_counts_and_requests_with_one_answer_do_not() -> None:
    found = agreement(
        [
            replace(OUTCOME, annotator="solo"),
            outcome(4, ("x", "y", "x")),
            outcome(5, ("x", "x", None), reason="exploration"),
            outcome(6, ("y", "y", "y"), reason="exploration"),
            outcome(4, ("x", "x", "x"), kind="confirmed", revision=1),
        ]
    )
    assert (found.requests, found.answers, found.alpha, found.audit_alpha) == (3, 9, 1.0, 1.0)
    assert [(one.name, one.answers, one.unsure, one.agreed) for one in found.annotators] == [
        ("a", 3, 0, 1.0),
        ("b", 3, 0, 1.0),
        ("c", 3, 1, 1.0),
    ]
    assert found.kappa is None
    assert agreement([OUTCOME]).annotators == []


def test_two_annotators_have_a_kappa_and_no_accuracies() -> None:
    found = agreement([outcome(1, ("x", "y")), outcome(2, ("x", "x")), outcome(3, ("y", "y"))])
    assert found.kappa == pytest.approx(0.4)
    assert found.note == TOO_FEW
    assert [one.accuracy for one in found.annotators] == [None, None]


def crowd(chances: Sequence[float], count: int, seed: int) -> list[Outcome]:
    random = Random(seed)
    found = []
    for offset in range(count):
        truth = random.choice("xyz")
        said = [truth if random.random() < chance else random.choice("xyz".replace(truth, "")) for chance in chances]
        found.append(outcome(offset, said))
    return found


def test_accuracies_are_found_without_the_truth() -> None:
    if os.environ.get("STREAMAL_REQUIRE_ALL") != "1":
        pytest.importorskip("crowdkit", reason="it comes with the extra annotators")
    chances = (0.95, 0.8, 0.6, 0.4)
    found = agreement(crowd(chances, 1_500, seed=1))
    assert found.note == ""
    for one, chance in zip(found.annotators, chances, strict=True):
        assert one.accuracy == pytest.approx(chance, abs=0.05)
        assert one.agreed is not None
    careless = found.annotators[-1]
    assert careless.agreed is not None
    assert abs((careless.accuracy or 0.0) - 0.4) <= abs(careless.agreed - 0.4) + 0.02


def test_without_the_library_all_else_is_told_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crowdkit", None)
    monkeypatch.setitem(sys.modules, "crowdkit.aggregation", None)
    found = agreement(crowd((0.9, 0.8, 0.7), 50, seed=1))
    assert found.note == MISSING
    assert "uv sync --extra annotators, or uv tool install '.[annotators]'" in MISSING
    assert {one.accuracy for one in found.annotators} == {None}
    assert 0.0 < (found.alpha or 0.0) < 1.0


def test_numbers_have_an_alpha_and_no_accuracies() -> None:
    found = agreement([outcome(at, (1.0 * at, 1.0 * at + 0.1, 1.0 * at)) for at in range(9)])
    assert (found.alpha or 0.0) > 0.99
    assert (found.note, found.annotators[0].agreed) == (TOO_FEW, None)

"""Several annotators answer a request: who counts, when it ends, what is learned, and what a later opinion changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from specimens import Constant, answer_to, stream

from streamal.events import Event, LabelRequested, RecordRefused, RequestResolved, RequestSkipped, VoteTaken
from streamal.lane import Handover, SamplingPlan
from streamal.learning.fold import Fold
from streamal.messages import AnswerKind, Label, LabelRequest, Outcome, Vote, decode_outcome
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import BudgetPlan, Limit
from streamal.voting import verdict

EXPIRY = 100.0
PLAN = SamplingPlan(BudgetPlan(rate=0.2, expiry=EXPIRY), strategy="periodic", answers=3)
opinions = st.sampled_from([("label", "a"), ("label", "b"), ("label", "c"), ("unsure", None), ("invalid", None)])


def vote(annotator: str, label: Label | None = None, kind: AnswerKind = "label") -> Vote:
    return Vote(0, 7, annotator, kind, label, 0, 0.0)


class Asked:
    """A request of a fresh sampler, and what comes of the answers to it."""

    def __init__(self, plan: SamplingPlan = PLAN) -> None:
        self.plan = plan
        self.sampler = SelectiveSampler([plan], Fold(Constant({"ok": 0.6, "fraud": 0.4})))
        self.sampler.open(0, Handover())
        self.request = self._ask()
        self.log: list[bytes] = []

    def _ask(self) -> LabelRequest:
        for instance in stream(100):
            for event in self.sampler.see(0, [instance], 0.0):
                if isinstance(event, LabelRequested):
                    return event.request
        pytest.fail("nothing was asked")

    def says(self, annotator: str | None, label: str | None = None, kind: Any = "label", revision: int = 0) -> Event:
        answer = answer_to(self.request.request_id, label, kind, annotator=annotator, revision=revision)
        [event] = self.sampler.answer(0, [answer], 1.0)
        if isinstance(event, VoteTaken):
            self.log.append(event.vote.encode())
        elif isinstance(event, RequestResolved):
            self.log.append(event.outcome.encode())
        return event

    def hand_over(self) -> None:
        """Let a new owner go on, with nothing but the log."""
        records = [decode_outcome(value) for value in self.log]
        outcomes = [record for record in records if isinstance(record, Outcome)]
        waits = [] if outcomes else [record for record in records if isinstance(record, Vote)]
        self.sampler = SelectiveSampler([self.plan], Fold(Constant({})))
        self.sampler.open(0, Handover(None, [self.request], outcomes, votes=waits))


def outcome_of(event: Event) -> Outcome:
    assert isinstance(event, RequestResolved)
    return event.outcome


def refused(event: Event) -> str:
    assert isinstance(event, RecordRefused)
    return event.letter.reason


@given(st.lists(opinions, min_size=1, max_size=9))
def test_the_verdict_is_a_most_frequent_opinion_of_those_who_are_sure(
    said: list[tuple[AnswerKind, str | None]],
) -> None:
    found = verdict([vote(str(number), label, kind) for number, (kind, label) in enumerate(said)])
    sure = [opinion for opinion in said if opinion[0] != "unsure"]
    if not sure:
        assert found == ("unsure", None)
        return
    counts = Counter(sure)
    best = [opinion for opinion in counts if counts[opinion] == max(counts.values())]
    assert found == min(best, key=sure.index)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_of_numbers_the_median_is_learned(said: list[float]) -> None:
    kind, label = verdict([vote(str(number), found) for number, found in enumerate(said)])
    assert kind == "label"
    assert isinstance(label, float)
    assert sum(found <= label for found in said) >= len(said) / 2 <= sum(found >= label for found in said)


def test_a_request_ends_with_the_last_of_its_answers_and_the_majority_is_learned_once() -> None:
    asked = Asked()
    assert asked.request.answers == 3
    first, second = asked.says("ada", "ok"), asked.says("bob", "fraud")
    assert isinstance(first, VoteTaken)
    assert isinstance(second, VoteTaken)
    assert asked.sampler.lanes[0].pending.get(asked.request.offset) is not None
    outcome = outcome_of(asked.says("cyd", "fraud"))
    assert (outcome.kind, outcome.label, outcome.annotator, outcome.weight) == ("learned", "fraud", None, 1.0)
    assert [(v.annotator, v.label) for v in outcome.votes] == [("ada", "ok"), ("bob", "fraud"), ("cyd", "fraud")]
    model = Constant({"ok": 1.0})
    fold = Fold(model)
    fold.fold(enumerate([first.vote, second.vote, outcome]))
    assert [(label, weight) for _, label, weight in model.learned] == [("fraud", 1.0)]
    assert fold.version == 3


@pytest.mark.parametrize("handed_over", [False, True])
def test_each_annotator_has_one_vote(handed_over: bool) -> None:
    asked = Asked()
    asked.says("ada", "ok")
    if handed_over:
        asked.hand_over()
    assert refused(asked.says("ada", "ok")) == "duplicate"
    assert refused(asked.says("ada", "fraud")) == "conflict"
    assert refused(asked.says("ada", kind="unsure")) == "conflict"
    assert refused(asked.says("ada", "ok", revision=1)) == "duplicate"
    changed = asked.says("ada", "fraud", revision=1)
    assert isinstance(changed, VoteTaken)
    if handed_over:
        asked.hand_over()
    asked.says("bob", "ok")
    assert outcome_of(asked.says("cyd", "fraud")).label == "fraud"


@pytest.mark.parametrize("name", [None, ""])
def test_whoever_gives_no_name_is_told_to(name: str | None) -> None:
    asked = Asked()
    for label, kind in (("ok", "label"), (None, "unsure")):
        event = asked.says(name, label, kind)
        assert refused(event) == "missing_annotator"
        assert isinstance(event, RecordRefused)
        assert "3 different annotators" in event.letter.message
        assert "`annotator`" in event.letter.message
    assert isinstance(asked.says(name, kind="skip"), RequestSkipped)
    assert outcome_of(asked.says(name, kind="cancel")).kind == "cancelled"


def test_one_answer_needs_no_name() -> None:
    outcome = outcome_of(Asked(replace(PLAN, answers=1)).says(None, "ok"))
    assert (outcome.kind, outcome.annotator, outcome.votes) == ("learned", None, ())
    assert b"votes" not in outcome.encode()


@pytest.mark.parametrize(
    ("said", "kind", "label"),
    [
        ([("unsure", None), ("unsure", None), ("label", "ok")], "learned", "ok"),
        ([("unsure", None), ("unsure", None), ("unsure", None)], "abstained", None),
        ([("invalid", None), ("invalid", None), ("label", "ok")], "invalid", None),
        ([("label", "ok"), ("label", "fraud"), ("unsure", None)], "learned", "ok"),
    ],
)
def test_who_is_unsure_leaves_it_to_the_others(
    said: list[tuple[str, str | None]], kind: str, label: str | None
) -> None:
    asked = Asked()
    events = [asked.says(name, label, kind) for name, (kind, label) in zip("abc", said, strict=True)]
    outcome = outcome_of(events[-1])
    assert (outcome.kind, outcome.label) == (kind, label)


def test_a_cancelled_request_keeps_the_votes_that_came() -> None:
    asked = Asked()
    asked.says("ada", "ok")
    outcome = outcome_of(asked.says("bob", kind="cancel"))
    assert (outcome.kind, outcome.label, len(outcome.votes)) == ("cancelled", None, 1)
    assert refused(asked.says("bob", "ok")) == "cancelled"


@pytest.mark.parametrize("handed_over", [False, True])
def test_what_came_is_learned_when_the_time_is_up(handed_over: bool) -> None:
    plan = replace(PLAN, budget=replace(PLAN.budget, refund_expired=True))
    asked, silent = Asked(plan), Asked(plan)
    asked.says("ada", "fraud")
    if handed_over:
        asked.hand_over()
    [event] = asked.sampler.tick(EXPIRY)
    outcome = outcome_of(event)
    assert (outcome.kind, outcome.label, len(outcome.votes)) == ("learned", "fraud", 1)
    assert refused(asked.says("bob", "ok")) == "ended"
    [event] = silent.sampler.tick(EXPIRY)
    assert (outcome_of(event).kind, outcome_of(event).votes) == ("expired", ())
    assert refused(silent.says("bob", "ok")) == "expired"
    for one, refunds in ((asked, 0), (silent, 1)):
        assert one.sampler.lanes[0].ledger()["budget"]["refunded"] == refunds


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_later_revision_is_counted_with_the_other_votes(handed_over: bool) -> None:
    asked = Asked()
    ended = [asked.says(name, label) for name, label in (("ada", "ok"), ("bob", "ok"), ("cyd", "ok"))][-1]
    if handed_over:
        asked.hand_over()
    stands = outcome_of(asked.says("ada", "fraud", revision=1))
    assert (stands.kind, stands.label, stands.revision, stands.teaches) == ("confirmed", "ok", 1, False)
    if handed_over:
        asked.hand_over()
    falls = outcome_of(asked.says("bob", "fraud", revision=2))
    assert (falls.kind, falls.label, falls.revision, falls.teaches) == ("corrected", "fraud", 2, True)
    assert [(v.label, v.revision) for v in falls.votes] == [("fraud", 1), ("fraud", 2), ("ok", 0)]
    assert replace(falls, kind="learned", label="ok", revision=0, votes=outcome_of(ended).votes) == outcome_of(ended)
    assert refused(asked.says("bob", "ok", revision=2)) == "conflict"
    assert refused(asked.says("bob", "fraud", revision=3)) == "duplicate"
    for kind in ("label", "skip", "unsure"):
        assert refused(asked.says("dan", "ok", kind, revision=9)) == "ended", "only those who were heard may correct"


def test_requests_wait_for_as_many_as_they_were_made_for() -> None:
    """Also where the setting has changed meanwhile, whose number is that of the requests to come."""
    asked = Asked()
    asked.says("ada", "ok")
    asked.plan = replace(PLAN, answers=1)
    asked.hand_over()
    assert isinstance(asked.says("bob", "ok"), VoteTaken)
    assert outcome_of(asked.says("cyd", "ok")).label == "ok"
    assert asked._ask().answers == 1


@pytest.mark.parametrize("strategy", ["periodic", "pool"])
def test_cost_limits_count_every_answer_and_count_limits_requests(strategy: str) -> None:
    def asked(answers: int, *limits: Limit) -> int:
        budget = BudgetPlan(rate=0.5, loan=0, limits=limits)
        plan = SamplingPlan(budget, strategy, {"pool_window": 50} if strategy == "pool" else {}, answers=answers)
        sampler = SelectiveSampler([plan], Fold(Constant({"ok": 0.6, "fraud": 0.4})))
        lane = sampler.open(0, Handover())
        sampler.see(0, stream(200), 0.0)
        return lane.asked

    assert asked(1, Limit("cost", 30.0, 1e9)) == 30
    assert asked(3, Limit("cost", 30.0, 1e9)) == 10
    assert asked(3, Limit("count", 30, 1e9)) == 30
    assert asked(3) == asked(1) > 90


def test_the_audit_speaks_of_several_answers_only_where_there_are() -> None:
    assert SamplingPlan.from_json(PLAN.as_json()) == PLAN
    one = replace(PLAN, answers=1)
    assert "answers" not in one.as_json()
    assert SamplingPlan.from_json(one.as_json()) == one

"""What is told about a stream from outside is what the log holds, and telling it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from broker import Broker
from served import PARTITIONS, RATE, ROWS, requests_of, serve_stream
from specimens import Settled, answer_to, stream, truth

from streamal import assemble
from streamal.errors import BadRecord
from streamal.evaluate.estimate import Estimator
from streamal.events import LabelRequested, RequestResolved, VoteTaken
from streamal.lane import Handover, SamplingPlan
from streamal.learning import presets
from streamal.learning.fold import Fold
from streamal.messages import VALUE, LabelRequest, Outcome, Unlabelled
from streamal.sampler import SelectiveSampler
from streamal.selection.budget import BudgetPlan
from streamal.service import inspection as inspecting
from streamal.service.inspection import WHY, Inspection, as_line, in_words, quality_in_words, tail, unasked_in_words
from streamal.service.ledgers import Topics
from streamal.service.shared_snapshots import taken_apart
from streamal.settings import Settings
from streamal.transport.embedded import EmbeddedLog
from streamal.transport.kafka import KafkaLog
from streamal.transport.log import Append, Log, TopicPartition
from streamal.web.status import Estimate, Estimates, Improvement


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return serve_stream(tmp_path_factory.mktemp("served"))


@pytest.fixture
def log(settings: Settings) -> Iterator[Log]:
    found = assemble.open_log(settings)
    yield found
    found.close()


@pytest.fixture
def inspection(log: Log, settings: Settings) -> Inspection:
    return Inspection(log, assemble.topics_of(settings), settings.transport.group)


@pytest.fixture
def request_made() -> LabelRequest:
    """The first request of a fresh sampler."""
    sampler = SelectiveSampler([SamplingPlan(BudgetPlan(rate=0.5))], Fold(logistic()))
    sampler.open(0, Handover())
    events = sampler.see(0, stream(50), 0.0)
    return next(event.request for event in events if hasattr(event, "request"))


def logistic() -> Any:
    return presets.build("logistic_regression", parameters={}, seed=0)


def outcome_of(request: LabelRequest, kind: str = "label") -> Outcome:
    sampler = SelectiveSampler([SamplingPlan(BudgetPlan(rate=0.5))], Fold(logistic()))
    sampler.open(0, Handover(requests=[request]))
    [event] = sampler.answer(0, [answer_to(request.request_id, "usual", kind)], 1.0)
    assert isinstance(event, RequestResolved)
    return event.outcome


def test_standings_add_up(inspection: Inspection, log: Log, settings: Settings) -> None:
    requests = requests_of(log)
    standings = inspection.standings(assemble.budgets_of(settings, PARTITIONS))
    assert [standing.partition for standing in standings] == list(range(PARTITIONS))
    for standing in standings:
        assert standing.asked == sum(request.partition == standing.partition for request in requests)
        assert standing.allowed == pytest.approx(RATE * standing.seen)
        assert standing.lag == 0
    assert sum(standing.seen for standing in standings) == ROWS
    assert sum(standing.pending for standing in standings) == len(inspection.waiting())


def test_those_wait_that_nobody_answered(inspection: Inspection, log: Log) -> None:
    assert inspection.waiting() == requests_of(log)[1::2]


def test_a_request_is_found_with_its_outcome(inspection: Inspection, log: Log) -> None:
    answered, waiting = requests_of(log)[:2]
    request, outcome = inspection.request(answered.request_id)
    assert request == answered
    assert outcome is not None
    assert (outcome.request_id, outcome.kind, outcome.annotator) == (answered.request_id, "learned", "ada")
    assert inspection.request(waiting.request_id) == (waiting, None)
    assert inspection.request("0-999999") == inspection.request("77-0") == (None, None)
    with pytest.raises(BadRecord, match="<partition>-<offset>"):
        inspection.request("41")


def test_a_request_that_is_no_longer_kept_may_have_left_its_outcome(
    inspection: Inspection, log: Log, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, waiting = requests_of(log)[:2]
    kept, bounds = settings.topics.label_requests, log.bounds

    def trimmed(place: TopicPartition) -> tuple[int, int]:
        first, end = bounds(place)
        return (end, end) if place.topic == kept else (first, end)

    monkeypatch.setattr(log, "bounds", trimmed)
    assert inspection.request(answered.request_id) == (None, None)
    assert inspection.absence(answered.request_id) == "the request is no longer kept; what became of it is: learned"
    assert inspection.absence(waiting.request_id) == (
        "nobody was asked about that instance, or the request is no longer kept"
    )


@pytest.mark.parametrize(
    ("strategy", "parameters"),
    [("class_conditional", {}), ("pool", {"pool_window": 60}), ("synthesis", {"pool_window": 60, "mode": "synthetic"})],
)
def test_the_estimates_from_the_log_are_those_of_its_workers(
    tmp_path: Path, strategy: str, parameters: dict[str, Any]
) -> None:
    log, workers = EmbeddedLog(tmp_path / "log.db"), Estimator()
    log.create_topics({"instances": 2, "label-requests": 2, "outcomes": 1})
    plan = SamplingPlan(BudgetPlan(rate=0.2), strategy, parameters, explore=0.5)
    sampler = SelectiveSampler([plan] * 2, Fold(Settled()))
    appends = []
    for instance in stream(1_500):
        p = int(instance.offset % 3 > 0)
        if p not in sampler.lanes:
            sampler.open(p, Handover())
        now = float(instance.offset // 200)
        for event in sampler.see(p, [instance], now):
            workers.observe(event)
            if isinstance(event, LabelRequested):
                appends.append(Append("label-requests", p, event.request.encode()))
                if event.request.offset % 7:
                    answer = answer_to(event.request.request_id, truth(instance.features), partition=p)
                    [resolved] = sampler.answer(p, [answer], now)
                    assert isinstance(resolved, RequestResolved)
                    workers.observe(resolved)
                    appends.append(Append("outcomes", 0, resolved.outcome.encode()))
    log.writer("worker").append(appends)
    found, expected = Inspection(log, Topics(), "streamal").estimates(), workers.estimate()
    assert found.instances == pytest.approx(expected.instances, abs=30)
    assert (found.audit_labels, found.response) == (expected.audit_labels, expected.response)
    assert found.naive == pytest.approx(expected.naive)
    assert found.measures["accuracy"].value == pytest.approx(expected.measures["accuracy"].value, abs=0.003)
    assert found.naive["accuracy"] < found.measures["accuracy"].value - 0.03
    assert found.improvement is not None
    assert expected.improvement is not None
    assert found.improvement.value == pytest.approx(expected.improvement.value, abs=0.01)
    assert found.improvement.labels == pytest.approx(expected.improvement.labels, abs=2)
    assert found.improvement.pays == expected.improvement.pays
    log.close()


def test_who_has_answered_is_not_asked_again_and_the_others_are(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "log.db")
    log.create_topics({"instances": 1, "label-requests": 1, "outcomes": 1})
    sampler = SelectiveSampler([SamplingPlan(BudgetPlan(rate=0.2), answers=2)], Fold(Settled()))
    sampler.open(0, Handover())
    events = sampler.see(0, stream(60), 0.0)
    requests = [event.request for event in events if isinstance(event, LabelRequested)]
    first, second = requests[:2]
    [vote] = sampler.answer(0, [answer_to(first.request_id, annotator="ada")], 1.0)
    assert isinstance(vote, VoteTaken)
    both = [answer_to(second.request_id, "rare", annotator=name) for name in ("ada", "bob")]
    early, resolved = sampler.answer(0, both, 1.0)
    assert isinstance(early, VoteTaken)
    assert isinstance(resolved, RequestResolved)
    written = [Append("outcomes", 0, record.encode()) for record in (vote.vote, early.vote, resolved.outcome)]
    log.writer("worker").append([*(Append("label-requests", 0, r.encode()) for r in requests), *written])
    inspection = Inspection(log, Topics(), "streamal")
    ada, bob = inspection.endings("ada"), inspection.endings("bob")
    assert ada() == bob() == []
    log.writer("worker").append([Append("outcomes", 0, found.encode()) for found in (vote.vote, resolved.outcome)])
    assert (ada(), bob()) == ([first.request_id, second.request_id], [second.request_id])
    assert ada() == bob() == []
    assert inspection.waiting() == inspection.waiting("bob") == [first, *requests[2:]]
    assert inspection.waiting("ada") == requests[2:]
    assert inspection.request(first.request_id) == (first, None)
    assert "it waits for answers by 2 annotators" in in_words(first, None)
    assert "learned as rare by ada (rare), bob (rare)" in in_words(*inspection.request(second.request_id))  # type: ignore[arg-type]
    found = inspection.agreement()
    assert (found.requests, found.answers) == (1, 2)
    log.close()


def test_the_estimates_tell_how_far_annotators_agree() -> None:
    sampler = SelectiveSampler([SamplingPlan(BudgetPlan(rate=0.5), answers=2)], Fold(Settled()))
    sampler.open(0, Handover())
    estimator = Estimator()
    for event in sampler.see(0, stream(80), 0.0):
        estimator.observe(event)
    assert estimator.estimate().alpha is None
    for number, request in enumerate(list(sampler.lanes[0].pending)[:8]):
        label = ("rare", "usual")[number % 2]
        said = [answer_to(request.request_id, label, annotator="ada"), answer_to(request.request_id, "rare")]
        for event in sampler.answer(0, said, 1.0):
            estimator.observe(event)
    # 4 of 8 pairs differ, and 4 of the 16 labels are another: 1 - 15 * 8 / (256 - 144 - 16)
    assert estimator.estimate().alpha == pytest.approx(1 - 15 * 8 / 96)


def test_the_estimates_count_all_instances_and_say_who_answered(inspection: Inspection, log: Log) -> None:
    requests = requests_of(log)
    rest = [made.reason == "exploration" and not made.would_select for made in requests]
    found = inspection.estimates()
    assert found.instances == ROWS
    assert found.audit_labels == sum(made.reason == "exploration" for made in requests[::2])
    assert found.response["rest"] == pytest.approx(sum(rest[::2]) / sum(rest))


@pytest.mark.parametrize("first_look", [1, 8, 1_000])
def test_the_estimates_look_back_as_far_on_all_partitions(
    inspection: Inspection, log: Log, monkeypatch: pytest.MonkeyPatch, first_look: int
) -> None:
    monkeypatch.setattr(inspecting, "FIRST_LOOK", first_look)
    monkeypatch.setattr(inspecting, "ENOUGH", 6)
    requests = requests_of(log)
    looked_at = inspection._last_requests()
    assert sorted(looked_at, key=requests.index) == [made for made in requests if made in looked_at]
    since = looked_at[0].requested_at
    assert {made.request_id for made in requests if made.requested_at > since} <= {
        made.request_id for made in looked_at
    }
    assert sum(made.reason == "exploration" for made in looked_at) >= 6
    if first_look == 1_000:
        assert len(looked_at) == len(requests)
    else:
        assert len(looked_at) < len(requests)
        assert inspection.estimates().instances < ROWS


def test_classes_are_those_of_the_outcomes(inspection: Inspection) -> None:
    assert set(inspection.labels()) == {"rare", "usual"}


def test_looking_changes_nothing(inspection: Inspection, log: Log, settings: Settings) -> None:
    topics = assemble.topics_of(settings).used()
    places = [TopicPartition(topic, p) for topic in topics for p in range(log.partitions(topic))]
    before = [log.bounds(place) for place in places], log.positions("streamal", places)
    inspection.standings(assemble.budgets_of(settings, PARTITIONS))
    inspection.waiting()
    list(tail(log, "outcomes", 5, follow=False))
    assert ([log.bounds(place) for place in places], log.positions("streamal", places)) == before


def test_before_a_worker_came_all_is_ahead(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "fresh.db")
    log.create_topics({"instances": 1, "label-requests": 1, "outcomes": 1})
    log.writer("feeder").append([Append("instances", 0, b"{}")] * 3)
    fresh = Inspection(log, Topics(), "streamal")
    [standing] = fresh.standings([BudgetPlan(0.1)])
    assert (standing.seen, standing.asked, standing.allowed, standing.pending, standing.lag) == (0, 0, 0.0, 0, 3)
    assert fresh.waiting() == []
    assert fresh.estimates() == Estimates()
    log.close()


def test_a_tail_shows_the_last_and_follows(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "log.db")
    log.create_topics({"answers": 2})
    writer = log.writer("annotator")
    writer.append([Append("answers", number % 2, str(number).encode()) for number in range(10)])
    found = tail(log, "answers", 2, follow=True)
    assert [orjson.loads(next(found))["value"] for _ in range(4)] == [6, 8, 7, 9]
    # the generator looks for the ends before it waits, so what is appended now is new to it
    writer.append([Append("answers", 0, b'{"late": true}')])
    following = orjson.loads(next(found))
    assert (following["value"], following["offset"]) == ({"late": True}, 5)
    log.close()


@pytest.mark.parametrize(
    ("number", "values"), [(0, []), (1, [9]), (4, [6, 7, 8, 9]), (10, [*range(10)]), (99, [*range(10)])]
)
def test_a_tail_is_as_long_as_asked_for(tmp_path: Path, number: int, values: list[int]) -> None:
    log = EmbeddedLog(tmp_path / "log.db")
    log.create_topics({"answers": 1})
    log.writer("annotator").append([Append("answers", 0, str(value).encode()) for value in range(10)])
    assert [orjson.loads(line)["value"] for line in tail(log, "answers", number, follow=False)] == values
    log.close()


@pytest.mark.kafka
@pytest.mark.parametrize(("number", "values"), [(1, [9]), (3, [7, 8, 9]), (99, [*range(10)])])
def test_a_tail_passes_over_transaction_markers(broker: Broker, number: int, values: list[int]) -> None:
    log = KafkaLog(broker.bootstrap)
    topic = f"tail-{uuid4().hex}"
    log.create_topics({topic: 1})
    writer = log.writer(topic)
    for value in range(10):
        writer.append([Append(topic, 0, str(value).encode())])
    assert [orjson.loads(line)["value"] for line in tail(log, topic, number, follow=False)] == values
    log.close()


@pytest.mark.parametrize(
    ("value", "shown"), [(b'{"a": 1}', {"a": 1}), (b"\xff{", "\ufffd{"), (None, None), (b'{"a": NaN}', '{"a": NaN}')]
)
def test_any_record_can_be_shown(tmp_path: Path, value: bytes | None, shown: object) -> None:
    log = EmbeddedLog(tmp_path / "log.db")
    log.create_topics({"answers": 1})
    log.writer("annotator").append([Append("answers", 0, value, None, [("a", b"\xff"), ("b", None)])])
    [record] = log.reader().read(TopicPartition("answers", 0), 0, 1)
    found = orjson.loads(as_line(record))
    assert found["value"] == shown
    assert found["headers"] == {"a": "\ufffd", "b": ""}
    assert found["key"] is None
    log.close()


def test_of_a_snapshot_the_facts_are_shown_and_not_its_bytes(tmp_path: Path) -> None:
    log = EmbeddedLog(tmp_path / "log.db")
    log.create_topics({"snapshots": 1})
    log.writer("worker").append(taken_apart(bytes(range(256)), TopicPartition("snapshots", 0)))
    chunk, manifest = map(orjson.loads, tail(log, "snapshots", 9, follow=False))
    assert (chunk["key"], chunk["value"]) == ("model/0", {"bytes": 256})
    assert (manifest["key"], manifest["value"]["chunks"], manifest["value"]["bytes"]) == ("model/manifest", 1, 256)
    assert chunk["headers"]["snapshot"] == manifest["value"]["sha256"]
    log.close()


def test_words_name_the_reason_the_guess_and_the_budget(request_made: LabelRequest) -> None:
    sure = replace(request_made, reason="uncertainty", propensity=1.0, prediction={"ok": 0.52, "fraud": 0.48})
    text = in_words(sure, None)
    assert "the strategy found its label worth the budget (uncertainty, strategy class_conditional)" in text
    assert "said: ok 52.0%, fraud 48.0%." in text
    assert "It was certain to be asked." in text
    assert f"{sure.budget['asked']:g} asked of {sure.budget['allowed']:g} allowed" in text
    assert "No outcome yet" in text


def test_words_on_a_loan_say_that_it_is_paid_back(request_made: LabelRequest) -> None:
    early = replace(request_made, budget={"seen": 1, "asked": 1, "allowed": 0.2})
    assert "1 asked of 0.2 allowed, 1 seen. What is ahead of it is paid back" in in_words(early, None)
    late = replace(request_made, budget={"seen": 100, "asked": 1, "allowed": 20.0})
    assert "paid back" not in in_words(late, None)


def test_words_on_a_model_that_knows_nothing_and_on_a_number(request_made: LabelRequest) -> None:
    assert "said: nothing yet." in in_words(replace(request_made, prediction={}), None)
    assert "said: 1250.5." in in_words(replace(request_made, prediction={VALUE: 1250.5}), None)


def test_words_say_what_an_infinite_utility_means(request_made: LabelRequest) -> None:
    assert "Utility 0.25. It" in in_words(replace(request_made, utility=0.25), None)
    text = in_words(replace(request_made, utility=math.inf), None)
    assert "Utility inf, which ranks highest: there was nothing yet to measure it by. It" in text


def test_words_tell_that_a_synthetic_request_is_about_no_real_instance(request_made: LabelRequest) -> None:
    told = in_words(replace(request_made, synthetic=True), None)
    assert f" about a made-up one near instance {request_made.instance_id}, made 19" in told


def test_words_tell_the_unbiased_arm(request_made: LabelRequest) -> None:
    drawn = replace(request_made, reason="exploration", propensity=0.01, would_select=True)
    assert "a chance of 0.01 of being asked; the strategy would have asked anyhow." in in_words(drawn, None)
    assert "asked." in in_words(replace(drawn, would_select=False), None)


def test_words_on_the_quality_show_the_naive_figure_never_alone() -> None:
    assert quality_in_words(Estimates(500, 4)) == [
        "Quality on the whole stream: unknown with 4 audit labels; 5 are needed."
    ]
    mae = Estimates(500, 40, {"mae": Estimate(12.345, None, None, 40)}, naive={"mae": 20.0}, response={"selected": 1.0})
    assert quality_in_words(mae)[0] == "Mean absolute error on the whole stream 12.35, on the answered ones 20."
    assert all(len(line) < 80 for line in quality_in_words(mae))


def test_words_tell_the_recall_of_the_rarest_classes_each_in_one_line() -> None:
    recall = {f"class {number}-{number}": Estimate(0.5, 0.25, 0.75, 100 - number) for number in range(35)}
    found = Estimates(500, 40, {"accuracy": Estimate(0.8, 0.7, 0.9, 40)}, recall, naive={"accuracy": 0.7})
    words = quality_in_words(found)[3:]
    assert words[0].startswith("Recall, the 20 rarest of 35 classes: class 34-34 0.50 (0.25 to 0.75),")
    assert words[-1].endswith("class 15-15 0.50 (0.25 to 0.75).")
    assert all(len(line) < 80 and line.endswith(("),", ").")) for line in words)


@pytest.mark.parametrize(("untaught", "told"), [(0, False), (9, False), (10, True), (100, True)])
def test_words_tell_of_requests_made_before_anything_was_learned_where_they_are_many(untaught: int, told: bool) -> None:
    measures = {"accuracy": Estimate(0.1, 0.05, 0.2, 40)}
    found = Estimates(500, 40, measures, naive={"accuracy": 0.1}, answered=100, untaught=untaught)
    said = (
        f"{untaught} of the 100 answered requests were made before the model had learned anything, and count as wrong."
    )
    assert (said in " ".join(quality_in_words(found))) == told


@pytest.mark.parametrize(
    ("pays", "low", "high", "said"),
    [
        (True, 0.01, 0.09, ["Further labels still pay."]),
        (False, -0.05, 0.03, ["no longer pay at this rate, so far as 900 audit labels can tell", "more than 0.030"]),
        (False, -0.09, -0.01, ["no longer pay", "more than 0.000"]),
        (None, -0.05, 0.12, ["cannot be told yet from 900 audit labels", "up to 0.120"]),
    ],
)
def test_words_tell_whether_labels_pay_and_what_may_be_unseen(
    pays: bool | None, low: float, high: float, said: list[str]
) -> None:
    gain = Improvement((low + high) / 2, low, high, 1_234_567, 900, pays)
    found = Estimates(500, 40, {"accuracy": Estimate(0.8, 0.7, 0.9, 40)}, naive={"accuracy": 0.7}, improvement=gain)
    words = quality_in_words(found)[3:]
    assert words[0] == f"The last 1,234,567 labels raised the accuracy by {gain.value:.3f} ({low:.3f} to {high:.3f})."
    assert [part for part in said if part not in " ".join(words)] == []
    mae = replace(found, measures={"mae": Estimate(12.3, 11.0, 14.0, 40)}, naive={"mae": 20.0})
    assert quality_in_words(mae)[3].startswith("The last 1,234,567 labels lowered the error by ")
    assert all(len(line) < 80 for line in (*words, *quality_in_words(mae)[3:]))


def test_words_tell_the_outcome(request_made: LabelRequest) -> None:
    assert "Outcome: learned as usual by someone, 1970-01-01T00:00:01.000Z." in in_words(
        request_made, outcome_of(request_made)
    )
    assert "Outcome: abstained by someone" in in_words(request_made, outcome_of(request_made, "unsure"))


@pytest.mark.parametrize("reason", sorted(WHY))
def test_every_reason_has_words(request_made: LabelRequest, reason: Any) -> None:
    assert f"({reason}, " in in_words(replace(request_made, reason=reason), None)


def test_no_reason_is_without_words() -> None:
    from typing import get_args

    from streamal.messages import Reason

    assert set(get_args(Reason)) == WHY.keys()


def test_an_instance_that_nobody_was_asked_about_is_found_where_it_was_put(inspection: Inspection, log: Log) -> None:
    records = [Unlabelled(0, 900_001, "i", {"x": 1.0}, 7), Unlabelled(1, 900_001, "j", {"x": 2.0}, 8, "usual", 0.75)]
    log.writer("former").append(
        [Append(inspection._topics.outcomes, 0, record.encode(), record.key.encode()) for record in records]
    )
    assert [inspection.unasked(f"{record.partition}-900001") for record in records] == records
    assert inspection.unasked("0-900002") is None
    assert unasked_in_words(records[0]).endswith("The model (version 7) observed it without a label.")
    assert "75.0% sure of usual" in unasked_in_words(records[1])
    assert inspection.request("0-900001") == (None, None)

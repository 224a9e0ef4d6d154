"""One worker in this process, transactions torn under its hands, and what the next owner and the replay make of it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from math import inf, nextafter
from pathlib import Path
from typing import Any

import orjson
import pytest

from streamal import assemble
from streamal.errors import TransportError
from streamal.service import control, ledgers
from streamal.service.audit import audit_of
from streamal.service.control import Change
from streamal.service.inspection import Inspection
from streamal.service.ledgers import decode_metadata
from streamal.service.recovery import Recovery
from streamal.service.replay import PartitionReport, Stretch
from streamal.service.verify import verify
from streamal.settings import load, revised
from streamal.transport.log import Append, Position, Record, TopicPartition, Transaction

INSTANCES = TopicPartition("instances", 0)
TURNS = 20_000


class Solo:
    """A worker on a partition of its own, turned by hand."""

    def __init__(self, directory: Path, **sections: Mapping[str, Any]) -> None:
        self.settings = load(None)
        own: dict[str, dict[str, Any]] = {
            "transport": {"partitions": 1, "path": str(directory / "log.db")},
            "delivery": {"commit_interval": 0.005},
            "snapshot": {"directory": str(directory)},
            "http": {"port": 0},
        }
        for section in own.keys() | sections.keys():
            self.settings = revised(self.settings, section, own.get(section, {}) | dict(sections.get(section, {})))
        self.log = assemble.open_log(self.settings)
        self._writer = self.log.writer("feed")
        self._fed = 0

    def start(self) -> None:
        """Start a worker that owns the partition after the first turns."""
        self._opened = assemble.open_log(self.settings)
        self._worker = assemble.build_service(self.settings, self._opened).worker
        self._loop = self._worker.start()
        self.turn(lambda: bool(self._loop.holdings))

    def turn(self, until: Callable[[], bool]) -> None:
        """Turn until something is true."""
        for _ in range(TURNS):
            if until():
                return
            self._worker.turn(self._loop)
        pytest.fail("nothing came of it")

    def stop(self) -> None:
        """End in order."""
        self._worker.stop()
        self._worker.run()

    def feed(self, count: int, *, broken: bool = False) -> None:
        """Append instances, and wait until they are decided on and committed; `broken` ones are refused."""
        rows = [
            {"id": str(n), "features": {"x": n % 7 / 7, "y": n % 5 / 5}, "label": "ab"[n % 2]}
            for n in range(self._fed, self._fed + count)
        ]
        self._fed += count
        self._writer.append([Append("instances", 0, orjson.dumps(row)[: -1 if broken else None]) for row in rows])
        self.turn(lambda: self.position.offset == self._fed)

    def answer(self, requests: Sequence[str], annotator: str) -> None:
        """Answer requests, and wait until the answers are matched and committed."""
        said = [{"request_id": request_id, "label": "a", "annotator": annotator} for request_id in requests]
        self._said = self._writer.append([Append("answers", 0, orjson.dumps(one)) for one in said])[-1] + 1
        self.turn(lambda: self.answered)

    @property
    def answered(self) -> bool:
        """Whether all answers are matched and committed."""
        place = TopicPartition("answers", 0)
        found = self.log.positions(self.settings.transport.group, [place]).get(place, Position(0, ""))
        return found.offset == self._said

    def tear(self, count: int, *, audited: bool = True) -> None:
        """Let the transactions about the next instances show their records and never move the positions."""
        self.tear_while(lambda: self.feed(count), audited=audited)

    def tear_while(self, work: Callable[[], object], *, audited: bool = True) -> None:
        """Let the transactions about some work show their records and never move the positions."""
        writer = self._worker._committer._writer  # type: ignore[union-attr]

        def commit(transaction: Transaction) -> Mapping[TopicPartition, Position]:
            transaction.positions(writer.append([a for a in transaction.appends if audited or a.topic != "decisions"]))
            message = "torn"
            raise TransportError(message)

        writer.commit = commit  # type: ignore[method-assign]
        with pytest.raises(TransportError, match="torn"):
            work()
        self._worker._membership.close()  # type: ignore[union-attr]
        self._opened.close()

    def order(self, **values: Any) -> None:
        """Change settings of the budget while the worker runs."""
        appends = [Change(key, value, "ada", 0.0).append("control") for key, value in values.items()]
        version = self._writer.append(appends)[-1] + 1
        self.turn(lambda: self._loop._control.version >= version)
        for _ in range(50):
            self._worker.turn(self._loop)

    @property
    def position(self) -> Position:
        return self.log.positions(self.settings.transport.group, [INSTANCES]).get(INSTANCES, Position(0, ""))

    def records(self, topic: str) -> Sequence[Record]:
        place = TopicPartition(topic, 0)
        return list(self.log.reader().read(place, *self.log.bounds(place)))

    def keys(self, topic: str) -> Counter[bytes | None]:
        """Count the records of a topic by their key, without moments."""
        return Counter(record.key for record in self.records(topic) if not (record.key or b"").startswith(b"moments"))

    def waiting(self) -> set[bytes]:
        """Return the keys of the requests that wait, as somebody outside sees them."""
        found = Inspection(self.log, assemble.topics_of(self.settings), self.settings.transport.group).waiting()
        return {request.request_id.encode() for request in found}

    def verify(self) -> PartitionReport:
        return verify(assemble.subject_of(self.settings, self.log)).partitions[0]


def value_of(record: Record) -> Any:
    return orjson.loads(record.value or b"")


@pytest.fixture
def solo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Solo]]:
    monkeypatch.setattr(control, "POLL_EVERY", 0.0)
    made: list[Solo] = []

    def build(**sections: Mapping[str, Any]) -> Solo:
        made.append(Solo(tmp_path, **sections))
        return made[-1]

    yield build
    for one in made:
        one.log.close()


@pytest.mark.parametrize("audited", [True, False])
@pytest.mark.parametrize("before", [0, 300])
def test_what_a_torn_transaction_left_is_neither_asked_nor_learned_again(
    solo: Callable[..., Solo], before: int, audited: bool
) -> None:
    at = solo(instance={"label": "label"}, strategy={"window": 32})
    at.start()
    if before:
        at.feed(before)
    at.tear(500, audited=audited and before > 0)
    at.start()
    at.feed(400)
    at.stop()
    at.start()  # the adopted requests belong to somebody for every later owner as well
    at.feed(100)
    at.stop()
    assert set(at.keys("label-requests").values()) == {1}
    assert at.keys("outcomes") == at.keys("label-requests")
    found = at.verify()
    assert found.differences == []
    assert (found.torn, found.instances) == (1, before + 1_000)
    ledger, _ = decode_metadata(at.position.metadata)
    assert ledger["budget"]["asked"] == at.keys("label-requests").total()


POOL: dict[str, Mapping[str, Any]] = {
    "strategy": {"name": "pool", "parameters": {"pool_window": 100}},
    "budget": {"cold_start_loan": 0},
}


@pytest.mark.parametrize("audited", [True, False])
@pytest.mark.parametrize("before", [40, 330])
@pytest.mark.parametrize("torn", [80, 120, 500])
def test_what_a_torn_transaction_asked_at_a_windows_end_is_not_asked_again(
    solo: Callable[..., Solo], torn: int, before: int, audited: bool
) -> None:
    """Some of it is about instances before the position, in the window that was open there."""
    at = solo(**POOL)
    at.start()
    at.feed(before)
    asked = at.keys("label-requests").total()
    at.tear(torn, audited=audited)
    left = at.keys("label-requests").total() - asked
    assert left > 0
    at.start()
    at.feed(400)
    at.stop()
    at.start()
    at.feed(170)
    at.stop()
    found = at.verify()
    assert found.differences == []
    assert (found.torn, found.instances) == (1, before + torn + 570)
    keys = at.keys("label-requests")
    assert set(keys.values()) == {1}
    ledger, _ = decode_metadata(at.position.metadata)
    assert ledger["budget"]["asked"] == keys.total()
    assert at.waiting() == set(keys)
    spent = [orjson.loads(record.value or b"")["budget"] for record in at.records("label-requests")]
    assert [one["asked"] for one in spent] == list(range(1, len(spent) + 1))
    assert all(one["asked"] <= one["allowed"] + 1e-9 for one in spent)
    assert ledger["budget"]["asked"] >= 0.9 * 0.05 * (ledger["budget"]["seen"] - ledger["window"]["count"])


def test_refused_records_do_not_count_in_a_window_that_goes_on_elsewhere(solo: Callable[..., Solo]) -> None:
    at = solo(**POOL)
    at.start()
    for _ in range(9):
        at.feed(37)
        at.feed(41, broken=True)
        at.stop()
        at.start()
    at.stop()
    found = at.verify()
    assert found.differences == []
    assert (found.instances, found.letters, found.takeovers) == (9 * 37, 9 * 41, 9)
    ledger, _ = decode_metadata(at.position.metadata)
    window = ledger["window"]
    assert (window["first"], window["count"]) == (8 * 78 + 4, 33)
    assert int(window["decided"], 16).bit_count() <= 2
    chosen = [request for request in map(value_of, at.records("label-requests")) if request["reason"] == "uncertainty"]
    assert {request["budget"]["seen"] for request in chosen} <= {100, 200, 300}
    assert len({request["offset"] for request in chosen}) == len(chosen) > 3
    ages = [r["budget"]["seen"] - (r["offset"] // 78 * 37 + r["offset"] % 78 + 1) for r in chosen]
    assert sum(age >= 37 for age in ages) > len(ages) / 3, "from before the last takeover"
    assert 0 <= min(ages) <= max(ages) < 100


def test_a_lost_ledger_comes_back_with_its_window(solo: Callable[..., Solo]) -> None:
    """Without what a transaction asked that the audit does not know of, even about instances before the position."""
    at = solo(**POOL, model={"scaling": "labelled"})
    at.start()
    at.feed(330)
    held = at.position
    at.tear(90, audited=False)
    at.log.set_positions(at.settings.transport.group, {INSTANCES: Position(held.offset, "")})
    recovery = Recovery(at.log, assemble.topics_of(at.settings), at.settings.transport.group)
    [found] = recovery.look()
    (ledger, pointers), (back, their) = (decode_metadata(p.metadata) for p in (held, found.positions[INSTANCES]))
    assert back == ledger
    assert (their.requests_low, their.requests_end) == (pointers.requests_low, pointers.requests_end)
    recovery.put_back([found])
    at.start()
    at.feed(100)
    at.stop()
    assert set(at.keys("label-requests").values()) == {1}
    assert at.verify().differences == []


def test_votes_that_a_torn_transaction_left_count_once(solo: Callable[..., Solo]) -> None:
    at = solo(annotation={"answers_per_request": 3}, strategy={"window": 32})
    at.start()
    at.feed(200)
    asked = [key.decode() for key in at.keys("label-requests") if key]
    at.answer(asked, "ada")
    at.tear_while(lambda: at.answer(asked, "bob"))
    torn = at.keys("outcomes")
    assert set(torn.values()) == {2}
    at.start()
    at.turn(lambda: at.answered)
    assert at.keys("outcomes") == torn, "what bob said lies there already"
    assert [value_of(record)["annotator"] for record in at.records("dead-letters")] == ["bob"] * len(asked)
    at.stop()
    at.start()
    at.answer(asked, "cyd")
    at.stop()
    ended = [value_of(record) for record in at.records("outcomes") if value_of(record)["kind"] == "learned"]
    assert sorted(outcome["request_id"] for outcome in ended) == sorted(asked)
    assert all([vote["annotator"] for vote in one["votes"]] == ["ada", "bob", "cyd"] for one in ended)
    found = at.verify()
    assert (found.differences, found.torn) == ([], 1)


def test_a_lost_ledger_comes_back_with_the_votes_on_what_waits(solo: Callable[..., Solo]) -> None:
    at = solo(annotation={"answers_per_request": 2}, strategy={"window": 32})
    at.start()
    at.feed(200)
    asked = [key.decode() for key in at.keys("label-requests") if key]
    at.answer(asked, "ada")
    at.stop()
    held = at.position
    at.log.set_positions(at.settings.transport.group, {INSTANCES: Position(held.offset, "")})
    recovery = Recovery(at.log, assemble.topics_of(at.settings), at.settings.transport.group)
    recovery.put_back(recovery.look())
    assert decode_metadata(at.position.metadata)[1].outcomes_end == decode_metadata(held.metadata)[1].outcomes_end
    at.start()
    at.answer(asked, "bob")
    at.stop()
    assert at.waiting() == set()
    assert at.verify().differences == []


def test_orders_on_an_idle_partition_are_audited_one_by_one(solo: Callable[..., Solo]) -> None:
    at = solo(strategy={"window": 32})
    at.start()
    at.feed(400)
    at.order(rate=0.3)
    at.order(rate=None)
    at.feed(400)
    at.stop()
    plans = [audit for record in at.records("decisions") if (audit := orjson.loads(record.value or b""))["plan"]]
    assert [audit["plan"]["budget"]["rate"] for audit in plans] == [0.3, 0.05]
    assert [audit["orders"][0]["by"] for audit in plans] == ["ada", "ada"]
    assert at.verify().differences == []


def test_what_is_lost_at_a_takeover_is_found(solo: Callable[..., Solo]) -> None:
    at = solo(strategy={"window": 32})
    at.start()
    at.feed(300)
    at.stop()
    held = at.position
    at.log.set_positions(at.settings.transport.group, {INSTANCES: Position(held.offset + 60, held.metadata)})
    at._writer.append([Append("instances", 0, b'{"features": {"x": 1.0}}')] * 60)
    at._fed += 60
    at.start()
    at.feed(100)
    at.stop()
    assert any("began at instance 360, and the one before had ended at 300" in line for line in at.verify().differences)


def test_another_config_is_named_beside_the_differences(solo: Callable[..., Solo]) -> None:
    at = solo(instance={"label": "label"}, strategy={"window": 32})
    at.start()
    at.feed(300)
    at.feed(300)
    at.stop()
    at.settings = revised(at.settings, "model", {"kind": "gaussian_nb"})
    found = at.verify()
    assert found.differences
    assert any("verify with the config of that time" in note for note in found.notes)


TRAINED: dict[str, Mapping[str, Any]] = {
    "instance": {"label": "label"},
    "budget": {"rate": 0.3},
    "learn": {"unlabelled_share": 1.0, "self_training": 0.51},
    "model": {"kind": "gaussian_nb"},
    "strategy": {"window": 32},
}
OBSERVED = TRAINED | {"learn": {"unlabelled_share": 0.9}, "model": {"factory": "specimens:scaled"}}


def unlabelled(at: Solo) -> Counter[bytes]:
    """Count the unlabelled records by the key of the request that was not made."""
    keys = at.keys("outcomes")
    prefix = b"unlabelled-"
    return Counter({key.removeprefix(prefix): n for key, n in keys.items() if key and key.startswith(prefix)})


@pytest.mark.parametrize(("sections", "kind"), [(TRAINED, "pseudo_labelled"), (OBSERVED, "unlabelled")])
@pytest.mark.parametrize("restart", [False, True])
def test_unlabelled_instances_are_replayed_and_survive_a_restart(
    solo: Callable[..., Solo], restart: bool, sections: Mapping[str, Mapping[str, Any]], kind: str
) -> None:
    at = solo(**sections)
    at.start()
    at.feed(400)
    if restart:
        at.stop()
        at.start()
    at.feed(400)
    at.stop()
    found = at.verify()
    assert (found.differences, found.unverifiable, found.instances) == ([], [], 800)
    kept = unlabelled(at)
    assert set(kept.values()) == {1}
    assert len(kept) > 200
    assert kept.keys().isdisjoint(key for key in at.keys("label-requests") if key)
    assert {value_of(record)["kind"] for record in at.records("outcomes")} == {"learned", kind}


def unlabelled_keys(at: Solo) -> set[bytes | None]:
    return {key for key in at.keys("outcomes") if (key or b"").startswith(b"unlabelled-")}


def test_a_replay_notices_a_pseudo_label_that_the_model_did_not_give(solo: Callable[..., Solo]) -> None:
    at = solo(**TRAINED)
    at.start()
    at.feed(400)
    at.feed(100)
    at.stop()
    assert at.verify().differences == []
    forged = next(record for record in at.records("outcomes") if record.key in unlabelled_keys(at))
    value = orjson.dumps(value_of(forged) | {"probability": 0.999})
    with closing(sqlite3.connect(at.settings.transport.path, isolation_level=None)) as file:
        where = "topic = (SELECT id FROM topic WHERE name = 'outcomes') AND offset = ?"
        assert file.execute(f"UPDATE record SET value = ? WHERE {where}", (value, forged.offset)).rowcount == 1
    assert "probability" in at.verify().differences[0]


@pytest.mark.parametrize("within", [300, 5_000])
def test_of_a_torn_transaction_nothing_is_learned_twice_however_many_have_no_label(
    solo: Callable[..., Solo], within: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it learned lies before hundreds of unlabelled records, which do not count."""
    monkeypatch.setattr(ledgers, "TORN_WITHIN", within)
    at = solo(**TRAINED)
    at.start()
    at.feed(400)
    at.tear(500)
    torn = unlabelled(at)
    at.start()
    at.feed(400)
    at.stop()
    kept = unlabelled(at)
    assert len(kept) > len(torn) > 300
    assert set(kept.values()) == {1}
    asked = {key for key in at.keys("label-requests") if key}
    assert kept.keys().isdisjoint(asked)
    learned = {key: n for key, n in at.keys("outcomes").items() if key not in unlabelled_keys(at)}
    assert learned == dict.fromkeys(asked, 1)
    found = at.verify()
    assert (found.differences, found.torn, found.instances) == ([], 1, 1_300)


def test_what_another_model_decided_is_verified_from_its_own_beginning_on(solo: Callable[..., Solo]) -> None:
    at = solo(instance={"label": "label"})
    at.start()
    at.feed(300)
    at.stop()
    ended = audit_of(at.records("decisions")[-1]).at
    at.settings = revised(at.settings, "model", {"kind": "gaussian_nb"})
    at.start()
    at.feed(300)
    at.stop()
    [found] = verify(assemble.subject_of(at.settings, at.log), (), Stretch(since=nextafter(ended, inf))).partitions
    assert (found.differences, found.notes) == ([], [])
    assert (found.first, found.next) == (300, 600)

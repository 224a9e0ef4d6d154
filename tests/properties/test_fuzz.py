"""Whatever others write: each decoder takes it or raises its one documented error, at once, and is none the worse."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from specimens import dump

from streamal.decoding import AnswerDecoder, InstanceDecoder, InstanceFormat
from streamal.errors import BadRecord, ConfigError, SnapshotRefused
from streamal.learning.allowed import ALLOWED
from streamal.learning.presets import build
from streamal.learning.snapshot import LENGTH_BYTES, MAGIC, SIGNATURE_BYTES, load, sign
from streamal.messages import LabelRequest, Moment, Moments, Outcome, Unlabelled, Vote, decode_outcome
from streamal.service.ledgers import Pointers, decode_metadata, encode_metadata, frame, unframe
from streamal.settings import example_toml
from streamal.settings import load as load_settings
from streamal.transport.log import Headers
from streamal.transport.log_file import pack_headers, unpack_headers
from streamal.web.metrics import Metrics
from streamal.web.server import Server
from streamal.web.status import Status, StatusBoard

KEY = b"k" * 32
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
JSONS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@dataclass(frozen=True)
class Came:
    """A record of a topic that others write to."""

    value: bytes | None
    headers: Headers = ()
    key: bytes | None = None
    topic: str = "instances"
    partition: int = 0
    offset: int = 3
    timestamp: int = 4_000


INSTANCE = {"id": "i", "features": {"x": 1.5, "s": "text", "n": None}, "display": {"a": [1]}, "label": "a", "cost": 2}
ANSWER = {"request_id": "0-3", "kind": "label", "label": "a", "annotator": "ada"}
REQUEST = LabelRequest(
    0, 3, "i", {"x": 1.5}, None, {"a": 1.0}, 0.5, 0.5, "uncertainty", True, "split", 7, 1.0, None, {"seen": 1.0}
)
OUTCOME = Outcome(
    "learned", 0, 3, "i", {"x": 1.5}, "a", 1.0, {"a": 1.0}, 0.5, 0.5, "uncertainty", True, "split", 7, 1.0, 2.0, "ada"
)
MOMENTS = Moments(0, 4, {"x": Moment(4, 0.5, 1.0)})
VOTE = Vote(0, 3, "ada", "label", "a", 0, 1.5)
POLLED = replace(OUTCOME, annotator=None, votes=(VOTE, replace(VOTE, annotator="bob", kind="unsure", label=None)))
UNLABELLED = Unlabelled(0, 3, "i", {"x": 1.5}, 7, "a", 0.9)


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """A valid value with some bytes replaced, left out or put in, or with a part of its JSON replaced by any other."""

    def splice(at: int, gone: int, new: bytes) -> bytes:
        at %= len(valid) + 1
        return valid[:at] + new + valid[at + gone :]

    def replace(path: Sequence[int], new: Any) -> bytes:
        found = root = orjson.loads(valid)
        for step in path:
            if not isinstance(found, dict | list) or not found:
                break
            key = list(found)[step % len(found)] if isinstance(found, dict) else step % len(found)
            if not isinstance(found[key], dict | list) or step % 3 == 0:
                found[key] = new
                break
            found = found[key]
        return orjson.dumps(root)

    spliced = st.builds(splice, st.integers(0), st.integers(0, 5), st.binary(max_size=5))
    try:
        orjson.loads(valid)
    except orjson.JSONDecodeError:
        return spliced
    return spliced | st.builds(replace, st.lists(st.integers(0, 40), min_size=1, max_size=4), JSONS)


def hostile(valid: bytes) -> st.SearchStrategy[bytes]:
    """Anything: bytes, JSON, and what was valid once."""
    return st.binary(max_size=40) | JSONS.map(orjson.dumps) | mutated(valid)


headers = st.lists(
    st.tuples(st.sampled_from(["schema", "x", ""]) | st.text(max_size=5), st.none() | st.binary(max_size=12)),
    max_size=3,
)


@given(
    value=st.none() | hostile(orjson.dumps(INSTANCE)), given_headers=headers, whole=st.booleans(), number=st.booleans()
)
def test_instances(value: bytes | None, given_headers: Headers, whole: bool, number: bool) -> None:
    form = InstanceFormat(
        features="" if whole else "features",
        label="label",
        cost="x" if number else 1.0,
        types={"x": "number"},
        task="regression" if number else "classification",
        max_features=5,
    )
    decode = InstanceDecoder(form)
    good = Came(orjson.dumps({"features": {"x": 1.5}, "x": 1.5}))
    before = repr(InstanceDecoder(form)(good)) if not whole else None
    with suppress(BadRecord):
        decode(Came(value, given_headers))
    if not whole:
        assert repr(decode(good)) == before


@given(value=st.none() | hostile(orjson.dumps(ANSWER)), given_headers=headers, number=st.booleans())
def test_answers(value: bytes | None, given_headers: Headers, number: bool) -> None:
    decode = AnswerDecoder("regression" if number else "classification")
    with suppress(BadRecord):
        found = decode(Came(value, given_headers))
        assert (found.label is not None) == (found.kind == "label")


@given(
    value=hostile(OUTCOME.encode())
    | mutated(MOMENTS.encode())
    | mutated(VOTE.encode())
    | mutated(POLLED.encode())
    | mutated(UNLABELLED.encode())
)
def test_outcomes(value: bytes) -> None:
    with suppress(ValueError):
        found = decode_outcome(value)
        assert decode_outcome(found.encode()).encode() == found.encode()


@given(value=hostile(REQUEST.encode()))
def test_label_requests(value: bytes) -> None:
    with suppress(ValueError):
        found = LabelRequest.decode(value)
        assert LabelRequest.decode(found.encode()).encode() == found.encode()


LEDGER = encode_metadata({"seen": 3, "asked": 1}, Pointers(1, 2, 3))


@given(text=st.text(max_size=40) | mutated(LEDGER.encode()).map(lambda found: found.decode(errors="surrogateescape")))
def test_frames(text: str) -> None:
    with suppress(ValueError):
        assert unframe(frame(unframe(text))) == unframe(text)
    with suppress(ValueError):
        decode_metadata(text)


@given(value=hostile(orjson.dumps({"v": 1, "ledger": {"seen": 3}, "pointers": [1, 2, 3]})))
def test_ledgers(value: bytes) -> None:
    with suppress(ValueError):
        ledger, pointers = decode_metadata(frame(value.decode()))
        assert isinstance(ledger, dict)
        assert all(type(place) is int and place >= 0 for place in vars_of(pointers))


def vars_of(pointers: Pointers) -> list[int]:
    return [pointers.requests_low, pointers.requests_end, pointers.outcomes_end]


HEADERS = pack_headers([("schema", b"streamal/1"), ("x", None)]) or b""


@given(packed=st.binary(max_size=40) | mutated(HEADERS))
def test_headers_of_the_file(packed: bytes) -> None:
    with suppress(ValueError):
        assert unpack_headers(pack_headers(unpack_headers(packed)) or b"") == unpack_headers(packed)


def blob_of(kind: str) -> bytes:
    rng = Random(3)
    model = build(kind, parameters={}, seed=1)
    for index in range(400):
        x = rng.gauss(0, 1)
        model.learn({"x": x, "s": "ab"[index % 2]}, x if model.task == "regression" else "pq"[x > 0])
    return dump(model, version=9, allowed=ALLOWED[kind], key=KEY)


def opened(blob: bytes, kind: str) -> None:
    with suppress(SnapshotRefused):
        load(blob, config_hash="c", key=KEY, allowed=ALLOWED[kind])


def test_snapshots_with_any_byte_altered() -> None:
    blob = blob_of("gaussian_nb")
    for at in range(len(blob)):
        with pytest.raises(SnapshotRefused):
            load(
                blob[:at] + bytes([blob[at] ^ 0x55]) + blob[at + 1 :],
                config_hash="c",
                key=KEY,
                allowed=ALLOWED["gaussian_nb"],
            )
        with pytest.raises(SnapshotRefused):
            load(blob[:at], config_hash="c", key=KEY, allowed=ALLOWED["gaussian_nb"])


@pytest.mark.parametrize("kind", ALLOWED)
def test_snapshots_with_any_byte_altered_by_who_has_the_key(kind: str) -> None:
    content = blob_of(kind)[:-SIGNATURE_BYTES]
    rng = Random(5)
    places = range(len(content)) if len(content) < 400 else sorted(rng.sample(range(len(content)), 400))
    for at in places:
        altered = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        opened(altered + sign(altered, KEY), kind)


@given(payload=st.binary(max_size=60), header=st.binary(max_size=60) | JSONS.map(orjson.dumps))
def test_snapshots_made_up_by_who_has_the_key(payload: bytes, header: bytes) -> None:
    content = MAGIC + len(header).to_bytes(LENGTH_BYTES) + header + payload
    opened(content + sign(content, KEY), "gaussian_nb")
    opened(payload + sign(payload, KEY), "gaussian_nb")


LINES = example_toml().splitlines()


@given(
    lines=st.lists(
        st.sampled_from(LINES)
        | st.builds(
            lambda line, value: line.split(" = ")[0] + " = " + value,
            st.sampled_from([line for line in LINES if " = " in line]),
            st.sampled_from(
                ["1", "-1", "nan", "inf", '"x"', "[]", "{}", "true", "1e400", "[[1]]", '""', "9" * 400, "\x00"]
            )
            | st.text(max_size=8),
        )
        | st.text(max_size=20),
        max_size=8,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_settings_fragments(lines: list[str], tmp_path: Path) -> None:
    path = tmp_path / "streamal.toml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    with suppress(ConfigError):
        load_settings(path)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    board = StatusBoard(Status("fraud", "running", 0.0, 0.0, 0.05))
    server = Server(board, Metrics("fraud"), "127.0.0.1", 0, "open sesame", clock=lambda: 0.0).start()
    yield server
    server.stop()


def answered(server: Server, sent: bytes) -> bytes:
    with closing(socket.create_connection((server.host, server.port), timeout=60)) as connection:
        found = b""
        with suppress(ConnectionError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65_536):
                found += chunk
        return found


VALID = b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer open sesame\r\nContent-Length: 0\r\n\r\n"
names = st.sampled_from(
    ["Authorization", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Accept", "Host"]
)
lines_of_headers = st.lists(st.tuples(names, st.binary(max_size=20)), max_size=4)


@given(
    sent=st.binary(max_size=100)
    | mutated(VALID)
    | st.builds(
        lambda path, found: (
            b"GET /"
            + path
            + b" HTTP/1.1\r\nHost: x\r\n"
            + b"".join(name.encode() + b": " + value + b"\r\n" for name, value in found)
            + b"\r\n"
        ),
        st.binary(max_size=30),
        lines_of_headers,
    )
)
def test_http(sent: bytes, server: Server) -> None:
    found = answered(server, sent)
    assert found == b"" or found.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 3")), found[:200]
    if b"Bearer open sesame" not in sent:
        assert b'"pipeline"' not in found, "what the token guards"
    assert answered(server, VALID).startswith(b"HTTP/1.1 200")


def test_the_fuzzed_specimens_are_valid() -> None:
    taken: list[Callable[[], object]] = [
        lambda: InstanceDecoder(InstanceFormat())(Came(orjson.dumps(INSTANCE))),
        lambda: AnswerDecoder("classification")(Came(orjson.dumps(ANSWER))),
        lambda: decode_outcome(OUTCOME.encode()),
        lambda: decode_outcome(MOMENTS.encode()),
        lambda: decode_outcome(VOTE.encode()),
        lambda: decode_outcome(POLLED.encode()),
        lambda: decode_outcome(UNLABELLED.encode()),
        lambda: LabelRequest.decode(REQUEST.encode()),
        lambda: decode_metadata(LEDGER),
        lambda: pickle.dumps(blob_of("gaussian_nb")),
    ]
    for take in taken:
        assert take()

"""A record that no worker wrote, in a topic that only workers may write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from served import requests_of, serve_stream, settings_in

from streamal import assemble
from streamal.errors import TransportError
from streamal.service.own_records import outcome_of, request_of
from streamal.transport.log import Append, Record, TopicPartition


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[]", b"\xff", b'{"kind": "learned", "features": {"secret": 1}}'])
@pytest.mark.parametrize("read", [outcome_of, request_of])
def test_it_is_named_by_its_place_and_never_quoted(
    read: Callable[[Record], object], value: bytes | None, tmp_path: Path
) -> None:
    log = assemble.open_log(settings_in(tmp_path))
    log.writer("stranger").append([Append("outcomes", 0, value)])
    (record,) = log.reader().read(TopicPartition("outcomes", 0), 0, 1)
    with pytest.raises(
        TransportError, match=r"outcomes-0, offset 0: .*only workers of this stream may write"
    ) as raised:
        read(record)
    assert "secret" not in str(raised.value)
    log.close()


def test_a_worker_refuses_to_start_on_it_and_what_is_its_own_is_read(tmp_path: Path) -> None:
    settings = serve_stream(tmp_path)
    log = assemble.open_log(settings)
    assert requests_of(log)
    place = TopicPartition("outcomes", 0)
    outcomes = [outcome_of(record) for record in log.reader().read(place, *log.bounds(place))]
    assert {outcome.partition for outcome in outcomes} == {0, 1}
    end = log.bounds(place)[1]
    log.writer("stranger").append([Append("outcomes", 0, b'{"kind": "learned"}')])
    service = assemble.build_service(settings, log)
    with pytest.raises(TransportError, match=f"outcomes-0, offset {end}: this is no outcome"):
        service.worker.run()
    log.close()

"""Events taken apart: whatever the line ends, as the standard reads them."""

import pytest

from gateway.wire import sse
from tests.gateway.wire import LINE_ENDS, STREAMS, parse, recorded


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_run_is_split_into_its_events_without_loss(name: str, end: bytes) -> None:
    stream = recorded(name).replace(b"\n", end)
    events = sse.split(stream)
    assert b"".join(events) == stream
    assert [sse.payload(event).decode() for event in events] == [data for _, data in parse(stream)]


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: 1\n\n", b"1"),
        (b"data:1\n\n", b"1"),
        (b"data:  1\n\n", b" 1"),
        (b"data: 1\ndata: 2\n\n", b"1\n2"),
        (b"data: 1\r\ndata: 2\r\n\r\n", b"1\n2"),
        (b"data: 1\rdata: 2\r\r", b"1\n2"),
        (b"event: a\nid: 7\ndata: 1\n\n", b"1"),
        (b"data:\n\n", b""),
        (b": ping\n\n", b""),
        (b"event: a\n\n", b""),
        (b": data: 1\n\n", b""),
        (b"metadata: 1\n\n", b""),
        (b"data: x data: y\n\n", b"x data: y"),
    ],
)
def test_the_payload_is_what_the_data_lines_say(event: bytes, data: bytes) -> None:
    assert sse.payload(event) == data


def test_a_lone_cr_before_a_crlf_does_not_end_an_event_twice() -> None:
    assert sse.split(b"data: 1\r\n\r\ndata: 2\r\n\r\n") == [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"]

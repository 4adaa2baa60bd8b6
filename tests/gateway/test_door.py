"""What the connections of a listener share."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from gateway.door import Door
from gateway.errors import HeadersTooLarge, InvalidRequest
from gateway.front import Front
from gateway.visit import Visit
from tests.fakes.wire import Wire


def test_the_lines_of_every_answer_are_made_once_for_each_list() -> None:
    door = Door()
    fields = [(b"date", b"now"), (b"x", b"y")]
    lines = door.lines(fields)
    assert lines == b"date: now\r\nx: y\r\n"
    assert door.lines(fields) is lines
    assert door.lines([(b"date", b"later")]) == b"date: later\r\n"


def test_by_itself_it_leaves_every_visit_to_the_application() -> None:
    assert Door().direct(cast(Any, object())) is None


def test_a_head_is_too_large_by_its_fields_or_its_bytes() -> None:
    door = Door(header_fields=2, header_bytes=10)
    assert door.too_large(b"/", [(b"a", b"b"), (b"c", b"d")]) is None
    assert door.too_large(b"/123456", [(b"a", b"b"), (b"c", b"d")]) is not None
    told = door.too_large(b"/", [(b"a", b"b")] * 3)
    assert isinstance(told, HeadersTooLarge)
    assert "fields" in str(told)


@pytest.mark.parametrize(
    ("target", "begins"), [(b"/v1/chat/completions", b'{"error"'), (b"/v1/messages", b'{"type"')]
)
def test_a_refusal_is_whole_and_in_the_dialect_of_its_target(target: bytes, begins: bytes) -> None:
    said = Door().refusal(InvalidRequest("No."), target, b"date: now\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ndate: now\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    assert head.endswith(b"connection: close")
    assert body.startswith(begins)


POST = b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n"


def connected(door: Door, count: int) -> list[Any]:
    """Fronts that share it."""
    served = type("Served", (Front,), {"door": door})
    config = Config(nobody_asks, lifespan="off", log_config=None)
    fronts: list[Any] = []
    for _ in range(count):
        front: Any = served(config=config, server_state=ServerState(), app_state={})
        front.connection_made(Wire(lambda _: None))
        fronts.append(front)
    return fronts


async def nobody_asks(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("every visit is answered directly")


async def test_the_first_whole_request_of_a_turn_is_begun_in_the_read_that_brought_it() -> None:
    begun: list[tuple[Any, bool]] = []

    async def answer(visit: Visit) -> None:
        begun.append((visit.front, visit.at_once))
        while visit.more_body:
            await visit.receive()
        visit.begin(200, b"", 0)
        visit.finish()

    one, two, three = fronts = connected(Door(direct=answer), 3)
    for _ in range(2):  # the second head of a connection is one that comes again
        begun.clear()
        one.data_received(POST + b"h")
        assert begun == [], "its body is not here"
        two.data_received(POST + b"hi")
        three.data_received(POST + b"hi")
        assert begun == [(two, True)]
        await asyncio.sleep(0)
        assert begun == [(two, True), (one, False), (three, False)]
        one.data_received(b"i")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    two.data_received(POST + b"hi")
    assert begun[3:] == [(two, True)], "of the next turn"
    for front in fronts:
        front.connection_lost(None)

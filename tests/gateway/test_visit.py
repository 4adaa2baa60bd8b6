"""One answer as bytes on a connection: framed rightly, written at once, never after its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from gateway.errors import GatewayError, InternalError
from gateway.terms import Head
from gateway.visit import Visit, lines_of


class Wire(asyncio.Transport):
    """A transport that keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = self.closed = False

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


class Front:
    """The connection a visit happens on."""

    logger = logging.getLogger()
    usual = b"date: now\r\n"
    #: Who answers.
    app: Callable[[], Awaitable[None]]

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport = Wire()
        self.flow = FlowControl(self.transport)
        self.tasks: set[asyncio.Task[None]] = set()
        self.refused: list[GatewayError] = []
        self.closed: list[bool] = []

    def answer(self, visit: Visit) -> Awaitable[None]:
        return self.app()

    def on_response_complete(self) -> None: ...

    def refuse(self, exc: GatewayError) -> None:
        self.refused.append(exc)

    def close_after(self, unread: bool) -> None:
        self.closed.append(unread)


def visit(
    method: str = "POST", version: str = "1.1", *, keep_alive: bool = True, unread: bool = False
) -> tuple[Visit, Wire, Front]:
    front = Front()
    wire = front.transport
    assert isinstance(wire, Wire)
    made = Visit(front, Head(method, "/", {}), version=version, keep_alive=keep_alive)
    made.more_body = unread
    return made, wire, front


class Watching:
    """A watcher that counts what it is told."""

    def __init__(self) -> None:
        self.paused = 0

    def gone(self) -> None: ...

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None: ...


@pytest.mark.parametrize("last", [False, True])
async def test_the_last_write_of_an_answer_holds_up_nobody(
    last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it pauses is resumed by nobody: its watcher is not told of the end."""
    made, wire, _ = visit()
    made.watcher = watching = Watching()

    def write(data: bytes) -> None:
        if made.watcher is not None:
            made.watcher.pause()  # as the connection does from inside a write that is too much

    monkeypatch.setattr(wire, "write", write)
    made.begin(200, b"", None)
    made.finish(b"all") if last else made.write(b"some")
    assert watching.paused == (0 if last else 1)


async def test_head_and_first_piece_leave_in_one_write() -> None:
    made, wire, _ = visit()
    made.begin(200, b"a: b\r\n", None)
    assert wire.writes == []
    made.write(b"hello")
    head = b"HTTP/1.1 200 OK\r\ndate: now\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n"
    assert wire.writes == [head + b"5\r\nhello\r\n"]


async def test_the_last_piece_leaves_with_the_end() -> None:
    made, wire, front = visit()
    made.begin(200, b"", None)
    made.write(b"one")
    made.finish(b"two")
    assert wire.writes[1:] == [b"3\r\ntwo\r\n0\r\n\r\n"]
    assert made.response_complete
    assert front.closed == [], "the connection stays for the next request"


async def test_an_answer_of_known_length_is_not_chunked() -> None:
    made, wire, _ = visit()
    made.begin(404, b"", 4)
    made.finish(b"gone")
    assert wire.writes == [b"HTTP/1.1 404 Not Found\r\ndate: now\r\ncontent-length: 4\r\n\r\ngone"]


async def test_an_answer_before_the_body_was_read_closes_the_connection() -> None:
    made, wire, front = visit(unread=True)
    made.begin(401, b"", 0)
    made.finish()
    assert b"connection: close\r\n" in wire.writes[0]
    assert front.closed == [True]


async def test_http_1_0_is_answered_without_chunks() -> None:
    made, wire, front = visit(version="1.0", keep_alive=False)
    made.begin(200, b"", None)
    made.write(b"hello")
    made.finish()
    assert wire.writes[0].endswith(b"connection: close\r\n\r\nhello")
    assert front.closed == [False]


async def test_head_gets_no_body() -> None:
    made, wire, _ = visit("HEAD")
    made.begin(200, b"", 5)
    made.finish(b"hello")
    assert wire.writes[0].endswith(b"content-length: 5\r\n\r\n")


async def test_nothing_is_written_for_a_caller_who_left() -> None:
    made, wire, _ = visit()
    made.disconnected = True
    made.begin(200, b"", None)
    made.write(b"hello")
    made.finish()
    assert wire.writes == []
    assert made.gone


async def test_a_cut_answer_ends_the_connection_at_once() -> None:
    made, wire, _ = visit()
    made.begin(200, b"", None)
    made.write(b"half")
    made.cut()
    made.finish()
    assert wire.aborted
    assert len(wire.writes) == 1, "no end is invented"


async def run(made: Visit, front: Front, app: Callable[[], Awaitable[None]]) -> None:
    front.app = app
    made.start()
    assert front.tasks == {made.task}
    await made.task
    assert not front.tasks


async def test_what_answers_may_begin_at_once() -> None:
    made, _, front = visit()
    steps: list[asyncio.Task[None] | None] = []

    async def app() -> None:
        steps.append(asyncio.current_task())
        await asyncio.sleep(0)
        made.begin(200, b"", None)
        made.finish()

    front.app = app
    made.start(at_once=True)
    assert (steps, front.tasks, made.at_once) == ([made.task], {made.task}, True)
    await made.task
    assert made.response_complete
    assert not front.tasks


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_an_application_that_does_not_answer_is_a_fault_of_ours(
    begun: bool, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made, wire, front = visit()

    async def app() -> None:
        if begun:
            made.begin(200, b"", 10)
        if fails:
            raise ValueError

    await run(made, front, app)
    assert [type(exc) for exc in front.refused] == ([] if begun else [InternalError])
    assert wire.closed is begun
    assert "Exception in ASGI application" in caplog.text


async def test_an_application_that_answered_is_done_with_as_is_one_nobody_hears() -> None:
    made, wire, front = visit()

    async def answers() -> None:
        made.begin(200, b"", 2)
        made.finish(b"ok")

    await run(made, front, answers)
    made, wire, front = visit()
    made.disconnected = True

    async def leaves() -> None: ...

    await run(made, front, leaves)
    assert not front.refused
    assert not wire.closed


async def test_what_starlette_answers_takes_the_same_way() -> None:
    made, wire, _ = visit()
    headers = [(b"content-length", b"2"), (b"x", b"y")]
    await made.send({"type": "http.response.start", "status": 200, "headers": headers})
    await made.send({"type": "http.response.body", "body": b"o", "more_body": True})
    await made.send({"type": "http.response.body", "body": b"k"})
    assert b"".join(wire.writes).endswith(b"x: y\r\ncontent-length: 2\r\n\r\nok")


def test_fields_travel_as_lines() -> None:
    assert lines_of([(b"a", b"b"), (b"c", b"")]) == b"a: b\r\nc: \r\n"


async def test_a_body_that_is_all_here_is_taken_once_and_one_under_way_is_not() -> None:
    made, _, _ = visit(unread=True)
    flow = made.flow = cast(Any, Flow())
    made.add(b"half")
    assert made.take_body() is None
    made.add(b" and half")
    assert made.held == 13
    made.whole()
    assert made.take_body() == b"half and half"
    assert (made.held, flow.resumed) == (0, 1)
    assert made.take_body() == b""
    waiting = asyncio.ensure_future(made.receive())
    await asyncio.sleep(0)
    assert not waiting.done(), "there is nothing new"
    made.leave()
    assert await waiting == {"type": "http.disconnect"}
    assert made.take_body() is None


async def test_a_body_in_pieces_is_received_as_it_comes() -> None:
    made, wire, _ = visit(unread=True)
    flow = made.flow = cast(Any, Flow())
    made.add(b"o")
    made.add(b"n")
    assert await made.receive() == told(b"on", more=True)
    waiting = asyncio.ensure_future(made.receive())
    await asyncio.sleep(0)
    assert not waiting.done()
    made.add(b"e")
    made.whole()  # in the same turn
    assert await waiting == told(b"e", more=False)
    assert flow.resumed == 2
    last = asyncio.ensure_future(made.receive())  # Starlette asks on, to hear of the end
    await asyncio.sleep(0)
    made.begin(200, b"", 0)
    made.finish()
    assert await last == await made.receive() == {"type": "http.disconnect"}
    assert wire.writes[0].startswith(b"HTTP/1.1 200")


async def test_who_receives_hears_of_a_caller_who_leaves() -> None:
    made, _, _ = visit(unread=True)
    waiting = asyncio.ensure_future(made.receive())
    await asyncio.sleep(0)
    made.leave()
    assert await waiting == {"type": "http.disconnect"}


async def test_who_gives_up_receiving_leaves_nothing_behind() -> None:
    made, _, _ = visit(unread=True)
    waiting = asyncio.ensure_future(made.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    made.add(b"late")
    await asyncio.gather(waiting, return_exceptions=True)
    assert await made.receive() == told(b"late", more=True)


async def test_who_waits_to_be_asked_for_the_body_is_asked_once() -> None:
    front = Front()
    made = Visit(front, Head("POST", "/", {}), keep_alive=True, expects_100=True)
    made.add(b"came anyway")
    await made.receive()
    made.add(b"more")
    await made.receive()
    assert cast(Wire, front.transport).writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    made = Visit(front, Head("POST", "/", {}), keep_alive=True, expects_100=True)
    made.begin(401, b"", 0)
    made.finish()
    await made.receive()
    assert len(cast(Wire, front.transport).writes) == 2, "refused, and not asked"


def told(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Flow:
    """uvicorn's, as far as it is asked. Mutable state: how often it was `resumed`."""

    resumed = 0

    def resume_reading(self) -> None:
        self.resumed += 1

"""Heads that come again are read as the parser would read them, and without it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

from gateway import front, passing
from gateway.door import Door
from gateway.errors import InvalidRequest
from gateway.front import Front
from gateway.repeat import Repeat, remembered
from gateway.visit import Visit

POST = b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: h\r\n"
KEY = b"Authorization: Bearer a-key\r\n"


def asked(body: bytes, *, before: bytes = KEY, length: bytes = b"", after: bytes = b"") -> bytes:
    told = length or b"Content-Length: %d" % len(body)
    return POST + before + told + b"\r\n" + after + b"\r\n" + body


#: What comes at once, and how many turns of the event loop pass before the next.
Piece = tuple[bytes, int]


class Wire:
    """A transport that keeps what is written. Mutable state: that, and whether it is closed."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> Any:
        return None

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def can_write_eof(self) -> bool:
        return False


class Caller:
    """One connection to a front. Mutable state: the visits seen there, as they were answered."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        served = type("Served", (Front,), {"door": Door(direct=self._answer)})
        config = Config(self._nothing, lifespan="off", log_config=None)
        self.front: Any = served(config=config, server_state=ServerState(), app_state={})
        self.wire = Wire()
        self.front.connection_made(self.wire)

    async def _answer(self, visit: Visit) -> None:
        body = visit.take_body()
        while body is None:
            message = await visit.receive()
            if message["type"] == "http.disconnect":
                return
            body = message["body"]
            while message["more_body"]:
                message = await visit.receive()
                body += message.get("body", b"")
        for _ in range(len(body) % 3):
            await asyncio.sleep(0)
        head = visit.head
        said = (head.method, head.path, head.fields, head.repeated, visit.target, visit.version)
        self.seen.append((*said, list(visit.listed), visit.keep_alive, body))
        visit.begin(200, b"", 2)
        visit.finish(b"ok")

    async def _nothing(self, scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("every visit is answered directly")

    async def sends(self, *pieces: Piece) -> tuple[Any, ...]:
        """What came of it: the visits, the answers, and whether the connection was closed."""
        for piece, turns in (*pieces, (b"", 20)):
            if piece and not self.wire.closed:
                self.front.data_received(piece)
            for _ in range(turns):
                await asyncio.sleep(0)
        clocks = self.front._deadline is not None, self.front._idle.is_set
        came = self.seen, self.wire.written, self.wire.closed, clocks
        self.front.connection_lost(None)
        await asyncio.sleep(0)
        return came


@pytest.fixture(autouse=True)
def one_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passing, "request_id", lambda: "req_1")


class Silent:
    """In the parser's place: whoever asks it anything fails."""


USUAL = (
    asked(b"{}"),
    asked(b"{}" * 700),
    asked(b'{"a":"\r\n\r\nContent-Length: 3\r\n"}'),
    asked(b"0" * 12, length=b"Content-Length: 0012"),
    asked(b""),
)
OTHERS = (
    asked(b"{}", after=b"Accept: */*\r\n"),
    asked(b"{}", before=b"authorization: Bearer a-key\r\n"),
    asked(b"{}", before=b"Authorization: Bearer b-key\r\n"),
    asked(b"{}", length=b"Content-Length:  2 "),
    asked(b"{}", after=b"Connection: close\r\n"),
    asked(b"{}", after=b"Expect: 100-continue\r\n"),
    asked(b"{}", after=b"Upgrade: h2c\r\nConnection: upgrade\r\n"),
    asked(b"2\r\n{}\r\n0\r\n\r\n", length=b"Transfer-Encoding: chunked"),
    asked(b"{}").replace(b"1.1", b"1.0", 1),
    b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n",
)
WRONG = (
    asked(b"{}", length=b"Content-Length: 2\r\nContent-Length: 2"),
    asked(b"{}", length=b"Content-Length: +2"),
    asked(b"{}", length=b"Content-Length: 2_0"),
    asked(b"{}", length=b"Content-Length: \xd9\xa2"),
    asked(b"{}", length=b"Content-Length: "),
    asked(b"{}", length=b"Content-Length: 99999999999999999999999"),
    asked(b"{}").replace(b"\r\n", b"\n"),
    asked(b"{}").replace(b"\r\n\r\n", b"\n\n"),
    b"what is this\r\n\r\n",
)


@pytest.mark.parametrize("body", [b"{}", b"", b"x" * 100_000])
async def test_the_parser_is_not_asked_again(body: bytes) -> None:
    caller = Caller()
    caller.front.data_received(asked(b'{"first":1}'))
    for _ in range(4):
        await asyncio.sleep(0)
    caller.front.parser = Silent()
    again = asked(body)
    pieces = [again, again[:-1], again[-1:]] if body else [again]
    seen, _, closed, _ = await caller.sends(*((piece, 4) for piece in pieces))
    assert not closed
    assert [visit[-1] for visit in seen[1:]] == [body] * (len(seen) - 1)
    assert len(seen) == (3 if body else 2)
    fields, listed = seen[-1][2], seen[-1][6]
    assert fields[b"content-length"] == b"%d" % len(body)
    assert (b"content-length", b"%d" % len(body)) in listed


async def test_of_two_heads_in_one_read_none_is_taken_for_the_other() -> None:
    ann = asked(b"{}", before=b"Authorization: Bearer ann\r\n")
    bob = asked(b"{}", before=b"Authorization: Bearer bob\r\n")
    caller = Caller()
    seen, *_ = await caller.sends((ann + bob, 9), (ann, 9), (bob, 9))
    said = [visit[2][b"authorization"] for visit in seen]
    assert said == [b"Bearer ann", b"Bearer bob", b"Bearer ann", b"Bearer bob"]


async def test_a_piece_of_a_body_may_be_an_empty_line() -> None:
    caller = Caller()
    again = asked(b"{\r\n}")
    seen, *_ = await caller.sends((asked(b"{}"), 4), (again[:-3], 4), (b"\r\n", 4), (b"}", 9))
    assert seen[-1][-1] == b"{\r\n}"


async def test_a_fault_is_told_in_the_dialect_of_the_request_that_came_again() -> None:
    caller = Caller()
    messages = asked(b"{}").replace(b"chat/completions", b"messages")
    for piece in (messages, asked(b"{}"), messages):
        caller.front.data_received(piece)
        for _ in range(9):
            await asyncio.sleep(0)
    caller.front.refuse(InvalidRequest("No."))
    assert b'{"type":"error"' in caller.wire.written


async def test_an_empty_line_behind_its_body_is_no_head_that_is_late() -> None:
    caller = Caller()
    *_, clocks = await caller.sends((asked(b"{}"), 4), (asked(b"{}") + b"\r\n", 4))
    assert clocks == (False, True), "no deadline, and idle"


@st.composite
def sent(draw: st.DrawFn) -> list[Piece]:
    """Requests on one connection, whole or cut, one or several in a piece, fast or slowly."""
    pieces: list[Piece] = []
    held = b""
    for at in range(draw(st.integers(2, 6))):
        sort = draw(st.sampled_from("uuuuelow" if at else "uuo"))
        kinds = {"e": (b"\r\n",), "l": (b"\n", b"\r\n\r\n"), "o": OTHERS, "w": WRONG}
        held += draw(st.sampled_from(kinds.get(sort, USUAL)))
        if draw(st.booleans()):  # a cut anywhere, most often near an end
            place = draw(st.integers(0, len(held)))
            pieces.append((held[:place], draw(st.integers(0, 6))))
            held = held[place:]
        if draw(st.integers(0, 2)):
            pieces.append((held, draw(st.integers(0, 6))))
            held = b""
    return [each for each in (*pieces, (held, 6)) if each[0]]


@settings(max_examples=500, deadline=None)
@given(sent())
def test_it_is_read_as_the_parser_would_read_it(pieces: list[Piece]) -> None:
    async def both() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        known = await Caller().sends(*pieces)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(front, "remembered", lambda data, visit: None)
            return known, await Caller().sends(*pieces)

    known, parsed = asyncio.run(both())
    assert known == parsed


async def kept(*requests: bytes) -> Repeat | None:
    caller = Caller()
    await caller.sends(*((request, 9) for request in requests))
    found: Repeat | None = caller.front._repeat
    return found


@pytest.mark.parametrize("request_", [*OTHERS[4:], *WRONG])
async def test_no_other_head_is_kept(request_: bytes) -> None:
    assert await kept(request_) is None


async def test_a_refused_head_is_not_kept_in_place_of_the_one_before_it() -> None:
    kept_not = asked(b"{}", after=b"x: %b\r\n" % (b"y" * 2048))
    assert await kept(kept_not, asked(b"{}", after=b"Host: i\r\n")) is None


async def test_a_long_head_is_not_kept() -> None:
    """Each open connection may keep one."""
    assert await kept(asked(b"{}", after=b"x: %b\r\n" % (b"y" * 1700))) is not None
    assert await kept(asked(b"{}", after=b"x: %b\r\n" % (b"y" * 2048))) is None


async def test_its_key_is_not_digested_again() -> None:
    caller = Caller()
    digests: list[bytes] = []

    async def answer(visit: Visit) -> None:
        digests.append(visit.head.key_digest)
        visit.head.key_digest = b"a digest"
        visit.begin(200, b"", 0)
        visit.finish()

    type(caller.front).door = Door(direct=answer)
    other = asked(b"{}", after=b"x: y\r\n")
    await caller.sends((asked(b"{}"), 9), (asked(b"{ }"), 9), (other, 9))
    assert digests == [b"", b"a digest", b""]


async def test_another_length_is_another_body() -> None:
    repeat = await kept(asked(b"{}"))
    assert repeat is not None
    again = asked(b"", length=b"Content-Length: 123")
    assert repeat.found(again + b"{") == (b"123", len(again))
    for wrong in (b"", b" 2", b"-2", b"2 ", b"2;", b"1" * 13, b"\xb2"):
        assert repeat.found(asked(b"{}", length=b"Content-Length: " + wrong)) is None
    assert repeat.found(again[:-1]) is None
    assert repeat.found(b"") is None


def test_what_a_visit_was_not_read_from_is_not_kept() -> None:
    visit: Any = Visit.__new__(Visit)
    visit.keep_alive = True
    visit.listed = [(b"host", b"h"), (b"content-length", b"2")]
    visit.head = type("H", (), {"fields": dict(visit.listed)})
    assert remembered(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n", visit) is None
    assert remembered(b"POST / HTTP/1.1\r\nhost: h\r\n\r\n", visit) is None
    assert remembered(b"\r\nPOST / HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n", visit) is None

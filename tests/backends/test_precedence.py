"""What begins goes first: what follows of other answers waits for it, but not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from backends import precedence
from backends.base import Replica
from backends.connection import LARGEST_READ, Connection
from backends.errors import ConnectionBroken
from backends.precedence import Holder, Precedence
from backends.transport import Transport
from tests.backends.sinks import REQUEST, Kept, replica
from tests.fakes.wire import Wire

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Loop:
    """An event loop of which only the loop and the next turn are there.

    Mutable state: what is `soon` to be called; `now`.
    """

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., None], *args: object) -> None:
        self.soon.append((callback, args))

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback, args in soon:
            callback(*args)


class Told:
    """Says its name when its turn comes; `then` is done in that turn."""

    def __init__(self, name: str, said: list[str], then: Callable[[], None] | None = None) -> None:
        self._name, self._said, self._then = name, said, then

    def pass_on(self) -> None:
        self._said.append(self._name)
        if self._then is not None:
            self._then()


def deferred(names: str, said: list[str]) -> tuple[Precedence, Any]:
    order = Precedence()
    loop: Any = Loop()
    for name in names:
        order.defer(Told(name, said), loop)
    return order, loop


def test_one_takes_its_turn_and_the_loop_looks_what_begins_before_the_next() -> None:
    said: list[str] = []
    _, loop = deferred("abc", said)
    assert said == [], "nor is the first passed on before it has looked"
    for expected in ("a", "ab", "abc"):
        assert len(loop.soon) == 1
        loop.turn()
        assert "".join(said) == expected
    assert not loop.soon


def test_who_waited_long_enough_waits_for_nobody() -> None:
    said: list[str] = []
    order, loop = deferred("abcdefg", said)
    loop.turn()
    loop.now += precedence.PATIENCE / 2
    loop.turn()
    assert "".join(said) == "ab"
    loop.now += precedence.PATIENCE / 2
    loop.turn()
    assert "".join(said) == "abcdefg"
    for name in "hij":
        order.defer(Told(name, said), loop)
    loop.turn()
    assert "".join(said[7:]) == "h", "their time begins anew"


def test_who_is_deferred_in_a_turn_has_one_of_its_own() -> None:
    said: list[str] = []
    order, loop = deferred("", said)
    order.defer(Told("a", said, lambda: order.defer(Told("b", said), loop)), loop)
    loop.turn()
    assert (said, len(loop.soon)) == (["a"], 1)
    loop.turn()
    assert (said, len(loop.soon)) == (["a", "b"], 0)


# Connections


class Engine:
    """A connection to a model server that is played here, and the one request it carries."""

    def __init__(self, transport: Transport, port: int, sink: Kept) -> None:
        self.at: Replica = replica(port)
        loop = asyncio.get_running_loop()
        self.connection = Connection(transport, self.at.origin, loop)
        self.connection.connection_made(Wire(lambda _: None))
        self.connection.idle_since = loop.time()
        transport.keep(self.connection)
        self.ask(transport, sink)

    def ask(self, transport: Transport, sink: Kept) -> None:
        self.sink = sink
        self.flight = transport.send(self.at, REQUEST, sink)

    def reads(self, piece: bytes) -> None:
        """The loop reads it from the socket."""
        self.connection.get_buffer(-1)[: len(piece)] = piece
        self.connection.buffer_updated(len(piece))

    def says(self, text: bytes) -> None:
        self.reads(b"%x\r\n%b\r\n" % (len(text), text))

    def begins(self) -> None:
        """Up to where what follows has to wait."""
        self.reads(HEAD)
        for text in (b"1", b"2", b"3"):
            self.says(text)
        assert self.sink.body == b"123"


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_follows_waits_for_what_begins(transport: Transport) -> None:
    one, other = Engine(transport, 1, Kept()), Engine(transport, 2, Kept())
    one.begins()
    one.says(b"4")
    other.begins()
    assert (bytes(one.sink.body), bytes(other.sink.body)) == (b"123", b"123")
    await turns()
    assert one.sink.body == b"1234"


async def test_what_came_together_leaves_together_and_the_end_behind_it(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Engine(transport, 1, Kept())
    one.begins()
    deferred: list[Holder] = []
    defer = transport.precedence.defer

    def note(holder: Holder, loop: asyncio.AbstractEventLoop) -> None:
        deferred.append(holder)
        defer(holder, loop)

    monkeypatch.setattr(transport.precedence, "defer", note)
    one.says(b"4")
    one.says(b"5")
    one.reads(END)
    assert "end" not in one.sink.calls
    await turns()
    assert deferred == [one.connection]
    assert one.sink.body == b"12345"
    assert one.sink.calls[-1] == "end"
    assert one.flight.done.done()


async def test_the_next_answer_of_a_connection_begins_at_once_again(transport: Transport) -> None:
    one = Engine(transport, 1, Kept())
    one.begins()
    one.reads(END)
    await turns()
    one.ask(transport, Kept())
    one.begins()
    one.says(b"4")
    assert one.sink.body == b"123"
    await turns()
    assert one.sink.body == b"1234"


@pytest.mark.parametrize("exc", [None, ConnectionResetError()])
async def test_what_is_held_comes_before_the_loss_of_its_connection(
    transport: Transport, exc: Exception | None
) -> None:
    one = Engine(transport, 1, Kept())
    one.begins()
    one.says(b"4")
    one.connection.connection_lost(exc)
    assert one.sink.body == b"1234"
    assert isinstance(one.sink.failure, ConnectionBroken)
    await turns()
    assert one.sink.calls == ["begin", "head", "data", "broken"]


async def test_an_end_that_is_held_is_no_loss(transport: Transport) -> None:
    one = Engine(transport, 1, Kept())
    one.begins()
    one.reads(END)
    one.connection.connection_lost(None)
    assert one.sink.calls == ["begin", "head", "data", "end"]
    now = asyncio.get_running_loop().time()
    assert transport.take(one.at.origin, now) is None, "nor is it kept for the next request"


async def test_no_more_is_held_than_one_read_takes(transport: Transport) -> None:
    one = Engine(transport, 1, Kept())
    one.begins()
    half = b"x" * (LARGEST_READ // 2)
    one.says(half)
    assert len(one.sink.body) == 3
    one.says(half)
    assert len(one.sink.body) == 3 + LARGEST_READ
    await turns()
    assert len(one.sink.body) == 3 + LARGEST_READ


async def test_who_left_hears_nothing_more(transport: Transport) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    one = Engine(transport, 1, Kept())
    one.begins()
    one.says(b"4")
    one.flight.close()
    await turns()
    assert one.sink.body == b"123"
    assert one.sink.calls == ["begin", "head", "data"]
    assert not faults


async def test_a_fault_of_one_that_waited_is_told_and_is_nobody_elses(
    transport: Transport,
) -> None:
    class Faulty(Kept):
        def data(self, piece: bytes) -> None:
            if piece == b"4":
                raise LookupError("a fault")
            super().data(piece)

    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    one, other = Engine(transport, 1, Faulty()), Engine(transport, 2, Kept())
    one.begins()
    other.begins()
    one.says(b"4")
    other.says(b"4")
    await turns()
    assert other.sink.body == b"1234"
    assert isinstance(one.sink.failure, ConnectionBroken)
    assert "LookupError" in str(one.sink.failure)
    assert not one.connection.usable
    assert [type(each["exception"]) for each in faults] == [LookupError]

"""The line between processes: what is told and asked arrives, and a dead or mad peer ends it."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop

from gateway import channel as channels
from gateway.channel import Channel, ChannelEnded, Handler, NotAnswered
from tests.fakes.gateway import until


@contextlib.asynccontextmanager
async def line(
    left: dict[str, Handler] | None = None, right: dict[str, Handler] | None = None
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two ends that listen, with the handlers of each."""
    one, other = [await Channel.open(sock) for sock in socket.socketpair()]
    one.listen({} if left is None else left)
    other.listen({} if right is None else right)
    yield one, other
    await one.close()
    await other.close()


@contextlib.asynccontextmanager
async def raw(handlers: dict[str, Handler]) -> AsyncIterator[tuple[Channel, socket.socket]]:
    """An end that listens, and the bare socket of the other."""
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    channel.listen(handlers)
    with theirs:
        yield channel, theirs
        await channel.close()


async def double(payload: Any) -> Any:
    return payload * 2


async def test_both_sides_ask_at_once_and_each_gets_its_own_answer() -> None:
    async def slow(payload: int) -> int:
        await asyncio.sleep(0.02 * (5 - payload))
        return payload

    async with line({"double": double}, {"slow": slow}) as (one, other):
        answers = await asyncio.gather(
            *(one.ask("slow", n, timeout=5) for n in range(5)),
            *(other.ask("double", n, timeout=5) for n in range(5)),
        )
        assert answers == [0, 1, 2, 3, 4, 0, 2, 4, 6, 8]


async def test_what_is_told_arrives_in_order_and_whole() -> None:
    heard: list[Any] = []

    async def note(payload: Any) -> None:
        heard.append(payload)

    said = [None, "line\nend \u2028 \u00fc", {"a": [1, 2.5, True]}, "x" * 1_000_000]
    async with line(right={"note": note}) as (one, _):
        for payload in said:
            one.tell("note", payload)
            await one.drained()
        await until(lambda: len(heard) == len(said))
    assert heard == said


async def test_a_name_that_is_not_known_is_answered_so_and_the_line_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table: dict[str, Handler] = {}
    async with line(right=table) as (one, _):
        with pytest.raises(NotAnswered, match="^double: not known$"):
            await one.ask("double", 1, timeout=5)
        one.tell("double", 1)
        await until(lambda: caplog.text.count("double: not known") == 2)
        table["double"] = double
        assert await one.ask("double", 1, timeout=5) == 2


async def test_a_handler_that_fails_is_answered_without_its_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(payload: str) -> None:
        raise ValueError(payload)

    async with line(right={"fail": fail, "double": double}) as (one, _):
        with pytest.raises(NotAnswered, match="^fail: ValueError at ") as caught:
            await one.ask("fail", "a secret", timeout=5)
        assert await one.ask("double", 1, timeout=5) == 2
    assert "a secret" not in str(caught.value) + caplog.text


async def test_an_answer_that_takes_too_long_is_not_waited_for_and_not_mixed_up() -> None:
    go = asyncio.Event()

    async def late(payload: str) -> str:
        await go.wait()
        return payload

    async with line(right={"late": late, "double": double}) as (one, _):
        with pytest.raises(TimeoutError):
            await one.ask("late", "first", timeout=0.05)
        go.set()
        assert await one.ask("late", "second", timeout=5) == "second"


async def test_who_waits_for_a_peer_that_dies_is_told_at_once() -> None:
    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    async with line(right={"never": never}) as (one, other):
        asking = asyncio.ensure_future(one.ask("never", timeout=60))
        await until(lambda: bool(other._at_work))
        await other.close()
        with pytest.raises(ChannelEnded):
            await asyncio.wait_for(asking, 5)
        await asyncio.wait_for(one.ended.wait(), 5)
        with pytest.raises(ChannelEnded):
            await one.ask("never", timeout=60)
        one.tell("never")
        await one.drained()


def test_a_peer_that_dies_with_words_unread_harms_nobody_who_tells_it_more() -> None:
    async def told_all_the_time() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        channel = await Channel.open(ours)
        channel.listen({})
        failed: list[Exception] = []

        def tell() -> None:
            try:
                channel.tell("note", 1)
            except Exception as exc:
                failed.append(exc)
            if not channel.ended.is_set():
                loop.call_soon(tell)

        for _ in range(4):  # before and after whatever else a turn of the loop does
            loop.call_soon(tell)
        await asyncio.sleep(0.01)
        theirs.close()
        await asyncio.wait_for(channel.ended.wait(), 5)
        await channel.close()
        assert failed == []

    uvloop.run(told_all_the_time())


async def test_half_a_message_of_a_dead_peer_is_none(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []

    async def note(payload: Any) -> None:
        heard.append(payload)

    whole = b'{"is":"tell","v":1,"name":"note","payload":1}\n'
    async with raw({"note": note}) as (channel, peer):
        peer.sendall(whole + whole.rstrip())
        peer.close()
        await asyncio.wait_for(channel.ended.wait(), 5)
    assert heard == [1]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"\xff\x00\n",
        b"GET / HTTP/1.1\r\n",
        b"[]\n",
        b'{"is":"tell","v":2,"name":"note"}\n',
        b'{"is":"tell","v":1}\n',
        b'{"is":"ask","v":1,"name":"note"}\n',
        b'{"is":"shout","v":1,"name":"note"}\n',
    ],
)
async def test_a_peer_that_speaks_otherwise_is_ended(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw({"note": double}) as (channel, peer):
        peer.sendall(garbage)
        await asyncio.wait_for(channel.ended.wait(), 5)
        peer.settimeout(5)
        assert await asyncio.to_thread(peer.recv, 10) == b""
    assert "is not understood" in caplog.text


async def test_an_answer_nobody_asked_for_is_nothing() -> None:
    async with raw({"double": double}) as (channel, peer):
        peer.sendall(b'{"is":"answer","v":1,"id":7,"payload":1}\n')
        peer.sendall(b'{"is":"ask","v":1,"id":1,"name":"double","payload":4}\n')
        peer.settimeout(5)
        answer = await asyncio.to_thread(peer.recv, 1000)
        assert b'"payload":8' in answer
        assert not channel.ended.is_set()


async def test_a_message_over_the_bound_ends_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channels, "MOST_BYTES", 1000)
    async with raw({"note": double}) as (channel, peer):
        peer.sendall(b'{"is":"tell","v":1,"name":"note","payload":"' + b"x" * 10_000)
        await asyncio.wait_for(channel.ended.wait(), 5)
    assert "is not understood" in caplog.text


async def test_a_peer_that_does_not_read_ends_it_rather_than_filling_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channels, "MOST_BYTES", 1 << 20)
    async with raw({}) as (channel, _):
        for _ in range(100):
            channel.tell("note", "x" * 100_000)
        assert channel.ended.is_set()
        assert channel._writer.transport.get_write_buffer_size() == 0
    assert "does not read" in caplog.text


async def test_so_much_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MOST_AT_WORK", 2)
    go = asyncio.Event()

    async def wait(payload: int) -> int:
        await go.wait()
        return payload

    async with line(right={"wait": wait}) as (one, _):
        asking = [asyncio.ensure_future(one.ask("wait", n, timeout=5)) for n in range(3)]
        with pytest.raises(NotAnswered, match="too much at once"):
            await asking[2]
        go.set()
        assert await asyncio.gather(*asking[:2]) == [0, 1]


async def test_a_burst_of_small_messages_is_heard_whole_and_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    async def note(payload: int) -> None:
        heard.append(payload)

    # As where an engine dies with many requests: each of them is told of at once.
    many = list(range(5 * channels.MOST_AT_WORK))
    async with line(right={"note": note}) as (one, _):
        for payload in many:
            one.tell("note", payload)
        await until(lambda: heard[-1:] == many[-1:])
    assert heard == many
    assert caplog.text == ""


async def test_the_first_word_is_read_before_there_are_handlers() -> None:
    one, other = [await Channel.open(sock) for sock in socket.socketpair()]
    one.tell("start", {"a": 1})
    one.tell("double", 2)
    assert await other.first() == {"a": 1}
    heard = asyncio.Event()

    async def note(payload: int) -> None:
        assert payload == 2
        heard.set()

    other.listen({"double": note})
    await asyncio.wait_for(heard.wait(), 5)
    await one.close()
    await other.close()


@pytest.mark.parametrize("said", [b"", b"half", b"garbage\n"])
async def test_without_a_first_word_there_is_no_beginning(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = await Channel.open(ours)
    theirs.sendall(said)
    theirs.close()
    with pytest.raises(ChannelEnded):
        await channel.first()
    await channel.close()


async def test_what_was_told_before_the_end_still_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    async def note(payload: str) -> None:
        heard.append(len(payload))

    async with line(right={"note": note}) as (one, other):
        one.tell("note", "x" * 3_000_000)
        await one.close()
        await asyncio.wait_for(other.ended.wait(), 5)
    assert heard == [3_000_000]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]

"""What listeners are told: the same, asked for once, when it changed or too long ago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import orjson
import pytest

from gateway import feed
from gateway.feed import Feed


class Source:
    """A status that is another one when the test says so, and a time in which nobody waits.

    Mutable state: the `number` it tells, how often it was `asked`, `now`, and `held`, cleared to
    keep whoever asks waiting.
    """

    def __init__(self) -> None:
        self.number = 1
        self.asked = 0
        self.now = 1000.0
        self.held = asyncio.Event()
        self.held.set()

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        assert self.asked < 1000, "asked for ever"
        await self.held.wait()
        return {"number": self.number}

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now

    def feed(self) -> Feed:
        return Feed(self.status, self.clock, self.sleep)


def number(document: bytes) -> int:
    return int(orjson.loads(document)["number"])


async def until_asked(source: Source, times: int) -> None:
    async with asyncio.timeout(5):
        while source.asked < times:
            await asyncio.sleep(0)


def newest(documents: AsyncIterator[bytes]) -> asyncio.Task[bytes]:
    return asyncio.ensure_future(cast(Any, anext(documents)))


async def test_all_who_wait_are_told_the_same_and_it_is_asked_for_once() -> None:
    source = Source()
    source.held.clear()
    told = source.feed()
    async with aclosing(told.documents()) as one, aclosing(told.documents()) as other:
        waiting = [newest(one), newest(other)]
        await until_asked(source, 1)
        source.held.set()
        first, second = await asyncio.gather(*waiting)
    assert first is second
    assert source.asked == 1


async def test_what_did_not_change_is_told_again_only_after_a_silence() -> None:
    source = Source()
    async with aclosing(source.feed().documents()) as documents:
        assert number(await anext(documents)) == 1
        began = source.now
        assert number(await anext(documents)) == 1
        assert source.now - began == feed.SILENCE
        source.number = 2
        began = source.now
        assert number(await anext(documents)) == 2
        assert source.now - began == feed.EVERY


async def test_who_comes_later_is_not_told_what_was_so_long_ago() -> None:
    source = Source()
    told = source.feed()
    async with aclosing(told.documents()) as documents:
        await anext(documents)
    source.number, source.now = 2, source.now + 60
    async with aclosing(told.documents()) as documents:
        assert number(await anext(documents)) == 2


async def test_who_comes_soon_is_told_what_is_known_without_a_question() -> None:
    source = Source()
    told = source.feed()
    async with aclosing(told.documents()) as one, aclosing(told.documents()) as other:
        assert await anext(one) is await anext(other)
    assert source.asked == 1


async def test_who_comes_while_others_wait_for_a_change_does_not_wait_for_it() -> None:
    source = Source()
    told = source.feed()
    async with aclosing(told.documents()) as one, aclosing(told.documents()) as other:
        await anext(one)
        waiting = newest(one)
        await until_asked(source, 2)
        began = source.now
        assert number(await anext(other)) == 1
        assert source.now - began <= feed.EVERY
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_the_others_are_told_when_the_one_who_asks_leaves() -> None:
    source = Source()
    source.held.clear()
    told = source.feed()
    async with aclosing(told.documents()) as one, aclosing(told.documents()) as other:
        asking, waiting = newest(one), newest(other)
        await until_asked(source, 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        source.held.set()
        assert number(await waiting) == 1
    assert source.asked == 2

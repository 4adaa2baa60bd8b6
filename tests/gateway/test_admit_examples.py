"""The worked examples of docs/limits.md: the numbers it tells are those that come out."""

from __future__ import annotations

from pathlib import Path

from gateway.errors import QuotaSpent
from gateway.limits.base import SECOND, Claim, Rule
from gateway.limits.memory import Memory
from gateway.terms import Size
from tests.fakes.clock import Microseconds
from tests.gateway.desk import START, Desk, used

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
EXAMPLES = " ".join(PAGE.read_text(encoding="utf-8").partition("\n## Worked examples\n")[2].split())
SLOW = "{tokens_per_minute: 1500}"
LABEL = "key.tokens_per_minute"
#: A prompt of 9 tokens, and an answer nobody knows anything of yet.
SHORT = Size(text_bytes=36)
MICROSECOND = 1 / SECOND


def granted(memory: Memory, rule: Rule) -> int:
    """How many claims of one pass at once."""
    count = 0
    while memory.decide(Claim(f"req_{count}", ((rule, 1),))).refused is None:
        count += 1
    return count


def per_minute(limit: int, burst: int | None = None) -> Rule:
    return Rule("key", ["ann"], "requests", "minute", limit, burst)


def at_once(limit: int) -> Rule:
    return Rule("key", ["ann"], "concurrency", None, limit)


def test_a_bucket() -> None:
    clock = Microseconds(START)
    memory, rule = Memory(clock), per_minute(600)
    full = granted(memory, rule)
    every = 0
    while not granted(memory, rule):
        clock.move(0.001)
        every += 1
    assert f"After a quiet minute {full} pass at once, then one every {every} ms." in EXAMPLES

    memory, rule = Memory(clock), per_minute(600, burst=20)
    first = most = granted(memory, rule)
    for _ in range(60_000 // every):
        clock.move(every / 1000)
        most += granted(memory, rule)
    told = f"With `burst: 20` it is {first} at once, and {most} at most in any minute."
    assert told in EXAMPLES


async def test_a_reservation() -> None:
    limit = 100_000
    desk = Desk(key=f"{{tokens_per_minute: {limit}}}")
    permit = await desk.admit(Size(text_bytes=3600))
    reserved = limit - await desk.left(LABEL)
    assert f"{reserved - 512} + 512 = {reserved:,} are reserved." in EXAMPLES
    permit.settle(used(880, 300, cached=640), 300)
    charged = limit - await desk.left(LABEL)
    again = reserved - charged
    assert f"= {charged} are charged, {again} are there again." in EXAMPLES


async def test_a_wait() -> None:
    desk = Desk(key=SLOW)
    for _ in range(2):
        await desk.admit(SHORT)
    left = await desk.left(LABEL)
    assert f"{left} are left" in EXAMPLES
    needed = await reserved_by(SHORT)
    assert f"the third needs {needed}: {needed - left} are missing" in EXAMPLES
    wait = 2.52
    assert f"{wait} s and a random bit" in EXAMPLES
    desk.clock.move(wait - MICROSECOND)
    assert (await desk.refused(SHORT)).limited_by == LABEL
    desk.clock.move(MICROSECOND)
    await desk.admit(SHORT)


async def reserved_by(size: Size) -> int:
    desk = Desk(key=SLOW)
    await desk.admit(size)
    return 1500 - await desk.left(LABEL)


async def test_a_debt() -> None:
    desk = Desk(key=SLOW)
    permit = await desk.admit(Size(text_bytes=1600))
    permit.settle(used(400, 6000), 0)
    _, reset = await desk.level(LABEL)
    below = reset * 25 // SECOND - 1500
    assert f"the level is {below:,} below nothing" in EXAMPLES
    needed = await reserved_by(SHORT)
    wait = (below + needed) / 25
    assert f"{below + needed:,} ÷ 25 = {wait:.0f} s after that request began" in EXAMPLES
    desk.clock.move(wait - MICROSECOND)
    assert (await desk.refused(SHORT)).limited_by == LABEL
    desk.clock.move(MICROSECOND)
    await desk.admit(SHORT)


async def test_a_day() -> None:
    assert "`tokens_per_day: 50000000`, spent at 15:00 UTC" in EXAMPLES
    assert "429 `insufficient_quota` for nine hours" in EXAMPLES
    desk = Desk(key="{tokens_per_day: 50000000}")
    desk.clock.move(5.5 * 3600 - 0.25)
    (await desk.admit()).settle(used(50_000_000), 0)
    refusal = await desk.refused()
    assert isinstance(refusal, QuotaSpent)
    assert str(refusal).endswith("try again in 9 h")


def test_a_lost_redis() -> None:
    alone = Memory(Microseconds(START), share=4)
    rate, slots = granted(alone, per_minute(600)), granted(alone, at_once(32))
    assert f"each grants {rate} a minute and {slots} at once." in EXAMPLES
    few = granted(Memory(Microseconds(START), share=4), at_once(2))
    assert f"`concurrency: 2` becomes {few} each, so up to {4 * few} in all." in EXAMPLES

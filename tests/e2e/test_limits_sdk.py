"""The official SDKs, as they come, against limits: what they retry by themselves, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.fakes.engine import Engine
from tests.fakes.gateway import KEY, Serving, configured, serving
from tests.fakes.script import Received, Step, Wait

HELLO: Any = [{"role": "user", "content": "Say hello."}]
#: One in 600 ms. By themselves both SDKs would come back after 500 ms at most, which is too early:
#: that the second attempt succeeds shows that they waited as they were told.
SLOW = "requests_per_minute: {limit: 100, burst: 1}"
LIMITED = (429, "key.requests_per_minute")
#: How often both try by default: once, and twice again.
TRIES = 3


@dataclass
class Asked:
    """A gateway under limits, and both SDKs in their default settings. `log` is the gateway's."""

    engine: Engine
    gateway: Serving
    openai: AsyncOpenAI
    anthropic: AsyncAnthropic

    async def chat(self, **more: Any) -> Any:
        return await self.openai.chat.completions.create(
            **{"model": "tiny", "messages": HELLO, **more}
        )

    async def message(self, **more: Any) -> Any:
        return await self.anthropic.messages.create(
            **{"model": "tiny", "max_tokens": 8, "messages": HELLO, **more}
        )

    async def told(self, count: int) -> list[tuple[int, str]]:
        """Status and refusing rule of each attempt, of which there are so many and no more."""
        lines = await self.gateway.logged(count)
        return [(line["status"], line["limited_by"]) for line in lines]


@asynccontextmanager
async def under(key: str = "", model: str = "") -> AsyncIterator[Asked]:
    """A gateway whose key and whose model have these limits, in the form of YAML."""
    async with Engine() as engine:
        text = configured(engine.url, model=f"limits: {{{model}}}")
        text = text.replace("team: search,", f"team: search, limits: {{{key}}},")
        async with (
            serving(text) as gateway,
            AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as of_openai,
            AsyncAnthropic(base_url=gateway.url, api_key=KEY) as of_anthropic,
        ):
            yield Asked(engine, gateway, of_openai, of_anthropic)


async def test_a_429_of_ours_is_retried_by_both_after_the_wait_it_tells() -> None:
    async with under(SLOW) as one, under(SLOW) as other:
        await asyncio.gather(one.chat(), other.message())
        chat, message = await asyncio.gather(one.chat(), other.message())
        assert chat.choices[0].message.content
        assert message.content[0].text
        for asked in (one, other):
            assert await asked.told(3) == [(200, ""), LIMITED, (200, "")]


async def test_a_spent_budget_is_raised_at_once_with_our_words() -> None:
    async with under("requests_per_day: 1") as asked:
        await asked.chat()
        with pytest.raises(openai.RateLimitError) as of_openai:
            await asked.chat()
        with pytest.raises(anthropic.RateLimitError) as of_anthropic:
            await asked.message()
        spent = (429, "key.requests_per_day")
        assert await asked.told(3) == [(200, ""), spent, spent]
        assert (of_openai.value.type, of_openai.value.code) == ("insufficient_quota",) * 2
        for raised in (of_openai.value, of_anthropic.value):
            assert "key ann: 1 request per day; try again in" in str(raised)
            assert str(raised.request_id) in str(raised)


async def test_what_can_never_pass_is_raised_at_once_and_says_why() -> None:
    async with under("tokens_per_minute: 1000") as asked:
        long: Any = [{"role": "user", "content": "word " * 2000}]
        with pytest.raises(openai.BadRequestError, match="can never pass a limit, key ann"):
            await asked.chat(messages=long)
        with pytest.raises(anthropic.BadRequestError, match="its prompt alone has about"):
            await asked.message(messages=long)
        assert await asked.told(2) == [(400, "key.tokens_per_minute")] * 2


async def test_a_full_model_is_tried_again_and_served_once_there_is_room() -> None:
    async with under(model="concurrency: 1") as asked, held(asked) as release:
        waiting = asyncio.create_task(asked.message())
        await asked.told(1)
        release.set()
        assert (await waiting).content[0].text
        lines = await asked.told(3)
        assert sorted(lines) == [(200, ""), (200, ""), (529, "model.concurrency")]


async def test_a_model_that_stays_full_is_overloaded_to_both() -> None:
    async with under(model="concurrency: 1") as asked, held(asked):
        failures = await asyncio.gather(asked.chat(), asked.message(), return_exceptions=True)
        assert [type(each) for each in failures] == [
            openai.InternalServerError,
            anthropic.OverloadedError,
        ]
        assert all("model tiny: 1 request at once" in str(each) for each in failures)
        full = [(503, "model.concurrency")] * TRIES + [(529, "model.concurrency")] * TRIES
        assert sorted(await asked.told(2 * TRIES)) == full


@asynccontextmanager
async def held(asked: Asked) -> AsyncIterator[asyncio.Event]:
    """One request under way until the event is set."""
    release = asyncio.Event()
    engine = asked.engine

    def script(request: Received) -> Iterable[Step] | None:
        return [Wait(release), *engine.vllm.answer(request)] if request.method == "POST" else None

    engine.script = script
    holding = asyncio.create_task(asked.chat())
    await engine.until(lambda: any(request.method == "POST" for request in engine.requests))
    try:
        yield release
    finally:
        release.set()
        await holding

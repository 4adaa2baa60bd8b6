"""Limits through the whole gateway: what holds while many ask, and what callers are told.

Counted in memory and in a real Redis; each pitfall others fell into has its test.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.script import Received, Script, Step, Wait, plain
from tests.faults.asking import CHAT, MESSAGES, ask
from tests.faults.limited import ESTIMATE, LIMITS, limited

pytestmark = pytest.mark.usefixtures("no_traceback")


# What holds while many ask


def held(gate: asyncio.Event) -> Script:
    answer = plain(200, b'{"model":"tiny","choices":[],"usage":{"prompt_tokens":1}}')

    def script(received: Received) -> list[Step] | None:
        return [Wait(gate), *answer] if received.method == "POST" else None

    return script


@pytest.mark.parametrize(
    ("rule", "admitted"),
    [
        (f"tokens_per_minute: {{limit: 1, burst: {ESTIMATE * 5}}}", 5),
        ("requests_per_minute: {limit: 1, burst: 6}", 6),
        ("concurrency: 7", 7),
    ],
    ids=["tokens", "requests", "concurrency"],
)
async def test_check_before_count_after_so_that_concurrent_calls_pass(
    store: str, rule: str, admitted: int
) -> None:
    gate = asyncio.Event()
    async with limited(store, held(gate), key=f"{{{rule}}}") as at:
        asked = [asyncio.create_task(ask(at.port, CHAT, stream=False)) for _ in range(20)]
        lines = await at.gateway.logged(20 - admitted)
        await at.engine.until(lambda: at.posts == admitted)
        assert {line["status"] for line in lines} == {429}
        assert {line["attempts"] for line in lines} == {0}
        gate.set()
        statuses = [answer.status for answer in await asyncio.gather(*asked)]
        assert statuses.count(200) == admitted


async def test_reservation_larger_than_the_limit_is_no_permanent_429(store: str) -> None:
    """The first request of a small key is admitted; one whose prompt can never fit is told so."""
    async with limited(store, key=f"{{tokens_per_minute: {ESTIMATE - 5}}}") as at:
        answer = await ask(at.port, CHAT, stream=False)
        assert answer.status == 200
        assert answer.headers.get("x-ratelimit-remaining-tokens") == "0"
        said = [{"role": "user", "content": "x" * 100}]
        refused = await ask(at.port, CHAT, stream=False, messages=said)
        assert refused.status == 400
        assert refused.plain["error"]["code"] == "request_too_large_for_limit"
        assert refused.headers.get("x-should-retry") == "false"
        assert refused.headers.get("retry-after") is None
        assert f"key ann: {ESTIMATE - 5} tokens per minute" in refused.plain["error"]["message"]


async def test_over_limit_on_one_rule_counts_on_none_of_the_others(store: str) -> None:
    async with limited(store, team="{requests_per_month: 1}", model=LIMITS) as at:
        await ask(at.port, CHAT)
        before = await at.left()
        for path in (CHAT, MESSAGES):
            assert (await ask(at.port, path)).status == 429
            assert await at.left() == before
        (_, *lines) = await at.gateway.logged(3)
        assert {line["limited_by"] for line in lines} == {"team.requests_per_month"}
        assert {line["outcome"] for line in lines} == {"limited"}


# What callers read


async def test_a_full_model_is_overloaded_for_everyone(store: str) -> None:
    gate = asyncio.Event()
    async with limited(store, held(gate), model="{concurrency: 1}") as at:
        first = asyncio.create_task(ask(at.port, CHAT, stream=False))
        await at.engine.until(lambda: at.posts == 1)
        for path, status in ((CHAT, 503), (MESSAGES, 529)):
            refused = await ask(at.port, path)
            assert (refused.status, refused.headers.get("retry-after")) == (status, "1")
        for line in await at.gateway.logged(2):
            assert (line["outcome"], line["limited_by"]) == ("limited", "model.concurrency")
        gate.set()
        assert (await first).status == 200


RATES = "{requests_per_minute: {limit: 1, burst: 2}, tokens_per_minute: 1000}"


async def test_headers_of_openais_dialect_on_success_and_refusal(store: str) -> None:
    async with limited(store, key=RATES) as at:
        for streamed in (True, False):
            answer = await ask(at.port, CHAT, stream=streamed)
            assert answer.status == 200
            told = answer.headers
            assert told.get("x-ratelimit-limit-requests") == "2"
            assert told.get("x-ratelimit-limit-tokens") == "1000"
            if streamed:
                assert told.get("x-ratelimit-remaining-requests") == "1"
                assert told.get("x-ratelimit-reset-requests") == "1m0s"
                assert told.get("x-ratelimit-remaining-tokens") == str(1000 - ESTIMATE)
                assert told.get("x-ratelimit-reset-tokens") == "1.02s"
        refused = await ask(at.port, CHAT)
        assert refused.status == 429
        assert refused.headers.get("x-ratelimit-remaining-requests") == "0"
        wait, milliseconds = (
            int(refused.headers.get(f"retry-after{unit}") or 0) for unit in ("", "-ms")
        )
        assert 40 <= wait <= 60
        assert wait == -(-milliseconds // 1000)
        error = refused.plain["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert error["message"].startswith("key ann: 1 request per minute; try again in ")


async def test_headers_of_anthropics_dialect_on_success_and_refusal(store: str) -> None:
    prefix = "anthropic-ratelimit"
    async with limited(store, key=RATES) as at:
        for left in (1, 0):
            before = datetime.now(UTC)
            answer = await ask(at.port, MESSAGES)
            assert answer.status == 200
            assert answer.headers.get(f"{prefix}-requests-limit") == "2"
            assert answer.headers.get(f"{prefix}-requests-remaining") == str(left)
            assert answer.headers.get(f"{prefix}-tokens-limit") == "1000"
            if left:
                shown = datetime.fromisoformat(answer.headers.get(f"{prefix}-requests-reset") or "")
                assert timedelta(seconds=59) < shown - before < timedelta(seconds=66)
        refused = await ask(at.port, MESSAGES)
        assert refused.status == 429
        assert refused.plain["error"]["type"] == "rate_limit_error"
        assert refused.headers.get(f"{prefix}-requests-remaining") == "0"
        assert not [name for name, _ in refused.headers if b"x-ratelimit" in name]


async def test_a_spent_budget_is_a_quota_that_no_sdk_waits_for(store: str) -> None:
    async with limited(store, key="{requests_per_month: 1}") as at:
        assert (await ask(at.port, CHAT)).status == 200
        refused = await ask(at.port, CHAT)
        assert (refused.status, refused.plain["error"]["type"]) == (429, "insufficient_quota")
        assert refused.headers.get("retry-after") == "60"
        assert refused.headers.get("x-should-retry") == "false"

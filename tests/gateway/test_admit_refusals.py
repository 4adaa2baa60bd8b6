"""Admission on counts in memory: what a refusal says, and how the caller stands."""

from __future__ import annotations

import pytest

from gateway.admit import DEGRADED
from gateway.errors import LimitsUnavailable, PoolFull, QuotaSpent
from gateway.limits.base import Claim, Decision
from gateway.terms import Size
from tests.gateway.desk import ANN, BOB, START, Desk, used

TOKENS = "{tokens_per_minute: 1000}"


# What a refusal says


async def test_a_refusal_names_the_scope_the_limit_the_rule_and_the_wait() -> None:
    desk = Desk(team="{tokens_per_minute: 500000}")
    await desk.admit(Size(text_bytes=4 * 499_000, output_limit=1000))
    refusal = await desk.refused(Size(text_bytes=4 * 32_000, output_limit=500))
    assert str(refusal) == "team search: 500,000 tokens per minute; try again in 4 s"
    assert (refusal.status, refusal.type) == (429, "tokens")
    assert (refusal.code, refusal.anthropic_type) == ("rate_limit_exceeded", "rate_limit_error")
    assert (refusal.outcome, refusal.limited_by) == ("limited", "team.tokens_per_minute")


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"gateway": "{requests_per_minute: 1}"}, "this gateway: 1 request per minute"),
        ({"both": "{requests_per_minute: 1}"}, "team search on llama: 1 request per minute"),
        ({"key": "{requests_per_second: 1}"}, "key ann: 1 request per second"),
    ],
)
async def test_a_refusal_on_requests_says_whose_they_are(rules: dict[str, str], said: str) -> None:
    desk = Desk(**rules)
    await desk.admit()
    refusal = await desk.refused()
    assert str(refusal).startswith(said + "; try again in ")
    assert (refusal.type, refusal.code) == ("requests", "rate_limit_exceeded")


async def test_a_full_concurrency_rule_is_about_requests_and_worth_a_try_in_a_second() -> None:
    desk = Desk(key="{concurrency: 1, tokens_per_minute: 10000}")
    await desk.admit()
    for _ in range(50):
        refusal = await desk.refused()
        assert (refusal.status, refusal.type) == (429, "requests")
        assert refusal.code == "rate_limit_exceeded"
        assert refusal.retry_after is not None
        assert 0.8 <= refusal.retry_after <= 1
        assert refusal.should_retry is None
    assert str(refusal) == "key ann: 1 request at once; try again in 1 s"


@pytest.mark.parametrize(
    ("rule", "limited_by"),
    [
        ("concurrency", "model.concurrency"),
        ("requests_per_minute", "model.requests_per_minute"),
        ("requests_per_day", "model.requests_per_day"),
    ],
)
async def test_a_limit_of_the_model_itself_is_overload_and_not_the_callers_429(
    rule: str, limited_by: str
) -> None:
    desk = Desk(model=f"{{{rule}: 1}}")
    await desk.admit()
    refusal = await desk.refused()
    assert isinstance(refusal, PoolFull)
    assert (refusal.status, refusal.anthropic_status) == (503, 529)
    assert (refusal.code, refusal.anthropic_type) == ("overloaded", "overloaded_error")
    assert (refusal.outcome, refusal.limited_by) == ("limited", limited_by)
    assert refusal.retry_after


@pytest.mark.parametrize(("window", "wait"), [("day", "15 h"), ("month", "16 days")])
@pytest.mark.parametrize("counted", ["tokens", "requests"])
async def test_a_spent_budget_is_an_insufficient_quota(
    window: str, wait: str, counted: str
) -> None:
    desk = Desk(team=f"{{{counted}_per_{window}: 1}}")
    small = Size(text_bytes=4, output_limit=0)
    await desk.admit(small)
    refusal = await desk.refused(small)
    assert isinstance(refusal, QuotaSpent)
    assert (refusal.type, refusal.code) == ("insufficient_quota", "insufficient_quota")
    assert (refusal.status, refusal.anthropic_type) == (429, "rate_limit_error")
    assert (refusal.retry_after, refusal.should_retry) == (60, False)
    assert str(refusal) == f"team search: 1 {counted[:-1]} per {window}; try again in {wait}"


async def test_a_budget_that_comes_back_within_a_minute_is_worth_a_retry() -> None:
    desk = Desk(key="{requests_per_day: 1}")
    desk.clock.move(14.5 * 3600 - 40)
    await desk.admit()
    refusal = await desk.refused()
    assert isinstance(refusal, QuotaSpent)
    assert refusal.should_retry is None
    assert refusal.retry_after is not None
    assert 39.75 <= refusal.retry_after <= 39.75 * 1.2


async def test_a_spent_hour_is_a_rate_and_no_quota() -> None:
    desk = Desk(key="{tokens_per_hour: 100}")
    await desk.admit(Size(text_bytes=400))
    refusal = await desk.refused()
    assert (refusal.type, refusal.code) == ("tokens", "rate_limit_exceeded")
    assert (refusal.retry_after, refusal.should_retry) == (60, False)
    assert str(refusal) == "key ann: 100 tokens per hour; try again in 30 min"


async def test_a_wait_is_never_too_short_and_at_most_a_fifth_too_long() -> None:
    desk = Desk(key="{requests_per_minute: {limit: 7, burst: 1}}")
    await desk.admit()
    needed = 60 / 7
    waits = set()
    for _ in range(200):
        refusal = await desk.refused()
        assert refusal.retry_after is not None
        assert needed <= refusal.retry_after <= needed * 1.2 + 0.000_001
        waits.add(refusal.retry_after)
    assert len(waits) > 100, "all who were refused come back at once"
    assert max(waits) > needed * 1.1
    desk.clock.move(min(waits))
    await desk.admit()


async def test_no_wait_of_up_to_a_minute_is_told_as_longer_than_one() -> None:
    desk = Desk(key="{requests_per_minute: 1}")
    await desk.admit()
    for _ in range(20):
        refusal = await desk.refused()
        assert (refusal.retry_after, refusal.should_retry) == (60, None)
        assert str(refusal).endswith("try again in 60 s")


async def test_of_several_rules_that_refuse_the_one_that_does_so_for_longest_is_told() -> None:
    desk = Desk(key="{requests_per_second: 1}", team="{requests_per_hour: 1}")
    await desk.admit()
    assert (await desk.refused()).limited_by == "team.requests_per_hour"


# How the caller stands


async def test_an_answer_tells_of_the_tightest_rule_on_requests_and_of_that_on_tokens() -> None:
    desk = Desk(
        key="{requests_per_minute: 5, tokens_per_minute: 1000}",
        team="{requests_per_minute: 20, tokens_per_minute: 100000}",
        gateway="{requests_per_day: 1000, tokens_per_day: 100000}",
    )
    for _ in range(5):
        await desk.admit(principal=BOB)
    requests, tokens = (await desk.admit()).standings()
    assert requests is not None
    assert tokens is not None
    # 14 of 20 is less than 4 of 5.
    assert (requests.limit, requests.remaining, requests.reset) == (20, 14, 18_000)
    assert (tokens.limit, tokens.remaining, tokens.reset) == (1000, 850, 9000)
    at = int(START.timestamp())
    assert (requests.at, tokens.at) == (at + 19, at + 10), "rounded up from .25 s"


async def test_the_limit_told_is_what_may_pass_at_once() -> None:
    desk = Desk(key="{requests_per_minute: {limit: 60, burst: 5}}")
    requests, _ = (await desk.admit()).standings()
    assert requests is not None
    assert (requests.limit, requests.remaining, requests.reset) == (5, 4, 1000)


async def test_a_window_is_there_again_exactly_when_it_ends() -> None:
    desk = Desk(key="{requests_per_hour: 5}")
    requests, _ = (await desk.admit()).standings()
    assert requests is not None
    assert requests.reset == 30 * 60 * 1000 - 250
    assert requests.at == int(START.timestamp()) + 30 * 60


async def test_a_refusal_tells_of_the_same_rules_and_has_taken_nothing() -> None:
    desk = Desk(key="{requests_per_minute: 1}", team=TOKENS)
    (await desk.admit()).settle(used(100), 0)
    requests, tokens = (await desk.refused()).standings
    assert requests is not None
    assert tokens is not None
    assert (requests.limit, requests.remaining, requests.reset) == (1, 0, 60_000)
    assert (tokens.limit, tokens.remaining) == (1000, 900)


async def test_slots_are_told_only_where_they_refuse() -> None:
    desk = Desk(key="{concurrency: 2, requests_per_minute: 100, tokens_per_minute: 1000}")
    first = await desk.admit(Size(answers=2, output_limit=1))
    told, _ = first.standings()
    assert told is not None
    assert told.limit == 100
    requests, tokens = (await desk.refused()).standings
    assert requests is not None
    assert tokens is not None
    assert (requests.limit, requests.remaining, requests.reset) == (2, 0, 1000)
    assert (tokens.limit, tokens.remaining) == (1000, 997)


# When counts are out of reach


async def test_where_nothing_may_decide_the_request_is_refused_and_never_as_unauthorized() -> None:
    desk = Desk(key="{tokens_per_minute: 1000, requests_per_minute: 5}")
    desk.counter.away = True
    refusal = await desk.refused()
    assert isinstance(refusal, LimitsUnavailable)
    assert (refusal.status, refusal.anthropic_status) == (503, 529)
    assert (refusal.retry_after, refusal.code) == (1, "overloaded")
    assert refusal.headers == ((b"x-fairgate-limits", b"degraded"),)
    with pytest.raises(LimitsUnavailable):
        await desk.admission.count("req_1", ANN)


async def test_while_the_counts_of_others_are_out_of_reach_every_answer_says_so() -> None:
    desk = Desk(key="{requests_per_minute: 1}")
    assert (await desk.admit(principal=BOB)).headers == b""
    desk.counter.degraded = True
    assert (await desk.admit()).headers == DEGRADED == b"x-fairgate-limits: degraded\r\n"
    assert (await desk.refused()).headers == ((b"x-fairgate-limits", b"degraded"),)


async def test_a_decision_without_levels_admits_and_tells_of_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(key=TOKENS)

    async def open_to_all(claim: Claim) -> Decision:
        return Decision(desk.clock.now, ())

    monkeypatch.setattr(desk.counter, "decide", open_to_all)
    assert (await desk.admit()).standings() == (None, None)

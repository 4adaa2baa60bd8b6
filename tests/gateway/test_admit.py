"""Admission on counts in memory: what is reserved, charged and given back."""

from __future__ import annotations

import pytest

from gateway.errors import RateLimited, TooLargeForLimit
from gateway.limits.base import SECOND
from gateway.terms import Size, Usage
from tests.gateway.desk import ANN, BOB, ESTIMATE, Desk, used
from tests.gateway.pools import route

TOKENS = "{tokens_per_minute: 1000}"


async def test_everyone_is_admitted_where_no_limit_is_configured() -> None:
    desk = Desk()
    permits = [await desk.admit() for _ in range(3)]
    assert [(p.standings(), p.headers) for p in permits] == [((None, None), b"")] * 3
    assert permits[0].settle(used(10**9), 0) == used(10**9)
    permits[1].refund()
    assert (desk.counter.claims, desk.counter.settled) == ([], [])


# What is reserved


async def test_the_estimate_is_reserved_before_anything_is_sent() -> None:
    desk = Desk(key=TOKENS)
    await desk.admit()
    assert await desk.left("key.tokens_per_minute") == 1000 - ESTIMATE


async def test_check_and_count_are_one_so_that_concurrent_requests_cannot_pass() -> None:
    desk = Desk(key=TOKENS)
    permits = [await desk.admit() for _ in range(1000 // ESTIMATE)]
    assert isinstance(await desk.refused(), RateLimited)
    permits[0].settle(used(1), 0)
    assert await desk.admit()


async def test_the_output_is_not_reserved_at_the_limit_that_clients_send() -> None:
    desk = Desk(key="{tokens_per_minute: 100000}")
    await desk.admit(Size(text_bytes=400, output_limit=32_000))
    assert await desk.left("key.tokens_per_minute") == 100_000 - 100 - 512


async def test_what_was_learned_of_a_key_on_a_model_is_what_is_reserved_for_it() -> None:
    desk = Desk(key="{tokens_per_minute: 1000000}")
    for _ in range(20):
        permit = await desk.admit(Size(text_bytes=400))
        permit.settle(used(100, 200), 100)
    before = await desk.left("key.tokens_per_minute")
    await desk.admit(Size(text_bytes=400))
    assert await desk.left("key.tokens_per_minute") == before - 300
    other = await desk.left("key.tokens_per_minute", principal=BOB)
    await desk.admit(Size(text_bytes=400), principal=BOB)
    assert await desk.left("key.tokens_per_minute", principal=BOB) == other - 100 - 512


async def test_a_request_with_nothing_in_it_still_reserves_something() -> None:
    desk = Desk(key="{tokens_per_hour: 1}")
    await desk.admit(Size(output_limit=0))
    assert isinstance(await desk.refused(Size(output_limit=0)), RateLimited)


async def test_an_estimate_and_a_slot_weigh_as_much_as_there_are_answers() -> None:
    desk = Desk(key="{tokens_per_minute: 1000, concurrency: 10, requests_per_minute: 10}")
    await desk.admit(Size(text_bytes=400, output_limit=50, answers=6))
    assert await desk.left("key.tokens_per_minute") == 1000 - 100 - 6 * 50
    assert await desk.left("key.concurrency") == 4
    assert await desk.left("key.requests_per_minute") == 9
    assert (await desk.refused(Size(answers=5, output_limit=1))).limited_by == "key.concurrency"


async def test_embeddings_reserve_their_prompt_tokens_alone() -> None:
    desk = Desk(key=TOKENS)
    await desk.admit(Size(text_bytes=400, tokens=30, output_limit=0))
    assert await desk.left("key.tokens_per_minute") == 1000 - 130


async def test_without_tokens_a_request_costs_a_request_and_neither_tokens_nor_slots() -> None:
    desk = Desk(key="{tokens_per_minute: 1, requests_per_minute: 5, concurrency: 1}")
    permits = [await desk.admit(tokens=False) for _ in range(2)]
    permits[0].settle(used(14), 0)
    assert await desk.left("key.tokens_per_minute") == 1
    assert await desk.left("key.concurrency") == 1
    assert await desk.left("key.requests_per_minute") == 3


async def test_a_request_no_engine_sees_costs_a_request_of_every_rule_but_the_models() -> None:
    desk = Desk(*["{tokens_per_minute: 1, requests_per_minute: 5, concurrency: 1}"] * 5)
    permit = await desk.admission.count("req_1", ANN)
    permit.settle(Usage(), 0)
    for scope in ("key", "team", "gateway", "team_model", "model"):
        left = 5 if "model" in scope else 4
        assert await desk.left(f"{scope}.requests_per_minute") == left
        assert await desk.left(f"{scope}.tokens_per_minute") == 1
        assert await desk.left(f"{scope}.concurrency") == 1
    requests, tokens = permit.standings()
    assert requests is not None
    assert (requests.remaining, tokens) == (4, None)


async def test_what_holds_on_one_model_does_not_hold_without_one() -> None:
    desk = Desk(key="{requests_per_minute: 9}", model="{requests_per_minute: 1}")
    await desk.admit()
    for number in range(2):
        await desk.admission.count(f"req_{number}", ANN)
    assert (await desk.refused()).limited_by == "model.requests_per_minute"


@pytest.mark.parametrize("scope", ["key", "team", "gateway", "both", "model"])
async def test_over_limit_on_one_rule_leaves_the_others_untouched(scope: str) -> None:
    rules = dict.fromkeys(["key", "team", "gateway", "both", "model"], ROOM)
    desk = Desk(**{**rules, scope: "{requests_per_minute: 1, tokens_per_minute: 5000}"})
    await desk.admit()
    before = await desk.all_left()
    refusal = await desk.refused()
    assert refusal.limited_by.partition(".")[0] == scope.replace("both", "team_model")
    assert await desk.all_left() == before
    assert desk.counter.settled == []


ROOM = "{requests_per_minute: 5, tokens_per_minute: 5000, concurrency: 5, tokens_per_day: 9000}"


async def test_two_keys_of_a_team_share_its_limit_and_not_their_own() -> None:
    desk = Desk(key="{requests_per_minute: 2}", team="{requests_per_minute: 3}")
    for principal in (ANN, ANN, BOB):
        await desk.admit(principal=principal)
    assert (await desk.refused(principal=BOB)).limited_by == "team.requests_per_minute"
    assert await desk.left("key.requests_per_minute", principal=BOB) == 1


# What can never pass, and what can when there is room


async def test_a_prompt_that_can_never_fit_is_a_400_that_names_the_limit() -> None:
    desk = Desk(team="{tokens_per_minute: 5000}", key="{requests_per_minute: 1}")
    refusal = await desk.refused(Size(text_bytes=4 * 5001))
    assert isinstance(refusal, TooLargeForLimit)
    assert str(refusal) == (
        "This request can never pass a limit, team search: 5,000 tokens per minute: "
        "its prompt alone has about 5,001 tokens."
    )
    assert (refusal.status, refusal.code) == (400, "request_too_large_for_limit")
    assert (refusal.should_retry, refusal.retry_after) == (False, None)
    assert (refusal.outcome, refusal.limited_by) == ("limited", "team.tokens_per_minute")
    assert desk.counter.claims == []


async def test_where_less_can_pass_at_once_than_in_a_minute_the_refusal_says_how_much() -> None:
    desk = Desk(team="{tokens_per_minute: {limit: 5000, burst: 1000}}")
    assert str(await desk.refused(Size(text_bytes=4 * 4902))) == (
        "This request can never pass a limit, team search: 5,000 tokens per minute, "
        "at most 1,000 at once: its prompt alone has about 4,902 tokens."
    )
    await desk.admit(Size(text_bytes=4 * 1000))


async def test_more_answers_than_there_are_slots_can_never_pass() -> None:
    desk = Desk(key="{concurrency: 3}")
    assert str(await desk.refused(Size(answers=4))) == (
        "This request can never pass a limit, key ann: 3 requests at once: "
        "it asks for 4 answers at once."
    )
    await desk.admit(Size(answers=3))


@pytest.mark.parametrize("window", ["minute", "day"])
async def test_the_first_request_of_a_small_key_passes_though_its_estimate_does_not_fit(
    window: str,
) -> None:
    desk = Desk(key=f"{{tokens_per_{window}: 200}}")
    permit = await desk.admit(Size(text_bytes=400, output_limit=32_000))
    assert await desk.left(f"key.tokens_per_{window}") == 0
    # What does not fit is not owed before it is used.
    ((_, reserved),) = desk.counter.claims[0].lines
    assert reserved == 200
    permit.settle(used(100, 20), 20)
    assert await desk.left(f"key.tokens_per_{window}") == 80


async def test_an_estimate_that_does_not_fit_waits_until_the_bucket_is_full() -> None:
    desk = Desk(key="{tokens_per_minute: 600}")
    (await desk.admit()).settle(used(1), 0)
    large = Size(text_bytes=400, output_limit=32_000, answers=8)
    assert (await desk.refused(large)).status == 429
    desk.clock.move(0.1)
    await desk.admit(large)


# What is charged


async def test_what_was_reserved_is_settled_to_what_was_used() -> None:
    desk = Desk(key=TOKENS)
    permit = await desk.admit()
    permit.settle(used(90, 7), 7)
    assert await desk.left("key.tokens_per_minute") == 1000 - 97


async def test_more_used_than_there_was_is_a_debt_that_time_repays() -> None:
    desk = Desk(key="{tokens_per_minute: 600}")
    (await desk.admit()).settle(used(100, 1700), 1700)
    assert await desk.level("key.tokens_per_minute") == (0, 180 * SECOND)
    refusal = await desk.refused()
    assert refusal.should_retry is False
    assert str(refusal) == "key ann: 600 tokens per minute; try again in 3 min"
    desk.clock.move(135 - 0.001)
    assert (await desk.refused()).status == 429
    desk.clock.move(0.001)
    await desk.admit()


@pytest.mark.parametrize(("weight", "charged"), [(0.0, 30), (0.1, 37), (1.0, 100)])
async def test_cached_prompt_tokens_weigh_what_the_model_says(weight: float, charged: int) -> None:
    desk = Desk(key=TOKENS)
    permit = await desk.admit(on=route(cached_token_weight=weight))
    assert permit.settle(used(90, 10, cached=70), 10).cached == 70
    assert await desk.left("key.tokens_per_minute") == 1000 - charged


async def test_a_stream_without_the_engines_word_is_charged_by_its_events() -> None:
    desk = Desk(key=TOKENS)
    permit = await desk.admit()
    assert permit.settle(Usage(), 30) == Usage(prompt=100, completion=30)
    assert await desk.left("key.tokens_per_minute") == 1000 - 130


async def test_events_are_charged_at_what_the_models_events_have() -> None:
    desk = Desk(key="{tokens_per_minute: 1000000}")
    for _ in range(100):
        (await desk.admit()).settle(used(100, 120), 30)
    assert (await desk.admit(Size(text_bytes=400))).settle(Usage(), 30).completion == 120


async def test_every_rule_on_tokens_is_charged_alike() -> None:
    desk = Desk(*["{tokens_per_minute: 1000, tokens_per_day: 5000}"] * 5)
    (await desk.admit()).settle(used(90, 7), 7)
    assert await desk.all_left() == [903, 4903] * 5


@pytest.mark.parametrize("first", ["settle", "refund"])
@pytest.mark.parametrize("second", ["settle", "refund"])
async def test_a_second_ending_changes_nothing(first: str, second: str) -> None:
    desk = Desk(key="{tokens_per_minute: 1000, requests_per_day: 9, concurrency: 2}")
    permit = await desk.admit()
    await desk.admit()

    def end(how: str, tokens: int) -> None:
        if how == "refund":
            permit.refund()
        else:
            assert permit.settle(used(tokens), 0) == (used(90) if first == "settle" else Usage())

    end(first, 90)
    before = await desk.all_left()
    end(second, 700)
    assert await desk.all_left() == before
    assert len(desk.counter.settled) == 1
    assert await desk.left("key.concurrency") == 1


async def test_a_refund_gives_back_everything_the_request_too() -> None:
    desk = Desk(*[ROOM] * 5)
    before = await desk.all_left()
    (await desk.admit()).refund()
    assert await desk.all_left() == before


async def test_a_settled_request_keeps_its_request_and_frees_its_slots() -> None:
    desk = Desk(key="{requests_per_minute: 5, requests_per_day: 5, concurrency: 4}")
    (await desk.admit(Size(answers=3))).settle(Usage(exact=True), 0)
    assert await desk.all_left() == [4, 4, 4]

"""How the rules stand is told as they are counted; a reset forgets the rules asked for, no more."""

from collections.abc import Sequence

import pytest

from gateway import config as configuration
from gateway.limits.base import Claim, Counter, Level, Rule, Unavailable
from gateway.limits.memory import Alone
from gateway.limits.report import Report, Told
from gateway.limits.rulebook import Rulebook
from gateway.terms import Principal

TEXT = f"""
models: {{llama: {{replicas: [http://gpu1:8000], limits: {{concurrency: 9}}}}}}
teams:
  search:
    limits: {{tokens_per_minute: {{limit: 600, burst: 100}}, concurrency: 4}}
    limits_by_model: {{llama: {{requests_per_day: 7}}}}
keys:
  - {{name: ann, team: search, sha256: {"a" * 64}, limits: {{requests_per_minute: 3}}}}
"""
#: 2023-11-14 22:13:20 UTC in microseconds: 6,400 s before midnight.
NOW = 1_700_000_000_000_000


def reporting(book: Rulebook, counter: Counter, mode: str | None = None, now: int = NOW) -> Report:
    return Report(book, counter, mode, lambda: now)


class Away(Alone):
    """A counter whose store does not answer."""

    async def levels(self, rules: Sequence[Rule]) -> Sequence[Level]:
        raise Unavailable("no answer within 500 ms")

    async def reset(self, rules: Sequence[Rule]) -> None:
        raise Unavailable("no answer within 500 ms")


@pytest.fixture
def book() -> Rulebook:
    return Rulebook(configuration.load("test.yaml", TEXT, {}))


async def used(book: Rulebook) -> Counter:
    """After one request of ann's that still runs and reserved 30 tokens."""
    counter = Alone(lambda: NOW)
    rules = book.of(Principal("ann", "search"), "llama")
    lines = tuple((rule, 30 if rule.counted == "tokens" else 1) for rule in rules)
    assert (await counter.decide(Claim("r1", lines))).refused is None
    return counter


def by_name(told: Told) -> dict[str, tuple[int, int, int, int, float]]:
    """Limit, burst, used, left and reset."""
    status, document = told
    assert (status, document["degraded"]) == (200, False)
    return {
        ".".join([rule["scope"], *rule["owner"], rule["name"]]): (
            *(rule[name] for name in ("limit", "burst", "used", "left", "reset")),
        )
        for rule in document["rules"]
    }


async def test_each_rule_is_told_with_what_is_used_left_and_when_it_is_back(book: Rulebook) -> None:
    told = by_name(await reporting(book, await used(book)).shown("ann", None))
    assert told == {
        "key.ann.requests_per_minute": (3, 3, 1, 2, 20.0),
        "team.search.tokens_per_minute": (600, 100, 30, 70, 3.0),
        "team.search.concurrency": (4, 4, 1, 3, 0.0),
        "team_model.search.llama.requests_per_day": (7, 7, 1, 6, 6400.0),
        "model.llama.concurrency": (9, 9, 1, 8, 0.0),
    }


@pytest.mark.parametrize("apart", [-400_000, 0, 400_000])
async def test_the_time_when_it_is_back_is_told_too_though_clocks_differ_a_little(
    book: Rulebook, apart: int
) -> None:
    _, document = await reporting(book, await used(book), now=NOW + apart).shown("ann", None)
    assert {rule["name"]: rule["reset_at"] for rule in document["rules"]} == {
        "requests_per_minute": "2023-11-14T22:13:40Z",
        "tokens_per_minute": "2023-11-14T22:13:23Z",
        "concurrency": "2023-11-14T22:13:20Z",
        "requests_per_day": "2023-11-15T00:00:00Z",
    }


@pytest.mark.parametrize("mode", [None, "local", "open", "closed"])
async def test_what_happens_without_redis_is_told_beforehand(
    book: Rulebook, mode: str | None
) -> None:
    _, document = await reporting(book, await used(book), mode).shown(None, None)
    assert (document["degraded"], document["mode"]) == (False, mode)


async def test_a_reset_of_a_key_leaves_what_it_shares(book: Rulebook) -> None:
    report = reporting(book, await used(book))
    before = by_name(await report.shown(None, None))
    assert await report.reset("ann", None) == (
        200,
        {"reset": [{"scope": "key", "owner": ("ann",), "name": "requests_per_minute"}]},
    )
    after = by_name(await report.shown(None, None))
    assert after == {**before, "key.ann.requests_per_minute": (3, 3, 0, 3, 0.0)}


async def test_a_reset_never_frees_the_slots_of_live_requests(book: Rulebook) -> None:
    report = reporting(book, await used(book))
    status, document = await report.reset(None, None)
    assert (status, [rule["name"] for rule in document["reset"]]) == (
        200,
        ["tokens_per_minute", "requests_per_day", "requests_per_minute"],
    )
    told = by_name(await report.shown(None, None))
    assert {name for name, (*_, left, _) in told.items() if left != told[name][1]} == {
        "team.search.concurrency",
        "model.llama.concurrency",
    }


async def test_who_is_not_there_and_a_store_that_is_away_are_told_apart(book: Rulebook) -> None:
    report = reporting(book, Away(lambda: NOW), "closed")
    away = "Redis is away (no answer within 500 ms) and when_redis_is_down is closed"
    for ask in (report.shown, report.reset):
        assert await ask("bob", None) == (404, {"error": "no key 'bob'; known: ann"})
        assert await ask("ann", None) == (503, {"error": f"{away}; see to it, then ask again"})

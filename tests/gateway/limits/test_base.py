"""A rule's own unit never rounds, its key is its own, and windows are those of the calendar."""

from __future__ import annotations

from itertools import combinations
from math import gcd

from hypothesis import given
from hypothesis import strategies as st

from gateway.limits.base import WIDTH, Form, Rule, window_end, window_start
from tests.gateway.limits.model import began, ends, microseconds

#: 1970 to 2100, in microseconds.
instants = st.integers(0, 4_133_980_800 * 10**6)


@given(st.sampled_from(["second", "minute"]), st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_bucket_drains_its_limit_in_its_window_without_a_rest(
    window: str, limit: int, burst: int
) -> None:
    rule = Rule("key", ["k"], "tokens", window, limit, burst)  # type: ignore[arg-type]
    assert rule.drain * WIDTH[window] == limit * rule.unit
    assert rule.room == burst * rule.unit
    assert gcd(rule.unit, rule.drain) == 1  # finer than it must be would soon be too large
    assert rule.form is Form.BUCKET


def test_a_bucket_is_as_large_as_its_limit_unless_told() -> None:
    assert Rule("key", ["k"], "requests", "minute", 60).burst == 60
    assert Rule("key", ["k"], "requests", "minute", 60, 5).burst == 5


@given(instants, st.sampled_from(["hour", "day", "month"]))
def test_windows_are_those_of_the_calendar(at: int, window: str) -> None:
    start = window_start(at, WIDTH[window])
    assert start == microseconds(began(window, at))
    assert window_end(start, WIDTH[window]) == microseconds(ends(window, at))
    assert start <= at < window_end(start, WIDTH[window])


def test_no_name_of_an_owner_looks_like_anothers() -> None:
    owners = [("a", "b"), ("a/b",), ("a:b",), ("a%2Fb",), ("a", "b", ""), ("", "a", "b")]
    rules = [Rule("team_model", owner, "requests", "minute", 1) for owner in owners]
    for one, other in combinations(rules, 2):
        assert one.key != other.key


def test_a_key_has_no_hash_tag_of_its_own() -> None:
    rule = Rule("key", ["{other}:x"], "requests", "minute", 1)
    assert not set(rule.key) & set("{} \r\n")


def test_rules_of_one_owner_have_keys_of_their_own_whatever_their_limit() -> None:
    minute, day = (Rule("team", ["a"], "tokens", w, 9) for w in ("minute", "day"))
    slots = Rule("team", ["a"], "concurrency", None, 9)
    requests = Rule("team", ["a"], "requests", "minute", 9)
    assert len({rule.key for rule in (minute, day, slots, requests)}) == 4
    assert minute.key == Rule("team", ["a"], "tokens", "minute", 10, 3).key


def test_a_rule_says_what_it_is_as_people_do() -> None:
    search = Rule("team", ["search"], "tokens", "minute", 500_000)
    both = Rule("team_model", ["search", "llama"], "requests", "day", 1000)
    assert str(search) == "team search: 500,000 tokens per minute"
    assert str(both) == "team search on llama: 1,000 requests per day"
    second = Rule("gateway", (), "requests", "second", 9)
    assert str(second) == "this gateway: 9 requests per second"
    assert str(Rule("key", ["k"], "concurrency", None, 4)) == "key k: 4 requests at once"
    assert (search.label, both.label) == ("team.tokens_per_minute", "team_model.requests_per_day")

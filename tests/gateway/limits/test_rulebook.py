"""Which rules hold for whom, are shown to whom, and are reset with whom."""

import gc
from collections.abc import Iterable

import pytest

from gateway import config as configuration
from gateway.limits.base import Rule
from gateway.limits.rulebook import NoSuchOwner, Rulebook, Rules
from gateway.terms import Principal

TEXT = f"""
limits: {{requests_per_second: 50}}
models:
  llama: {{replicas: [http://gpu1:8000], limits: {{concurrency: 9}}}}
  other: {{replicas: [http://gpu2:8000], limits: {{concurrency: 5}}}}
teams:
  search:
    limits: {{tokens_per_minute: {{limit: 500, burst: 100}}, concurrency: 4}}
    limits_by_model: {{llama: {{requests_per_day: 7}}}}
  ads: {{limits: {{requests_per_hour: 8}}, limits_by_model: {{llama: {{concurrency: 2}}}}}}
keys:
  - {{name: ann, team: search, sha256: {"a" * 64}, limits: {{requests_per_minute: 3}}}}
  - {{name: eve, team: search, sha256: {"b" * 64}, limits: {{requests_per_minute: 6}}}}
  - {{name: bob, team: ads, sha256: {"c" * 64}}}
"""
GATEWAY = ["gateway::requests_per_second"]
MODELS = ["model:llama:concurrency", "model:other:concurrency"]
SEARCH = ["team:search:tokens_per_minute", "team:search:concurrency"]
ON_LLAMA = ["team_model:search/llama:requests_per_day"]
ADS = ["team:ads:requests_per_hour", "team_model:ads/llama:concurrency"]
ANN = ["key:ann:requests_per_minute"]
EVE = ["key:eve:requests_per_minute"]


@pytest.fixture(scope="module")
def book() -> Rulebook:
    return Rulebook(configuration.load("test.yaml", TEXT, {}))


def names(rules: Iterable[Rule]) -> list[str]:
    return [rule.key for rule in rules]


def test_a_request_is_under_the_rules_of_its_key_team_and_model_and_the_gateways(
    book: Rulebook,
) -> None:
    ann = Principal("ann", "search")
    assert names(book.of(ann, "llama")) == [*ANN, *SEARCH, *GATEWAY, *ON_LLAMA, MODELS[0]]
    assert names(book.of(ann, "other")) == [*ANN, *SEARCH, *GATEWAY, MODELS[1]]
    assert names(book.of(ann, None)) == [*ANN, *SEARCH, *GATEWAY]
    assert names(book.of(Principal("made up", "made up"), "llama")) == [*GATEWAY, MODELS[0]]


def test_a_rule_is_what_the_configuration_says(book: Rulebook) -> None:
    tokens, slots = book.owned(team="search")[:2]
    assert (tokens.counted, tokens.window, tokens.limit, tokens.burst) == (
        *("tokens", "minute", 500),
        100,
    )
    assert (slots.counted, slots.window, slots.limit) == ("concurrency", None, 4)


@pytest.mark.parametrize("model", ["llama", "other"])
@pytest.mark.parametrize("key", ["ann", "eve", "bob"])
def test_a_key_is_shown_every_rule_that_can_refuse_it(book: Rulebook, key: str, model: str) -> None:
    team = "ads" if key == "bob" else "search"
    can_refuse = set(book.of(Principal(key, team), model))
    assert can_refuse <= set(book.under(key=key))


def test_a_key_is_shown_no_rule_of_other_keys_and_teams(book: Rulebook) -> None:
    assert names(book.under(key="ann")) == [*ANN, *SEARCH, *ON_LLAMA, *GATEWAY, *MODELS]
    assert names(book.under(key="bob")) == [*ADS, *GATEWAY, *MODELS]


def test_a_team_is_shown_what_all_its_keys_share(book: Rulebook) -> None:
    assert names(book.under(team="search")) == [*SEARCH, *ON_LLAMA, *GATEWAY, *MODELS]


def test_what_is_owned_is_shared_with_nobody_else(book: Rulebook) -> None:
    assert names(book.owned(key="ann")) == ANN
    assert names(book.owned(key="bob")) == []
    assert names(book.owned(team="search")) == [*SEARCH, *ON_LLAMA]


def test_of_nobody_in_particular_there_are_all_rules_once(book: Rulebook) -> None:
    every = [*GATEWAY, *MODELS, *SEARCH, *ON_LLAMA, *ADS, *ANN, *EVE]
    for rules in (book.under(), book.owned()):
        assert sorted(names(rules)) == sorted(every)
        assert len(set(rules)) == len(rules)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ({"key": "search"}, "no key 'search'; known: ann, eve, bob"),
        ({"key": ""}, "no key ''; known: ann, eve, bob"),
        ({"team": "serach"}, "no team 'serach'; known: search, ads"),
    ],
)
def test_a_name_nobody_has_is_answered_with_those_there_are(
    book: Rulebook, owner: dict[str, str], message: str
) -> None:
    for of in (book.under, book.owned):
        with pytest.raises(NoSuchOwner) as told:
            of(**owner)
        assert str(told.value) == message


# Over several configurations


def test_a_rule_that_stays_is_one_object_with_the_newest_limit() -> None:
    rules = Rules()
    before = Rulebook(configuration.load("t.yaml", TEXT, {}), rules)
    held = {rule.key: rule for rule in before.owned()}
    text = TEXT.replace("requests_per_minute: 3", "requests_per_minute: 7")
    text = text.replace("{limit: 500, burst: 100}", "{limit: 600, burst: 50}")
    text = text.replace("concurrency: 9", "concurrency: 2")
    after = Rulebook(configuration.load("t.yaml", text, {}), rules)
    for rule in after.owned():
        fresh = Rule(rule.scope, rule.owner, rule.counted, rule.window, rule.limit, rule.burst)
        assert rule is held[rule.key]
        assert rule.params == fresh.params
    changed = ("key:ann:requests_per_minute", "team:search:tokens_per_minute", MODELS[0])
    assert [(held[key].limit, held[key].burst) for key in changed] == [(7, 7), (600, 50), (2, 2)]


def test_a_rule_that_a_request_still_holds_comes_back_as_itself() -> None:
    rules = Rules()
    config = configuration.load("t.yaml", TEXT, {})
    held = Rulebook(config, rules).owned(key="ann")[0]
    bare = configuration.load("t.yaml", TEXT.replace("limits: {requests_per_minute: 3}", ""), {})
    assert Rulebook(bare, rules).owned(key="ann") == ()
    assert Rulebook(config, rules).owned(key="ann") == (held,)


def test_rules_that_nothing_holds_are_forgotten() -> None:
    rules = Rules()
    Rulebook(configuration.load("t.yaml", TEXT, {}), rules)
    gc.collect()
    assert not rules._known

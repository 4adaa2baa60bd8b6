"""What must hold between settings, the settings of later versions among them."""

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway import checks
from gateway.checks import NOT_YET, problems
from gateway.document import path_text
from gateway.settings import (
    Caps,
    Config,
    Key,
    Limits,
    Model,
    Override,
    ReplicaSettings,
    Team,
    Timeouts,
)
from gateway.units import Address

ROOT = Path(__file__).parents[2]
REPLICAS = (ReplicaSettings(url="http://h"),)
POOL = Model(replicas=REPLICAS)
ALIASED = Model(replicas=REPLICAS, aliases=("alias",))


def falling_back(*names: str) -> Model:
    return Model(replicas=REPLICAS, fallback=names)


def found(config: Config) -> list[str]:
    return [f"{path_text(path)}: {message}" for path, message in problems(config)]


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a version that enforces all there is."""
    monkeypatch.setattr(checks, "NOT_YET", ())


LATER: list[tuple[Config, str]] = [
    (Config(workers=2), "workers: more than 1 needs secret, which they share"),
    (Config(redis="redis://h"), "redis: needs secret, which all gateways on it share"),
    (
        Config(redis="redis+cluster://h", redis_prefix="gate:{}", secret="s" * 16 * 32),
        "redis_prefix: needs a hash tag such as {fairgate}: else a cluster parts its keys",
    ),
    (
        Config(models={"a": falling_back("b")}),
        "models.a.fallback[0]: no model 'b'; known: a",
    ),
    (
        Config(models={"a": falling_back("a")}),
        "models.a.fallback[0]: a model is no fallback of its own",
    ),
    (
        Config(models={"a": POOL, "s": Model(replicas=REPLICAS, split={"a": 1})}),
        "models.s.split: a model has replicas or a split, not both",
    ),
    (Config(models={"s": Model(split={})}), "models.s.split: needs a model"),
    (Config(models={"s": Model(split={"b": 1})}), "models.s.split.b: no model 'b'; known: s"),
    (
        Config(models={"a": POOL, "s": Model(split={"a": 1}), "t": Model(split={"s": 1})}),
        "models.t.split.s: 's' is a split itself; name the models it splits over",
    ),
    (
        Config(models={"a": POOL, "s": Model(split={"a": 1}), "b": falling_back("s")}),
        "models.b.fallback[0]: 's' is a split itself; name the models it splits over",
    ),
    (
        Config(models={"a": ALIASED, "s": Model(split={"alias": 1})}),
        "models.s.split.alias: no model 'alias'; it is an alias of a",
    ),
    (
        Config(models={"a": ALIASED, "b": falling_back("alias")}),
        "models.b.fallback[0]: no model 'alias'; it is an alias of a",
    ),
    (
        Config(models={"a": POOL, "b": falling_back("a", "a")}),
        "models.b.fallback[1]: 'a' is there twice",
    ),
    (
        Config(
            models={"a": POOL, "s": Model(split={"a": 1})},
            teams={"t": Team(limits_by_model={"s": Limits(concurrency=1)})},
        ),
        "teams.t.limits_by_model.s: 's' is a split; limit the models it names",
    ),
]


LATER += [
    (
        Config(
            models={"a": ALIASED},
            teams={"t": Team(limits_by_model=dict.fromkeys(("a", "alias"), Limits(concurrency=1)))},
        ),
        "teams.t.limits_by_model.alias: is the same model as 'a': write its limits under one name",
    ),
    *(
        (
            Config(models={"a": Model(replicas=REPLICAS, timeouts=Timeouts(**{name: 7.0}))}),
            f"models.a.timeouts.{name}: no model has one of its own; "
            "set it for the whole gateway, under `timeouts`",
        )
        for name in ("header", "body", "keep_alive", "connect", "tls", "lame_duck", "drain")
    ),
]


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(("config", "problem"), LATER, ids=[problem for _, problem in LATER])
def test_a_contradiction_is_found(config: Config, problem: str) -> None:
    assert found(config) == [problem]


#: What only a model with replicas can have.
OF_A_POOL: dict[str, Any] = {
    "kind": "openai",
    "upstream_model": "real",
    "policy": "round_robin",
    "fallback": ("a",),
    "limits": Limits(concurrency=1),
    "timeouts": Timeouts(stall=1.0),
    "cached_token_weight": 1.0,
    "usage_in_streams": "off",
    "request": Caps(n=1),
}


@pytest.mark.parametrize("setting", OF_A_POOL)
def test_what_nothing_would_heed_on_a_split_is_refused(setting: str) -> None:
    split = Model(split={"a": 1}, **{setting: OF_A_POOL[setting]})
    assert found(Config(models={"a": POOL, "s": split})) == [
        f"models.s.{setting}: a split has none of its own; set it for the models it names"
    ]


def test_every_setting_of_a_model_is_for_pools_or_for_splits_too() -> None:
    assert {*OF_A_POOL, "replicas", "split", "aliases"} == set(Model.__struct_fields__)


def test_a_split_goes_with_timeouts_and_caps_of_the_gateway() -> None:
    times, caps = Timeouts(stall=1.0), Caps(n=1)
    split = Model(split={"a": 1}, timeouts=times, request=caps)
    assert found(Config(timeouts=times, request=caps, models={"a": POOL, "s": split})) == []


@pytest.mark.usefixtures("everything")
def test_a_whole_configuration_of_a_later_version_holds() -> None:
    models = {
        "a": Model(replicas=REPLICAS, fallback=("b",)),
        "b": POOL,
        "s": Model(split={"a": 90, "b": 10}),
    }
    config = Config(
        models=models, secret="s" * 16, workers=4, redis="redis://h", limits=Limits(concurrency=5)
    )
    assert found(config) == []


def test_a_setting_of_a_later_version_is_the_first_to_be_said() -> None:
    first = found(Config(trusted_proxies=("10.0.0.0/8",), workers=2))[0]
    assert first == "trusted_proxies: not in this version yet"


def test_the_example_marks_just_the_settings_of_a_later_version() -> None:
    text = (ROOT / "deploy" / "gateway.example.yaml").read_text().partition("\n\n")[2]
    # The mark stands in the comment before a setting, or on its line.
    marked = re.findall(r"\(later\).*\n(?: *#.*\n)* *(\w+):|^ *(\w+):.*\(later\)", text, re.M)
    assert [before or beside for before, beside in marked] == list(NOT_YET)


FIVE = Limits(concurrency=5)
LIMITED = {
    "limits": Config(limits=FIVE),
    "models.a.limits": Config(models={"a": Model(replicas=REPLICAS, limits=FIVE)}),
    "teams.t.limits": Config(teams={"t": Team(limits=FIVE)}),
    "teams.t.limits_by_model": Config(
        models={"a": POOL}, teams={"t": Team(limits_by_model={"a": FIVE})}
    ),
    "keys[0].limits": Config(
        teams={"t": Team()}, keys=(Key(name="k", team="t", sha256="0" * 64, limits=FIVE),)
    ),
}


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize("place", LIMITED)
def test_limits_of_several_workers_need_redis(place: str) -> None:
    config = replace(LIMITED[place], secret="s" * 16)
    assert found(config) == []
    (problem,) = found(replace(config, workers=2))
    assert problem == (
        f"workers: more than 1 needs redis: {place} is set, and they count together there only; "
        "without redis: workers: 1"
    )
    assert found(replace(config, workers=2, redis="redis://h")) == []


def test_several_workers_without_limits_need_no_redis() -> None:
    assert found(Config(workers=2, secret="s" * 16)) == []


def test_the_defaults_hold() -> None:
    assert found(Config()) == []


def test_any_free_port_may_be_asked_for_twice() -> None:
    free = Address(host="localhost", port=0)
    assert found(Config(listen=(free, free), admin_listen=free)) == []


def test_a_pool_may_keep_conversations_where_their_prefix_is() -> None:
    model = Model(replicas=REPLICAS, policy="prefix_affinity")
    assert found(Config(models={"a": model})) == []


def test_a_field_that_is_not_privileged_is_not_allowed_anywhere() -> None:
    wrong: Override[Caps] = Override({"privileged": {"prioritee": "allow"}})
    config = Config(models={"a": POOL}, teams={"t": Team(request=wrong)})
    (problem, *_) = found(config)
    assert problem.startswith(
        "teams.t.request.privileged.prioritee: no privileged field 'prioritee'; known: cache_salt"
    )


def test_a_secret_that_can_be_guessed_is_refused_without_showing_it() -> None:
    assert found(Config(secret="s" * 16)) == []
    (problem,) = found(Config(secret="hunter2"))
    assert problem.startswith("secret: wanted at least 16 characters")
    assert "hunter2" not in problem

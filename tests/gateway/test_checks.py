"""What must hold between settings, the settings of later versions among them."""

import pytest

from gateway import checks
from gateway.checks import problems
from gateway.document import path_text
from gateway.settings import Config, Limits, Model, ReplicaSettings
from gateway.units import Address

REPLICAS = (ReplicaSettings(url="http://h"),)
POOL = Model(replicas=REPLICAS)


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
        Config(models={"a": Model(replicas=REPLICAS, fallback=("b",))}),
        "models.a.fallback[0]: no model 'b'; known: a",
    ),
    (
        Config(models={"a": Model(replicas=REPLICAS, fallback=("a",))}),
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
        "models.t.split.s: 's' is a split itself",
    ),
]


@pytest.mark.usefixtures("everything")
@pytest.mark.parametrize(("config", "problem"), LATER, ids=[problem for _, problem in LATER])
def test_a_contradiction_is_found(config: Config, problem: str) -> None:
    assert found(config) == [problem]


@pytest.mark.usefixtures("everything")
def test_a_whole_configuration_of_a_later_version_holds() -> None:
    models = {
        "a": Model(replicas=REPLICAS, fallback=("b",)),
        "b": POOL,
        "s": Model(split={"a": 90, "b": 10}),
    }
    config = Config(
        models=models, secret="s", workers=4, redis="redis://h", limits=Limits(concurrency=5)
    )
    assert found(config) == []


def test_a_setting_of_a_later_version_is_the_first_to_be_said() -> None:
    assert found(Config(workers=2))[0] == "workers: not in this version yet"


def test_the_defaults_hold() -> None:
    assert found(Config()) == []


def test_any_free_port_may_be_asked_for_twice() -> None:
    free = Address(host="localhost", port=0)
    assert found(Config(listen=(free, free), admin_listen=free)) == []


def test_a_policy_that_is_not_there_yet_is_refused() -> None:
    model = Model(replicas=(ReplicaSettings(url="http://h"),), policy="prefix_affinity")
    assert found(Config(models={"a": model})) == [
        "models.a.policy: prefix_affinity is not in this version yet"
    ]

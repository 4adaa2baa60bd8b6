"""The nouns of the configuration: their defaults, overrides, rules, and what they never show."""

import io
from typing import Any

import msgspec
import pytest
from rich.console import Console

from gateway.settings import (
    Caps,
    Config,
    Limits,
    MaxTokens,
    Override,
    Rate,
    ReplicaSettings,
    Rule,
)


def test_an_override_replaces_only_what_it_gives() -> None:
    base = Caps(n=4, privileged={"priority": "allow"}, max_tokens=MaxTokens(cap=9, over="refuse"))
    partial: Override[Caps] = Override(
        {"privileged": {}, "max_tokens": Override({"cap": None}), "inputs": 7}
    )
    merged = base.merge(partial)
    assert (merged.n, merged.inputs, merged.privileged) == (4, 7, {})
    assert merged.max_tokens == MaxTokens(cap=None, over="refuse")
    assert base.max_tokens.cap == 9


def test_an_empty_override_costs_nothing() -> None:
    base = Caps()
    assert base.merge(Override()) is base


def test_rates_become_rules_with_a_bucket_only_under_an_hour() -> None:
    limits = Limits(
        requests_per_minute=Rate(limit=60),
        tokens_per_second=Rate(limit=10, burst=50),
        tokens_per_day=Rate(limit=1000),
        concurrency=3,
    )
    assert limits.rules == (
        Rule("requests", "minute", 60, 60),
        Rule("tokens", "second", 10, 50),
        Rule("tokens", "day", 1000, None),
    )
    assert Limits().rules == ()


@pytest.mark.parametrize("window", ["hour", "day", "month"])
def test_a_fixed_window_takes_no_burst(window: str) -> None:
    with pytest.raises(ValueError, match=f"requests_per_{window} takes no burst"):
        msgspec.structs.replace(Limits(), **{f"requests_per_{window}": Rate(limit=5, burst=1)})


@pytest.mark.parametrize(
    ("limit", "burst"), [(75_059_993, None), (10**12, None), (7, 75_059_993), (60_000_000, 1 << 52)]
)
def test_a_bucket_is_as_large_as_can_be_counted(limit: int, burst: int | None) -> None:
    Limits(tokens_per_minute=Rate(limit=limit, burst=burst))
    with pytest.raises(ValueError, match="tokens_per_minute is too large .* at most 75,059,993"):
        Limits(tokens_per_minute=Rate(limit=limit + 1, burst=1 << 53))
    with pytest.raises(ValueError, match="tokens_per_minute is too large"):
        Limits(tokens_per_minute=Rate(limit=999_999_937))


@pytest.mark.parametrize(
    ("url", "canonical", "parts"),
    [
        ("http://gpu1:8000", "http://gpu1:8000", ("http", "gpu1", 8000, "/v1")),
        ("HTTP://GPU1:80/v1/", "http://gpu1", ("http", "gpu1", 80, "/v1")),
        ("https://h/api/v1/", "https://h/api/v1", ("https", "h", 443, "/api/v1")),
        ("https://[::1]:443/", "https://[::1]", ("https", "::1", 443, "/v1")),
        ("http://h:443", "http://h:443", ("http", "h", 443, "/v1")),
    ],
)
def test_a_replica_has_one_canonical_url(
    url: str, canonical: str, parts: tuple[str, str, int, str]
) -> None:
    replica = ReplicaSettings(url=url)
    assert replica.url == canonical
    assert (replica.scheme, replica.host, replica.port, replica.base) == parts
    assert ReplicaSettings(url=canonical) == replica


def test_a_replica_is_one_server_or_one_way_to_find_several() -> None:
    dns = ReplicaSettings(dns="HTTP://VLLM.svc:80/v1")
    assert (dns.url, dns.dns, dns.place) == ("", "http://vllm.svc", "http://vllm.svc")
    assert (dns.host, dns.address, dns.port, dns.base) == ("vllm.svc", "", 80, "/v1")
    assert ReplicaSettings(file="/etc/replicas").place == "file /etc/replicas"
    one = ReplicaSettings(url="http://[fd00::7]:8000", server_name="vllm.svc")
    assert (one.host, one.address, one.place) == ("vllm.svc", "fd00::7", "http://[fd00::7]:8000")
    ways: dict[str, Any] = {"url": "http://a", "dns": "http://b", "file": "c"}
    for given in ((), ("url", "dns"), ("url", "file"), ("dns", "file")):
        with pytest.raises(ValueError, match="wanted one of url, dns and file; given"):
            ReplicaSettings(**{name: ways[name] for name in given})
    with pytest.raises(ValueError, match="dns wants a name"):
        ReplicaSettings(dns="http://10.0.0.7:8000")


def test_secrets_are_in_no_representation() -> None:
    replica = ReplicaSettings(url="http://h", api_key="sk-1")
    config = Config(secret="sk-2", redis="redis://:sk-3@h", backends=(replica,))
    console = Console(file=io.StringIO(), width=10_000)
    console.print(config)
    assert isinstance(console.file, io.StringIO)
    for text in (repr(config), str(config), repr(replica), console.file.getvalue()):
        assert "sk-" not in text
        assert "***" in text
    assert "secret=None" in repr(Config())

"""What a request asks of a replica: its tokens by estimate, and whose turn of what it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from backends.base import Demand, Replica
from backends.policies.prefix_affinity import PrefixAffinity
from gateway import exchange
from gateway.terms import Size
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving
from tests.gateway.desk import SIZE, Desk

CHAT, COUNT = "/v1/chat/completions", "/v1/messages/count_tokens"


@pytest.mark.parametrize("rule", ["{}", "{tokens_per_minute: 10000}", "{requests_per_minute: 9}"])
async def test_a_demand_is_estimated_whatever_the_rules_are(rule: str) -> None:
    desk = Desk(key=rule)
    assert (await desk.admit()).demand == Demand("search", 100, 50)
    unlimited = await desk.admit(Size(text_bytes=400, tokens=30))
    assert unlimited.demand == Demand("search", 130, 512)
    assert (await desk.admit(SIZE, tokens=False)).demand == Demand("search")


class Watched(PrefixAffinity):
    """Mutable state: the demands of which it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.demands: list[Demand] = []

    def pick(self, replicas: Sequence[Replica], demand: Demand, now: float) -> Replica:
        self.demands.append(demand)
        return super().pick(replicas, demand, now)


async def say(gateway: Serving, words: Sequence[str], path: str = CHAT, model: str = "tiny") -> int:
    """The status of a conversation's turn."""
    roles = ("user", "assistant")
    said = [{"role": roles[at % 2], "content": each} for at, each in enumerate(words)]
    body: dict[str, Any] = {"model": model, "max_tokens": 5, "messages": said}
    if path == COUNT:
        del body["max_tokens"]
    return (await request(gateway.port, "POST", path, HEADERS, json.dumps(body).encode())).status


def watch(gateway: Serving, model: str = "tiny") -> Watched:
    watched = Watched()
    gateway.worker.composition.routes.table[model].pool.policy = watched
    return watched


async def test_the_turns_of_a_conversation_go_to_one_replica() -> None:
    async with Engine() as one, Engine() as two, Engine() as three:
        text = configured(one.url, two.url, three.url, model="policy: prefix_affinity")
        async with serving(text) as gateway:
            for number in range(12):
                before = [len(engine.requests) for engine in (one, two, three)]
                words = [f"This is conversation {number}."]
                for _ in range(4):
                    assert await say(gateway, words) == 200
                    words += ["Yes?", "Go on."]
                after = [len(engine.requests) for engine in (one, two, three)]
                assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 0, 4]
            assert all(after), "conversations are spread"


async def test_a_pool_is_told_whose_work_it_is_and_how_much() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        watched = watch(gateway)
        assert await say(gateway, ["Hi"]) == 200
        assert await say(gateway, ["Hi"], COUNT) == 200
    asked, counted = watched.demands
    assert (asked.flow, asked.output_tokens, len(asked.affinity)) == ("search", 5, 16)
    assert 5 <= asked.prompt_tokens <= 20
    assert counted == Demand("search")


@pytest.mark.parametrize("policy", ["least_busy", "round_robin"])
async def test_who_does_not_choose_by_conversation_does_not_pay_for_it(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "affinity", None)
    async with Engine() as engine:
        text = configured(engine.url, model=f"policy: {policy}")
        async with serving(text) as gateway:
            assert await say(gateway, ["Hi"]) == 200


async def test_a_pool_that_takes_over_keeps_conversations_where_it_wants_to() -> None:
    async with Engine() as engine:
        other = f"b: {{replicas: ['{engine.url}'], upstream_model: tiny, policy: prefix_affinity"
        text = configured("http://127.0.0.1:9", model=f"fallback: [b]}}, {other}")
        async with serving(text) as gateway:
            (away,) = gateway.worker.composition.routes.table["tiny"].pool.replicas
            away.drained = True
            watched = watch(gateway, "b")
            assert await say(gateway, ["Hi"]) == 200
    assert [len(demand.affinity) for demand in watched.demands] == [16]

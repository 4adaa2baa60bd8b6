"""What workers tell each other of the engines by way of their supervisor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends.connection import Limits
from backends.kinds import KINDS
from backends.quarantine import Quarantine
from gateway.board import Board
from gateway.settings import ReplicaSettings
from gateway.start import packed
from gateway.watch import Watch, added, alone
from tests.backends.sinks import replica
from tests.fakes.engine import Engine
from tests.fakes.gateway import until


class Line:
    """The way to a worker. Mutable state: what it was `told`, by name the newest last."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def tell(self, name: str, payload: Any = None) -> None:
        self.told.append((name, payload))

    def heard(self, name: str) -> list[Any]:
        return [payload for of, payload in self.told if of == name]


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    made = Watch()
    running = asyncio.get_running_loop().create_task(made.run())
    yield made
    running.cancel()
    await asyncio.wait([running])


def test_what_several_have_under_way_is_added_up() -> None:
    one, other = {"a": (1, 100), "b": (2, 20)}, {"b": (3, 30)}
    assert added([one, other]) == {"a": (1, 100), "b": (5, 50)}
    assert added([]) == {}


async def test_each_worker_hears_what_the_others_have_under_way(watch: Watch) -> None:
    one, other, idle = Line(), Line(), Line()
    for line in (one, other, idle):
        watch.joined(line)
    watch.work(one, {"a": (1, 100)})
    watch.work(other, {"a": (2, 50), "b": (1, 1)})
    await until(lambda: bool(idle.heard("elsewhere")))
    assert idle.heard("elsewhere")[-1] == {"a": (3, 150), "b": (1, 1)}
    assert one.heard("elsewhere")[-1] == {"a": (2, 50), "b": (1, 1)}
    assert other.heard("elsewhere")[-1] == {"a": (1, 100)}


async def test_what_a_worker_had_goes_with_it(watch: Watch) -> None:
    one, other = Line(), Line()
    watch.joined(one)
    watch.joined(other)
    watch.work(one, {"a": (1, 100)})
    await until(lambda: other.heard("elsewhere")[-1:] == [{"a": (1, 100)}])
    watch.left(one)
    await until(lambda: other.heard("elsewhere")[-1:] == [{}])
    before = len(one.told)
    watch.work(other, {"a": (1, 1)})
    watch.blamed(other, ["f", "a"])
    assert len(one.told) == before


async def test_a_death_is_passed_on_to_the_others_and_to_those_who_come_later(watch: Watch) -> None:
    one, other, late = Line(), Line(), Line()
    watch.joined(one)
    watch.joined(other)
    watch.blamed(one, ["f00", "http://a"])
    assert (one.heard("blamed"), other.heard("blamed")) == ([], [["f00", "http://a"]])
    watch.joined(late)
    assert late.heard("blamed") == [["f00", "http://a"]]


async def test_what_is_drained_is_told_to_those_who_come_later(watch: Watch) -> None:
    watch.drained.add("http://a")
    late = Line()
    watch.joined(late)
    assert late.heard("drained") == [["http://a"]]


async def test_every_worker_hears_what_one_round_of_probes_saw(watch: Watch) -> None:
    async with Engine() as engine:
        engine.vllm.metrics["vllm:num_requests_waiting"] = 3
        one, other = Line(), Line()
        watch.joined(one)
        watch.joined(other)
        settings = ReplicaSettings(url=engine.url)
        for line in (one, other):
            watch.replicas(line, packed([(settings, "vllm")]))
            await until(lambda line=line: any(line.heard("verdicts")), 10)  # type: ignore[misc]
        (verdict,) = next(filter(None, one.heard("verdicts")))
        assert (verdict["url"], verdict["known"], verdict["waiting"]) == (engine.url, True, 3)
        late = Line()
        watch.joined(late)
        assert late.heard("verdicts")[-1][0]["url"] == engine.url
        assert len(engine.requests) <= 4, "probed for each worker"


async def test_a_server_is_probed_while_any_worker_uses_it(watch: Watch) -> None:
    async with Engine() as engine, Engine() as newer:
        one, other = Line(), Line()
        watch.joined(one)
        watch.joined(other)
        both = [(ReplicaSettings(url=each.url), "vllm") for each in (engine, newer)]
        watch.replicas(one, packed(both))
        # Another worker, whose resolver does not know of the second one.
        watch.replicas(other, packed(both[:1]))
        await until(lambda: bool(newer.requests), 10)
        seen = len(newer.requests)
        await until(lambda: len(newer.requests) > seen, 10)
        # Whoever knew it is gone: it is not probed any more; the last worker's servers are.
        watch.left(one)
        watch.left(other)
        seen = len(engine.requests)
        await until(lambda: len(engine.requests) >= seen + 2, 10)
        seen = len(newer.requests)
        await asyncio.sleep(1.2)
        assert len(newer.requests) == seen


@pytest.mark.parametrize("connect", [1.0, 2.5])
async def test_what_requests_have_the_time_to_connect_to_is_not_told_to_be_gone(
    connect: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    connects = loop.create_connection

    async def far(*args: Any, **given: Any) -> Any:
        await asyncio.sleep(1.2)
        return await connects(*args, **given)

    async with Engine() as engine:
        at = replica(engine.port)
        monkeypatch.setattr(loop, "create_connection", far)
        board = Board(lambda: [at], Quarantine(b"s", time.monotonic), time.monotonic)
        limits = Limits(connect=connect)
        probing = loop.create_task(
            alone(board, lambda: [(at, KINDS["vllm"])], lambda host: (host,), lambda: limits)
        )
        await until(lambda: at.load is not None or bool(at.health.down), 10)
        assert bool(at.health.down) == (connect < 1.2)
        probing.cancel()
        await asyncio.wait([probing])


async def test_a_gateway_of_one_process_probes_by_itself() -> None:
    async with Engine() as engine:
        engine.vllm.metrics["vllm:kv_cache_usage_perc"] = 0.5
        at = replica(engine.port)
        board = Board(lambda: [at], Quarantine(b"s", time.monotonic), time.monotonic)
        probing = asyncio.get_running_loop().create_task(
            alone(board, lambda: [(at, KINDS["vllm"])], lambda host: (host,))
        )
        await until(lambda: at.load is not None, 10)
        assert at.load is not None
        assert at.load.kv == 0.5
        probing.cancel()
        await asyncio.wait([probing])
        await engine.until_closed()

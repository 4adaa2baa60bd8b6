"""What probes see of servers over real connections, and what is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from backends.base import Kind, Replica
from backends.health import Standing
from backends.kinds import KINDS
from backends.probes import Prober, Verdict, apply
from backends.transport import Transport
from tests.backends.sinks import replica
from tests.fakes.engine import Engine
from tests.fakes.gateway import until
from tests.fakes.script import Hang, Received, Step, plain

VLLM, OPENAI = KINDS["vllm"], KINDS["openai"]


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport()
    yield made
    await made.close()


def hanging(request: Received) -> list[Step]:
    """Whatever is asked, nothing is answered."""
    return [Hang()]


class Probing:
    """A prober at work. Mutable state: the `verdicts` it told, by URL the newest last."""

    def __init__(self, transport: Transport, *servers: tuple[Replica, Kind]) -> None:
        self.verdicts: list[Verdict] = []
        self.prober = Prober(self._told, transport, every=0.02)
        self.prober.watch(servers)
        self._task: asyncio.Task[None] | None = None

    def _told(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts += verdicts

    async def __aenter__(self) -> Probing:
        self._task = asyncio.get_running_loop().create_task(self.prober.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def told(self, fact: Callable[[Verdict], bool], at: Replica) -> Verdict:
        """The newest verdict of a server, once it is so."""

        def newest() -> Verdict | None:
            return next((v for v in reversed(self.verdicts) if v.url == at.url), None)

        await until(lambda: (v := newest()) is not None and fact(v), 10)
        verdict = newest()
        assert verdict is not None
        return verdict


async def test_the_engines_own_figures_are_told(transport: Transport) -> None:
    async with Engine() as engine:
        engine.vllm.metrics |= {
            "vllm:num_requests_waiting": 4,
            "vllm:kv_cache_usage_perc": 0.5,
        }
        at = replica(engine.port)
        async with Probing(transport, (at, VLLM)) as probing:
            verdict = await probing.told(lambda v: v.known, at)
    assert (verdict.reachable, verdict.waiting, verdict.kv) == (True, 4, 0.5)
    assert (verdict.stuck, verdict.silent) == ("", "")
    assert not any(request.path == "/health" for request in engine.requests)


async def test_a_server_that_is_gone_is_told_and_so_is_its_return(transport: Transport) -> None:
    async with Engine() as engine:
        at = replica(engine.port)
        async with Probing(transport, (at, VLLM)) as probing:
            await probing.told(lambda v: v.reachable and v.known, at)
            await engine.stop()
            verdict = await probing.told(lambda v: not v.reachable, at)
            assert not verdict.known
            engine.start()
            await probing.told(lambda v: v.reachable and v.known, at)


async def test_a_deadlocked_engine_is_told(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.progress.PATIENCE", 0.2)
    async with Engine() as engine:
        engine.vllm.metrics["vllm:iteration_tokens_total_count"] = 7
        at = replica(engine.port)
        async with Probing(transport, (at, VLLM)) as probing:
            await probing.told(lambda v: v.known and not v.stuck, at)
            engine.vllm.metrics["vllm:num_requests_running"] = 2
            verdict = await probing.told(lambda v: bool(v.stuck), at)
            assert "2 requests running" in verdict.stuck
            engine.vllm.metrics["vllm:iteration_tokens_total_count"] += 1
            await probing.told(lambda v: not v.stuck, at)


async def test_a_server_that_takes_connections_and_says_nothing_is_told(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.progress.PATIENCE", 0.2)
    monkeypatch.setattr("backends.probes._WITHIN", 0.05)
    async with Engine(hanging) as engine:
        at = replica(engine.port)
        async with Probing(transport, (at, VLLM)) as probing:
            verdict = await probing.told(lambda v: bool(v.silent), at)
            assert (verdict.reachable, verdict.stuck) == (True, "")
            engine.script = None
            await probing.told(lambda v: v.known and not v.silent, at)


@pytest.mark.parametrize("kind", [VLLM, OPENAI], ids=["vllm", "openai"])
async def test_a_server_without_figures_is_reachable_and_nothing_else(
    transport: Transport, kind: Kind
) -> None:
    def nothing(request: Received) -> list[Step]:
        return plain(404, b"{}")

    async with Engine(nothing) as engine:
        at = replica(engine.port)
        async with Probing(transport, (at, kind)) as probing:
            verdict = await probing.told(lambda v: v.reachable, at)
            assert verdict == Verdict(at.url)
            assert engine.requests[0].path == (kind.figures or "/v1/models")


async def test_what_is_not_watched_any_more_is_not_asked_any_more(transport: Transport) -> None:
    async with Engine() as one, Engine() as other:
        servers = [(replica(engine.port), VLLM) for engine in (one, other)]
        async with Probing(transport, *servers) as probing:
            for at, _ in servers:
                await probing.told(lambda v: v.known, at)
            probing.prober.watch(servers[:1])
            asked = len(other.requests)
            seen = len(one.requests)
            await until(lambda: len(one.requests) > seen + 3)
            assert len(other.requests) <= asked + 1


async def test_an_end_in_the_middle_of_a_question_leaves_nothing(transport: Transport) -> None:
    async with Engine(hanging) as engine:
        async with Probing(transport, (replica(engine.port), VLLM)):
            await engine.until(lambda: len(engine.requests) == 1)
        await engine.until_closed()
    assert transport.open_connections == 0


async def test_one_that_does_not_answer_keeps_nobody_else_waiting(transport: Transport) -> None:
    async with Engine(hanging) as slow, Engine() as quick:
        servers = [(replica(slow.port), VLLM), (replica(quick.port), VLLM)]
        async with Probing(transport, *servers) as probing:
            await quick.until(lambda: len(quick.requests) > 5)
            assert len(slow.requests) == 1
            await probing.told(lambda v: v.known, servers[1][0])


# What is made of a verdict


@pytest.mark.parametrize(
    ("verdict", "heard", "down"),
    [
        (Verdict("x"), None, ""),
        (Verdict("x", reachable=False), None, "no connection can be made"),
        (Verdict("x", reachable=False), 99.0, "no connection can be made"),
        (Verdict("x", stuck="no step"), 99.0, "no step"),
        (Verdict("x", silent="no answer"), 99.0, ""),
        (Verdict("x", silent="no answer"), 90.0, "no answer"),
        (Verdict("x", silent="no answer"), None, "no answer"),
    ],
)
def test_silence_is_believed_only_of_a_server_that_talks_to_nobody(
    verdict: Verdict, heard: float | None, down: str
) -> None:
    at = replica(1)
    assert apply(verdict, at, 100.0, heard) is bool(down)
    assert at.health.down == down
    assert at.health.standing(100.0) is (Standing.EJECTED if down else Standing.UP)
    assert apply(verdict, at, 101.0, heard) is False  # it is known by now


def test_figures_that_are_not_known_leave_the_last_ones_to_grow_old() -> None:
    at = replica(1)
    apply(Verdict("x", known=True, running=2, waiting=1, kv=0.5), at, 100.0, None)
    apply(Verdict("x", reachable=False), at, 101.0, None)
    load = at.fresh(101.0)
    assert load is not None
    assert (load.running, load.waiting, load.kv) == (2, 1, 0.5)
    assert at.fresh(103.5) is None

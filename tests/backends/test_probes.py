"""What probes see of servers over real connections, and what is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec
import pytest

from backends.base import Kind, Replica
from backends.errors import BackendError, BadAnswer, ConnectFailed, UpstreamTimeout
from backends.health import Standing
from backends.kinds import KINDS
from backends.probes import Prober, Verdict, apply
from backends.transport import Transport
from tests.backends.sinks import replica
from tests.fakes.engine import Engine
from tests.fakes.gateway import until
from tests.fakes.script import Fin, Hang, Received, Rst, Step, plain, stream

VLLM, OPENAI = KINDS["vllm"], KINDS["openai"]
STEPS = "vllm:iteration_tokens_total_count"
RUNNING = "vllm:num_requests_running"


class Probing:
    """A prober at work. Mutable state: the `rounds` it told of."""

    def __init__(self, transport: Transport, *servers: tuple[Replica, Kind]) -> None:
        self.rounds: list[list[Verdict]] = []
        self.prober = Prober(self._told, transport, every=0.02, draw=lambda: 0.0)
        self.prober.watch(servers)
        self._task: asyncio.Task[None] | None = None

    def _told(self, verdicts: Sequence[Verdict]) -> None:
        # Over the wire and back, as it goes to a worker.
        self.rounds.append(msgspec.json.decode(msgspec.json.encode(verdicts), type=list[Verdict]))

    async def __aenter__(self) -> Probing:
        self._task = asyncio.get_running_loop().create_task(self.prober.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def of(self, at: Replica) -> list[Verdict]:
        return [verdict for told in self.rounds for verdict in told if verdict.url == at.url]

    async def told(self, fact: Callable[[Verdict], bool], at: Replica) -> Verdict:
        """The next verdict of a server that is so."""
        seen = len(self.of(at))

        def found() -> Verdict | None:
            return next((verdict for verdict in self.of(at)[seen:] if fact(verdict)), None)

        await until(lambda: found() is not None, 10)
        verdict = found()
        assert verdict is not None
        return verdict


def everything(*steps: Step) -> Callable[[Received], Iterable[Step]]:
    """A script that answers whatever is asked with these steps."""
    return lambda request: list(steps)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine has stopped after a quarter of a second."""
    monkeypatch.setattr("backends.progress.PATIENCE", 0.25)


# What is seen


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


async def test_only_the_page_with_the_figures_is_asked_and_its_connection_kept(
    transport: Transport,
) -> None:
    async with Engine() as engine:
        async with Probing(transport, (replica(engine.port), VLLM)):
            await engine.until(lambda: len(engine.requests) > 10)
        assert {(request.method, request.path) for request in engine.requests} == {
            ("GET", "/metrics")
        }
        assert engine.connections == 1


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


async def test_a_deadlocked_engine_is_told_until_it_goes_on(
    transport: Transport, soon: None
) -> None:
    async with Engine() as engine:
        engine.vllm.metrics[STEPS] = 7
        at = replica(engine.port)
        async with Probing(transport, (at, VLLM)) as probing:
            await probing.told(lambda v: v.known and not v.stuck, at)
            engine.vllm.metrics[RUNNING] = 2
            verdict = await probing.told(lambda v: bool(v.stuck), at)
            assert (verdict.reachable, verdict.silent, verdict.running) == (True, "", 2)
            engine.vllm.metrics[STEPS] += 1
            await probing.told(lambda v: v.known and not v.stuck, at)


@pytest.mark.parametrize("kind", [VLLM, OPENAI], ids=["vllm", "openai"])
@pytest.mark.parametrize(
    "steps",
    [[Hang()], [Rst()], [Fin()], [*stream([b"vllm:"], end=False), Hang()]],
    ids=["nothing", "reset", "closed", "half an answer"],
)
async def test_a_server_that_takes_connections_and_does_not_answer_is_told(
    transport: Transport,
    soon: None,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    steps: list[Step],
) -> None:
    monkeypatch.setattr("backends.probes.WITHIN", 0.05)
    async with Engine(everything(*steps)) as engine:
        at = replica(engine.port)
        async with Probing(transport, (at, kind)) as probing:
            verdict = await probing.told(lambda v: bool(v.silent), at)
            assert (verdict.reachable, verdict.stuck, verdict.known) == (True, "", False)
            engine.script = None
            await probing.told(lambda v: not v.silent, at)


@pytest.mark.parametrize("status", [200, 401, 404, 500, 503])
@pytest.mark.parametrize("kind", [VLLM, OPENAI], ids=["vllm", "openai"])
async def test_a_server_without_figures_is_reachable_and_nothing_else(
    transport: Transport, soon: None, kind: Kind, status: int
) -> None:
    async with Engine(everything(*plain(status, b"{}"))) as engine:
        at = replica(engine.port)
        async with Probing(transport, (at, kind)) as probing:
            await until(lambda: len(probing.rounds) > 20, 10)
            assert set(probing.of(at)) == {Verdict(at.url)}
        assert {request.path for request in engine.requests} == {kind.figures or "/v1/models"}


async def test_a_server_that_answers_in_another_tongue_is_not_silent(soon: None) -> None:
    loop = asyncio.get_running_loop()
    at, began = replica(1), loop.time()
    async with Probing(Scripted(GARBAGE), (at, VLLM)) as probing:
        await until(lambda: loop.time() - began > 0.5)
    assert set(probing.of(at)) == {Verdict(at.url)}


async def test_figures_in_an_error_are_none(transport: Transport) -> None:
    def failing(request: Received) -> list[Step]:
        return plain(500, b"".join(b"%b 1\n" % n.encode() for n in engine.vllm.metrics))

    async with Engine(failing) as engine:
        at = replica(engine.port)
        async with Probing(transport, (at, VLLM)) as probing:
            await until(lambda: len(probing.rounds) > 3)
        assert not any(verdict.known for verdict in probing.of(at))


async def test_a_server_without_figures_is_asked_each_tenth_round(transport: Transport) -> None:
    async with Engine() as engine:
        at = replica(engine.port)
        async with Probing(transport, (at, OPENAI)) as probing:
            await until(lambda: len(probing.of(at)) >= 25, 10)
            assert 2 < len(engine.requests) < 6
            await engine.stop()
            await probing.told(lambda v: not v.reachable, at)
            engine.start()
            seen = len(probing.rounds)
            await probing.told(lambda v: v.reachable, at)
            assert len(probing.rounds) - seen < 10, "one that is gone is asked each round"


# In which order


class Scripted(Transport):
    """A transport whose answers are given, one a question, the last one for ever.

    Mutable state: the answers that are left; how many questions are `open`, and the `most`.
    """

    def __init__(self, *answers: BackendError | bytes | asyncio.Event) -> None:
        super().__init__()
        self.answers = list(answers)
        self.open = self.most = 0

    async def fetch(
        self, replica: Replica, request: bytes, *, limit: int, timeout: float
    ) -> tuple[int, bytes]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if isinstance(answer, asyncio.Event):
                await answer.wait()
                raise UpstreamTimeout("no answer")
            if isinstance(answer, BackendError):
                raise answer
            return 200, answer
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.open -= 1


PAGE = b"""\
vllm:num_requests_running 2
vllm:num_requests_waiting 1
vllm:kv_cache_usage_perc 0.5
vllm:iteration_tokens_total_count 7
"""
REFUSED, SILENT, GARBAGE = ConnectFailed("refused"), UpstreamTimeout("late"), BadAnswer("what?")


async def test_one_refused_connection_is_an_accident_and_two_in_a_row_are_not() -> None:
    answers = (PAGE, REFUSED, PAGE, REFUSED, SILENT, REFUSED, GARBAGE, REFUSED, REFUSED, PAGE)
    at = replica(1)
    async with Probing(Scripted(*answers), (at, VLLM)) as probing:
        await until(lambda: len(probing.rounds) >= len(answers))
    reachable = [verdict.reachable for verdict in probing.of(at)[: len(answers)]]
    assert reachable == [True] * 8 + [False, True]


async def test_one_that_is_gone_is_back_when_it_answers_and_not_before() -> None:
    answers = (REFUSED, REFUSED, SILENT, SILENT, REFUSED, PAGE)
    at = replica(1)
    async with Probing(Scripted(*answers), (at, VLLM)) as probing:
        await until(lambda: len(probing.rounds) >= len(answers))
    reachable = [verdict.reachable for verdict in probing.of(at)[: len(answers)]]
    assert reachable == [True, False, False, False, False, True]


async def test_figures_are_told_once_so_that_they_do_not_look_newer_than_they_are() -> None:
    answers = (PAGE, SILENT, PAGE, REFUSED, GARBAGE, asyncio.Event())
    at = replica(1)
    async with Probing(Scripted(*answers), (at, VLLM)) as probing:
        await until(lambda: len(probing.rounds) >= len(answers) + 2)
    known = [verdict.known for verdict in probing.of(at)]
    assert known[: len(answers)] == [True, False, True, False, False, False]
    assert not any(known[len(answers) :])
    assert [v.running for v in probing.of(at) if v.known] == [2, 2]


async def test_what_is_answered_at_once_is_told_at_once() -> None:
    told = asyncio.Event()
    prober = Prober(lambda verdicts: told.set(), Scripted(PAGE), every=60.0, draw=lambda: 0.0)
    prober.watch([(replica(1), VLLM)])
    task = asyncio.get_running_loop().create_task(prober.run())
    await asyncio.wait_for(told.wait(), 10)
    task.cancel()
    await asyncio.wait([task])


async def test_all_are_told_of_together_and_one_that_never_answered_is_not_yet() -> None:
    async with Engine() as one, Engine() as other, Engine(everything(Hang())) as slow:
        at = [replica(engine.port) for engine in (one, other, slow)]
        transport = Transport()
        async with Probing(transport, *((each, VLLM) for each in at)) as probing:
            await until(lambda: min(len(one.requests), len(other.requests)) > 5)
            assert len(slow.requests) == 1, "never two questions at once"
        await transport.close()
    told = [[verdict.url for verdict in each] for each in probing.rounds]
    both = [at[0].url, at[1].url]
    assert told[told.index(both) :] == [both] * (len(told) - told.index(both))
    assert at[2].url not in {url for each in told for url in each}


async def test_questions_under_way_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.probes._AT_ONCE", 3)
    free = asyncio.Event()
    scripted = Scripted(free)
    servers = [(replica(port), VLLM) for port in range(1, 9)]
    async with Probing(scripted, *servers) as probing:
        await until(lambda: scripted.open == 3)
        free.set()
        await until(lambda: len(probing.rounds) > 1 and len(probing.rounds[-1]) == 8)
    assert scripted.most == 3


async def test_the_first_question_comes_at_a_time_of_its_own() -> None:
    asked: list[float] = []

    def draw() -> float:
        asked.append(loop.time())
        return 3.0

    loop = asyncio.get_running_loop()
    prober = Prober(lambda told: None, scripted := Scripted(PAGE), every=0.1, draw=draw)
    prober.watch([(replica(1), VLLM)])
    task = loop.create_task(prober.run())
    await until(lambda: scripted.most > 0)
    assert loop.time() - asked[0] >= 0.3
    task.cancel()
    await asyncio.wait([task])


# Who is watched


async def test_what_is_not_watched_any_more_is_not_asked_any_more(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.probes.WITHIN", 60.0)
    async with Engine() as one, Engine(everything(Hang())) as other:
        servers = [(replica(engine.port), VLLM) for engine in (one, other)]
        async with Probing(transport, *servers) as probing:
            await other.until(lambda: len(other.requests) == 1)
            probing.prober.watch(servers[:1])
            await other.until_closed()
            seen = len(probing.rounds)
            await until(lambda: len(probing.rounds) > seen + 3)
        assert len(other.requests) == 1
        assert not probing.of(servers[1][0])


async def test_what_was_seen_of_a_url_that_stays_is_kept(soon: None) -> None:
    at = replica(1)
    async with Probing(Scripted(PAGE), (at, VLLM)) as probing:
        await probing.told(lambda v: bool(v.stuck), at)
        told = len(probing.of(at))
        probing.prober.watch([(replica(2), VLLM), (replica(1), VLLM)])
        await until(lambda: len(probing.of(at)) > told + 2)
        assert all(verdict.stuck for verdict in probing.of(at)[told:])
        probing.prober.watch([])
        told = len(probing.of(at))
        probing.prober.watch([(at, VLLM)])
        await until(lambda: len(probing.of(at)) > told)
        assert not probing.of(at)[told].stuck, "gone and come again, it is another one"


async def test_a_replica_in_the_place_of_another_is_asked_on_its_own_terms(
    transport: Transport,
) -> None:
    async with Engine() as engine:
        async with Probing(transport, (replica(engine.port), VLLM)) as probing:
            await engine.until(lambda: len(engine.requests) > 1)
            another = replica(engine.port)
            another.credential = "sk-new"
            probing.prober.watch([(another, VLLM)])
            await engine.until(
                lambda: engine.requests[-1].headers.get("authorization") == "Bearer sk-new"
            )
            probing.prober.watch([(another, OPENAI)])
            await engine.until(lambda: engine.requests[-1].path == "/v1/models")


# The end


async def test_an_end_in_the_middle_of_a_question_leaves_nothing(transport: Transport) -> None:
    before = asyncio.all_tasks()
    async with Engine(everything(Hang())) as engine:
        async with Probing(transport, (replica(engine.port), VLLM)):
            await engine.until(lambda: len(engine.requests) == 1)
        assert transport.open_connections == 0
        await engine.until_closed()
    assert asyncio.all_tasks() == before


async def test_the_end_waits_for_the_end_of_its_questions() -> None:
    scripted = Scripted(asyncio.Event())
    async with Probing(scripted, (replica(1), VLLM), (replica(2), VLLM)):
        await until(lambda: scripted.open == 2)
    assert scripted.open == 0


async def test_an_end_right_after_a_server_was_dropped_leaves_nothing(transport: Transport) -> None:
    before = asyncio.all_tasks()
    async with Engine(everything(Hang())) as engine:
        async with Probing(transport, (replica(engine.port), VLLM)) as probing:
            await engine.until(lambda: len(engine.requests) == 1)
            probing.prober.watch([])
        assert transport.open_connections == 0
        await engine.until_closed()
    assert asyncio.all_tasks() == before


# What is made of a verdict


@pytest.mark.parametrize(
    ("verdict", "heard", "down"),
    [
        (Verdict("x"), None, ""),
        (Verdict("x", reachable=False), None, "no connection can be made"),
        (Verdict("x", reachable=False), 99.0, "no connection can be made"),
        (Verdict("x", reachable=False, stuck="no step"), 99.0, "no connection can be made"),
        (Verdict("x", stuck="no step"), 99.0, "no step"),
        (Verdict("x", silent="no answer"), 99.0, ""),
        (Verdict("x", silent="no answer"), 90.1, ""),
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
    assert apply(verdict, at, 101.0, None if heard is None else heard + 1) is False  # known by now
    assert apply(Verdict("x"), at, 102.0, heard) is False
    assert at.health.down == ""


def test_figures_that_are_not_known_leave_the_last_ones_to_grow_old() -> None:
    at = replica(1)
    apply(Verdict("x", known=True, running=2, waiting=1, kv=0.5), at, 100.0, None)
    apply(Verdict("x", reachable=False), at, 101.0, None)
    load = at.fresh(101.0)
    assert load is not None
    assert (load.at, load.running, load.waiting, load.kv) == (100.0, 2, 1, 0.5)
    assert at.fresh(103.5) is None

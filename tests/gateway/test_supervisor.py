"""Several workers are one gateway: counted together, replaced, ended; with real processes."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway import config as configuration
from gateway import hired
from gateway import supervisor as supervising
from gateway.listeners import CannotStart
from gateway.supervisor import Supervisor
from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, SECRET, configured, until
from tests.fakes.lifetime import Lifetime
from tests.fakes.script import Hang, Script, stream

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
STREAM = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
EVENT = b'data: {"model":"tiny","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = (
    'fairgate_requests_total{endpoint="/v1/chat/completions",model="tiny",pool="tiny",status="200",'
)


def alive(pid: int) -> bool:
    """Whether it still runs: not gone, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Life(Lifetime):
    """A supervisor in this loop whose serving ends when the test says so."""

    def __init__(self, supervisor: Supervisor) -> None:
        super().__init__(supervisor, patience=20)
        self.supervisor = supervisor

    @property
    def admin_port(self) -> int:
        assert self.supervisor.admin_address is not None
        return int(self.supervisor.admin_address.rpartition(":")[2])

    @property
    def pids(self) -> list[int]:
        return [hired.pid for hired in self.supervisor.workers]

    @property
    def whole(self) -> bool:
        """Whether every place has a worker that is ready."""
        workers = self.supervisor.workers
        wanted = self.supervisor.config.workers
        return len(workers) == wanted and all(w.ready.is_set() for w in workers)

    async def requests(self) -> int:
        """How many requests `/metrics` counts."""
        text = (await request(self.admin_port, "GET", "/metrics")).body.decode()
        return sum(int(float(line.split()[-1])) for line in text.splitlines() if DONE in line)

    async def status(self) -> Any:
        return (await request(self.admin_port, "GET", "/status")).json()


def written(url: str, listen: str = "127.0.0.1:0", more: str = "", workers: int = 2) -> str:
    text = configured(url, timeouts="{lame_duck: 0, drain: 300ms}")
    text = text.replace("listen: 127.0.0.1:0", f"listen: {listen}", 1)
    return f"{text}secret: sixteen-letters-\nworkers: {workers}\n{more}"


@contextlib.asynccontextmanager
async def living(script: Script | None = None, **more: Any) -> AsyncIterator[Life]:
    async with Engine(script) as engine:
        config = configuration.load("test.yaml", written(engine.url, **more), {})
        life = Life(Supervisor(config, SECRET))
        try:
            await life.started()
            yield life
        finally:
            await life.ended()
            assert life.pids == []


async def streams_on_both(life: Life, clients: contextlib.AsyncExitStack) -> list[int]:
    """Open streams until each worker has one; how many each has, by its place."""
    for _ in range(200):
        client = await clients.enter_async_context(await Client.open(life.port))
        await client.post(CHAT, STREAM, HEADERS)
        await client.read_head()
        live = [worker["live_requests"] for worker in (await life.status())["workers"]]
        if all(live):
            return live
    raise AssertionError(f"one worker took everything: {live}")


# As one


async def test_workers_are_told_one_by_one_and_together() -> None:
    async with living([*stream([EVENT], end=False), Hang()]) as life:
        async with contextlib.AsyncExitStack() as clients:
            live = await streams_on_both(life, clients)
            told = await life.status()
            assert told["ready"] is True
            assert told["live_requests"] == sum(live)
            (replica,) = told["pools"]["tiny"]["replicas"]
            assert replica["in_flight"] == told["pools"]["tiny"]["held"] == sum(live)
            assert told["models"] == {"tiny": "tiny"}
            assert [worker["pid"] for worker in told["workers"]] == life.pids
            for worker in told["workers"]:
                assert (worker["ready"], worker["restarts"]) == (True, 0)
                assert 0 <= time.time() - worker["since"] < 60
            text = (await request(life.admin_port, "GET", "/metrics")).body.decode()
            url = replica["url"]
            assert f'fairgate_in_flight{{model="tiny",replica="{url}"}} {sum(live)}.0' in text
            assert "fairgate_worker_restarts_total 0.0" in text


async def test_a_worker_that_does_not_answer_keeps_its_counts_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hired, "_FRESH_WITHIN", 0.1)
    async with living() as life:
        for _ in range(20):
            assert (await request(life.port, "POST", CHAT, HEADERS, BODY)).status == 200
        assert await life.requests() == 20
        stopped = life.pids[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            assert await life.requests() == 20
            told = await life.status()
            assert [w["live_requests"] for w in told["workers"]] == [None, 0]
            assert [w["ready"] for w in told["workers"]] == [False, True]
            assert told["ready"] is True
        finally:
            os.kill(stopped, signal.SIGCONT)


@pytest.mark.slow
async def test_a_unix_socket_is_shared_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with living(listen=f"['127.0.0.1:0', 'unix:{path}']") as life:
        os.kill(life.pids[0], signal.SIGKILL)
        for _ in range(5):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            assert b" 200 " in await reader.readline()
            writer.close()
        await until(lambda: life.whole)
        assert path.exists()
    assert not path.exists()


# Who dies is replaced


async def killed(life: Life, place: int = 0) -> None:
    before = life.pids
    os.kill(before[place], signal.SIGKILL)
    await until(lambda: life.whole and before[place] not in life.pids, 10)


async def test_one_that_dies_is_replaced_at_once_and_one_that_goes_on_dying_later_and_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "_DELAYS", (0.0, 0.1, 0.2))
    async with living(workers=1) as life:
        for _ in range(4):
            await killed(life)
        told = await life.status()
        assert [worker["restarts"] for worker in told["workers"]] == [4]
        text = (await request(life.admin_port, "GET", "/metrics")).body.decode()
        assert "fairgate_worker_restarts_total 4.0" in text
    said = re.findall(r"was ended by SIGKILL after .* s; the next one starts (.*)", caplog.text)
    assert said == ["now", "in 0.1 s", "in 0.2 s", "in 0.2 s"]


@pytest.mark.slow
async def test_one_that_lived_for_a_while_is_replaced_at_once_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "_SOON", 0.0)
    async with living() as life:
        await killed(life)
        await killed(life)
    assert caplog.text.count("the next one starts now") == 2


async def test_between_a_death_and_the_next_life_only_the_last_worker_makes_it_unready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervising, "_DELAYS", (60.0,))
    async with living() as life:
        for left, status in ((1, 200), (0, 503)):
            os.kill(life.pids[0], signal.SIGKILL)
            await until(lambda left=left: len(life.pids) == left)  # type: ignore[misc]
            assert (await request(life.admin_port, "GET", "/readyz")).status == status
            assert (await request(life.admin_port, "GET", "/healthz")).status == 200
        assert (await life.status())["workers"] == []


# The start


async def test_it_is_ready_only_while_it_serves() -> None:
    async with Engine() as engine:
        supervisor = Supervisor(configuration.load("t", written(engine.url), {}), SECRET)
        seen = [supervisor.ready]
        async with supervisor.serving():
            seen.append(supervisor.ready)
            supervisor.stop()
            seen.append(supervisor.ready)
        seen.append(supervisor.ready)
    assert seen == [False, True, False, False]


async def test_probing_that_ends_by_a_fault_is_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        raise RuntimeError("a value")

    async with Engine() as engine:
        supervisor = Supervisor(configuration.load("t", written(engine.url), {}), SECRET)
        monkeypatch.setattr(supervisor.watch, "run", fails)
        async with supervisor.serving():
            assert "a task of the process failed: RuntimeError at " in caplog.text
            assert "a value" not in caplog.text


async def test_a_taken_port_starts_no_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"cannot listen on 127\.0\.0\.1:{port}: "):
            async with living(listen=f"127.0.0.1:{port}"):
                pass


async def test_why_a_worker_cannot_start_is_told_and_none_is_left(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("no certificate\n")
    more = f"tls: {{cert_file: {file}, key_file: {file}}}\n"
    reason = r"^worker \d+ could not start: tls: the certificate or its key: "
    with pytest.raises(CannotStart, match=reason):
        async with living(more=more):
            pass


async def test_a_worker_that_does_not_become_ready_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervising, "_READY_WITHIN", 0.01)
    with pytest.raises(CannotStart, match="could not start: it was not ready within"):
        async with living():
            pass


async def test_without_a_program_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CannotStart, match="could not be started: No such file or directory"):
        async with living():
            pass


# The end


@pytest.mark.slow
async def test_a_worker_that_hangs_is_killed_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervising, "_FAREWELL", 0.2)
    async with living() as life:
        pids = life.pids
        os.kill(pids[0], signal.SIGSTOP)
        await life.ended()
        assert not any(map(alive, pids))
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_told_while_a_worker_is_being_started_it_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hire, begun, go = Supervisor.hire, asyncio.Event(), asyncio.Event()
    async with living() as life:
        pids = life.pids

        async def slowly(supervisor: Supervisor) -> hired.Hired:
            late = await hire(supervisor)
            pids.append(late.pid)
            begun.set()
            await go.wait()
            return late

        monkeypatch.setattr(Supervisor, "hire", slowly)
        os.kill(pids[0], signal.SIGKILL)
        await asyncio.wait_for(begun.wait(), 5)
        since = time.monotonic()
        ending = asyncio.create_task(life.ended())
        await until(lambda: not alive(pids[1]))
        go.set()
        await ending
        assert time.monotonic() - since < supervising._FAREWELL - 1, "it was not told, but hurried"
        assert len(pids) == 3
        assert not any(map(alive, pids))


# Limits


class Answering:
    """A worker that answers every question alike. Mutable state: `asked`, what it was."""

    def __init__(self, answer: Any) -> None:
        self.asked: list[tuple[str, Any]] = []
        self._answer = answer

    async def ask(self, name: str, payload: Any, within: float) -> Any:
        self.asked.append((name, payload))
        return self._answer


def over(*workers: Any) -> Supervisor:
    config = configuration.load("test.yaml", written("http://gpu1:8000"), {})
    made = Supervisor(config, SECRET)
    made.places = [cast(supervising.Place, SimpleNamespace(hired=worker)) for worker in workers]
    return made


async def test_limits_are_told_by_the_first_worker_that_answers() -> None:
    hangs, answers, other = Answering(None), Answering([200, {"rules": []}]), Answering([200, {}])
    assert await over(None, hangs, answers, other).limits("ann", None) == (200, {"rules": []})
    assert hangs.asked == answers.asked == [("limits", {"key": "ann", "team": None})]
    assert other.asked == []


async def test_a_reset_is_told_to_every_worker_and_fails_where_it_failed_for_one() -> None:
    fine, away, gone = Answering([200, {"reset": []}]), Answering([503, {"error": "x"}]), None
    assert await over(fine, away, gone).reset_limits(None, "search") == (503, {"error": "x"})
    assert fine.asked == away.asked == [("reset_limits", {"key": None, "team": "search"})]
    assert await over(fine, fine).reset_limits(None, None) == (200, {"reset": []})


async def test_without_a_worker_that_answers_that_is_said() -> None:
    for made in (over(), over(None, Answering(None))):
        for told in (await made.limits(None, None), await made.reset_limits(None, None)):
            assert told == (503, {"error": "no worker answers; ask again"})

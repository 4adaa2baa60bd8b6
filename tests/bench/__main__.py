"""`python -m tests.bench`: the gateway and its peers under the same load, in turn, on one core."""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import running
from tests.bench.peers import HERE, PEERS

SATURATED = 0.9  # of the core that stand-in and generator share: above it, they are the limit


@dataclass(frozen=True)
class Measure:
    """One load. `per` is what the CPU time is divided by: requests or events."""

    name: str
    requests: int
    options: tuple[str, ...]
    per: str = "requests"
    pace: int = 0  # microseconds between the events of a stream


MEASURES = (
    Measure("plain", 20000, ("--connections", "64")),
    Measure("plain 8 KB", 10000, ("--connections", "64", "--prompt-bytes", "8192")),
    Measure("plain 400 KB", 500, ("--connections", "16", "--prompt-bytes", "400000")),
    Measure("paced", 500, ("--connections", "500", "--stream"), per="events", pace=20000),
    Measure("flood", 4000, ("--connections", "64", "--stream"), per="events"),
    Measure("first event", 2000, ("--connections", "500", "--stream", "--events", "10"), "events"),
)
Figures = dict[str, float]
Rounds = dict[str, dict[str, list[Figures]]]  # measure, then peer, then one entry a round


@contextlib.contextmanager
def peak_memory(pid: int | None) -> Iterator[list[float]]:
    """A list with the largest memory of the tree seen, in MB."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while pid is not None and not stop.is_set():
            peak[0] = max(peak[0], running.memory(pid))
            stop.wait(0.3)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


class Bench:
    """Built programs, a stand-in, the peers. All mutable state: `rounds`, `warnings`."""

    def __init__(self, folder: Path, upstreams: list[int], rate: float, quick: bool) -> None:
        self.folder, self.upstreams, self.rate, self.quick = folder, upstreams, rate, quick
        self.rounds: Rounds = {}
        self.warnings: set[str] = set()
        self.proxy_core, self.load_core = running.cores()

    def load(self, peer: running.Running, requests: int, options: tuple[str, ...]) -> Figures:
        arguments = ["--port", str(peer.peer.port), "--model", peer.peer.model]
        for header in peer.peer.headers:
            arguments += ["--header", header]
        arguments += ["--loose"] if peer.peer.loose else []
        arguments += ["--requests", str(requests), "--seconds", "60", *options]
        return running.load(self.folder, self.load_core, arguments)

    def measure(self, peer: running.Running, measure: Measure) -> None:
        name = f"{measure.name}, {peer.peer.name}"
        requests = max(20, round(measure.requests * peer.peer.share / (5 if self.quick else 1)))
        if measure.pace:
            requests = measure.requests  # as many streams at once, whatever else
        options = measure.options
        if measure.name == "first event":
            options += ("--rate", str(self.rate))
        running.fetch(self.upstreams[0], f"/pace/{measure.pace}")
        self.load(peer, 50, ("--connections", "10"))
        busy, ticks = running.core_busy(self.load_core)
        before = running.cpu(peer.pid) if peer.pid is not None else 0.0
        with peak_memory(peer.pid if measure.pace else None) as peak:
            result = self.load(peer, requests, options)
        spent = running.cpu(peer.pid) - before if peer.pid is not None else 0.0
        busy_after, ticks_after = running.core_busy(self.load_core)
        running.fetch(self.upstreams[0], "/pace/0")
        if result["errors"]:
            self.warnings.add(f"{name}: FAILED, {result['errors']} errors: {result['first_error']}")
        if (busy_after - busy) > SATURATED * (ticks_after - ticks):
            self.warnings.add(f"{name}: the core of stand-in and generator was saturated")
        done = result[measure.per]
        if done:
            result["cpu_us"] = spent / done * 1e6
        result["peak_mb"] = peak[0]
        self.rounds.setdefault(measure.name, {}).setdefault(peer.peer.name, []).append(result)


def columns(measure: Measure) -> list[tuple[str, str]]:
    """The figures worth a line: a field of the result and how it is called."""
    cpu = ("cpu_us", f"CPU us per {measure.per[:-1]}")
    if measure.name == "first event":
        return [("first_us_p50", "first event p50 us"), ("first_us_p99", "first event p99 us")]
    if measure.pace:
        return [cpu, ("peak_mb", "peak memory MB")]
    return [cpu, (f"{measure.per}_per_s", f"{measure.per}/s")]


def table(rounds: Rounds, base: str) -> Iterator[str]:
    """Medians, spread, and the median of the ratios to `base` within a round."""
    yield f"{'measure':<34} {'peer':<10} {'median':>10} {'min':>10} {'max':>10} {'/ ' + base:>9}"
    for measure in MEASURES:
        for field, title in columns(measure):
            peers = rounds.get(measure.name, {})
            for peer, results in peers.items():
                # A round with an error is a failure, never a slow or fast figure.
                clean = {n: r for n, r in enumerate(results) if not r["errors"]}
                good = {n: r[field] for n, r in clean.items() if r.get(field)}
                label = f"{measure.name}: {title}"
                if not good:
                    yield f"{label:<34} {peer:<10} {'-' if clean else 'failed':>10}"
                    continue
                ratios = [
                    value / peers[base][n][field]
                    for n, value in good.items()
                    if base in peers and not peers[base][n]["errors"] and peers[base][n].get(field)
                ]
                ratio = f"{statistics.median(ratios):9.2f}" if ratios else f"{'-':>9}"
                low, high = min(good.values()), max(good.values())
                median = statistics.median(good.values())
                yield f"{label:<34} {peer:<10} {median:10.1f} {low:10.1f} {high:10.1f} {ratio}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, a fifth of the requests")
    parser.add_argument("--peers", default=",".join(PEERS), help="which, and in which order")
    parser.add_argument("--only", help="measures whose name starts with this")
    parser.add_argument("--against", default="nginx", help="the peer the ratios are to")
    parser.add_argument("--config", type=Path, default=HERE / "full.yaml", help="for the gateway")
    parser.add_argument("--rate", type=float, default=1000, help="streams/s for the first event")
    parser.add_argument("--json", type=Path, help="every figure of every round")
    given = parser.parse_args()
    if unknown := set(given.peers.split(",")) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    return given


def started(
    stack: contextlib.ExitStack, bench: Bench, folder: Path, given: argparse.Namespace
) -> list[running.Running]:
    """Every peer that exists here, ready."""
    peers: list[running.Running] = []
    for name in given.peers.split(","):
        peer = PEERS[name](folder, bench.upstreams, given.config)
        if peer is None:
            print(f"{name}: not found here, left out")
            continue
        one = running.Running(peer, bench.proxy_core, bench.load_core)
        stack.callback(one.close)
        one.wait_ready()
        peers.append(one)
    return peers


def main(report: Callable[[str], None] = print) -> int:
    given = arguments()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        running.build(folder)
        proxy_core, load_core = running.cores()
        if proxy_core == load_core:
            report("only one core: proxy, stand-in and generator share it")
        os.sched_setaffinity(0, load_core)
        _, ports = stack.enter_context(running.standin(folder, load_core))
        bench = Bench(folder, ports, given.rate, given.quick)
        peers = started(stack, bench, folder, given)
        for _ in range(1 if given.quick else given.rounds):
            for measure in MEASURES:
                if measure.name.startswith(given.only or ""):
                    for peer in peers:
                        bench.measure(peer, measure)
        if given.json:
            given.json.write_text(json.dumps(bench.rounds, indent=1))
        for line in (*table(bench.rounds, given.against), *sorted(bench.warnings)):
            report(line)
    return 1 if any("FAILED" in line for line in bench.warnings) else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m tests.bench`: the gateway and its peers under the same load, in turn, on one core."""

import argparse
import contextlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench import bars, curve, running, table
from tests.bench.driver import Driver, driver
from tests.bench.measures import Measure, chosen
from tests.bench.peers import PEERS

CURVE_PEERS = "direct,nginx,vllm-router,fairgate"
#: The first of them that was measured is what ratios are to.
BASES = ("vllm-router", "nginx", "fairgate", "direct")

#: What a peer cannot do is told; what one of these cannot is an error.
OURS = ("direct", "unlimited", "fairgate", "redis", "two")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, one turn, fewer requests")
    parser.add_argument("--peers", help="which, and in which order (all that are found)")
    parser.add_argument("--only", help="measures whose name starts with one of these, as a,b")
    parser.add_argument("--against", help="the peer the ratios are to (vllm-router, else nginx)")
    parser.add_argument("--config", type=Path, default=running.HERE / "full.yaml", help="gateway's")
    parser.add_argument("--rate", type=float, help="a second, of open loops without pacing")
    parser.add_argument("--json", type=Path, help="every figure of every round")
    parser.add_argument(
        "--curve",
        type=Path,
        nargs="?",
        const=running.ROOT / "docs" / "benchmarks-latency.svg",
        help="draw latency against load instead (docs/benchmarks-latency.svg)",
    )
    given = parser.parse_args(argv)
    given.rounds = 1 if given.quick else given.rounds
    given.peers = (given.peers or (CURVE_PEERS if given.curve else ",".join(PEERS))).split(",")
    if unknown := {*given.peers, given.against or "direct"} - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    if given.curve and "fairgate" not in given.peers:
        parser.error("--curve needs fairgate among the peers: the load is a part of its maximum")
    return given


def machine() -> str:
    """What the figures were taken on."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpus if "model name" in line), "?")
    cores = len(os.sched_getaffinity(0))
    python = platform.python_version()
    return f"{cores} cores, {model}, Linux {platform.release()}, Python {python}"


def found(bench: Driver, names: Sequence[str], report: Callable[[str], None]) -> list[str]:
    """Those of `names` that are here; the others are named."""
    here = []
    for name in names:
        peer = PEERS[name](bench.place)
        if peer is None:
            report(f"{name}: not found here, left out")
        else:
            here.append(name)
            report(f"{name}: {peer.version or 'the stand-in alone'}")
    return here


def rounds(
    bench: Driver, names: Sequence[str], measures: Sequence[Measure], given: argparse.Namespace
) -> None:
    """All of it; each round starts every peer anew, as two starts of one differ by some percent."""
    rates = dict.fromkeys(measure.rate for measure in measures if measure.rate)
    if rates:
        with bench.peers(["fairgate"]) as ready:
            for one in ready:
                bench.calibrate(one, rates, given.rate)
    for number in range(given.rounds):
        began = time.monotonic()
        with bench.peers(names) as peers:
            for measure in measures:
                if measure.once and number:
                    continue
                for turn in range(1 if given.quick else measure.turns):
                    for one in peers:
                        # A slow peer differs by more than the machine does: once is enough.
                        if measure.takes(one.peer) and (one.peer.share == 1 or not turn):
                            bench.take(one, measure, number)
        took = time.monotonic() - began
        print(f"round {number + 1} of {given.rounds}: {took:.0f} s", file=sys.stderr, flush=True)


def results(bench: Driver, given: argparse.Namespace) -> Iterator[str]:
    """The table, the bars, and how far they can be trusted."""
    seen = table.with_added(bench.rounds)
    measured = {peer for peers in seen.values() for peer in peers}
    base = given.against or next((name for name in BASES if name in measured), "direct")
    yield ""
    yield from table.table(seen, base)
    yield ""
    yield from bars.report(seen)
    yield ""
    if bench.rates:
        told = ", ".join(f"{rate:,.0f} {what}/s" for what, rate in bench.rates.items())
        yield f"open loops ran at {told}"
    yield from table.checked(seen)
    for (name, what), why in bench.failed.items():
        yield f"FAILED: {name}, {what}: {why}"


def draw(bench: Driver, names: Sequence[str], given: argparse.Namespace) -> str:
    with bench.peers(names) as peers:
        given.curve.write_text(curve.picture(*curve.taken(bench, peers, given.rounds)))
    return f"drawn: {given.curve}"


def main(argv: Sequence[str], report: Callable[[str], None] = print) -> int:
    given = arguments(argv)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # what is started inherits it
    report(f"{machine()}\npython -m tests.bench {' '.join(argv)}")
    proxy_core, load_core = running.cores()
    if proxy_core == load_core:
        report("only one core: proxy, stand-in and generator share it")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bench = stack.enter_context(driver(folder, given.config, given.quick))
        os.sched_setaffinity(0, load_core)
        names = found(bench, given.peers, report)
        if given.curve:
            report(draw(bench, names, given))
            return 0
        rounds(bench, names, chosen(given.only, given.quick), given)
        for line in results(bench, given):
            report(line)
        if given.json:
            given.json.write_text(json.dumps(bench.rounds, indent=1))
    return 1 if any(name in OURS for name, _ in bench.failed) else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The bars: what the gateway must cost at most beside others, and what it aims at."""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.bench.measures import Rounds
from tests.bench.table import ratios, values

ROOM = 1.15  # what the worst round may be beyond the bar


@dataclass(frozen=True)
class Bar:
    """One promise. Without `base` it is about the figure itself, else about the ratio."""

    title: str
    measure: str
    field: str
    must: float
    aim: float
    peer: str = "fairgate"
    base: str = "vllm-router"
    least: bool = False  # the more the better


BARS = (
    Bar("CPU per request, limits in memory, 1 KB", "plain", "cpu_us", 1.5, 1.0),
    Bar("the same, 8 KB", "plain 8 KB", "cpu_us", 1.5, 1.0),
    Bar("CPU per request, limits in Redis, 1 KB", "plain", "cpu_us", 1.9, 1.25, "redis"),
    Bar("the same, 8 KB", "plain 8 KB", "cpu_us", 1.9, 1.25, "redis"),
    Bar("CPU per paced event", "paced", "cpu_us", 1.25, 0.9),
    Bar("events/s per core without pacing", "flood", "per_core", 1.5, 3.0, least=True),
    Bar("requests/s per core", "plain", "per_core", 60, 100, base="litellm", least=True),
    Bar("added to the first event, p50", "first event", "added_us_p50", 1.2, 1.0),
    Bar("added to the first event, p99", "first event", "added_us_p99", 2.0, 1.0),
    Bar("the same in a rush, p50", "first event of a rush", "added_us_p50", 1.2, 1.0),
    Bar("the same in a rush, p99", "first event of a rush", "added_us_p99", 2.0, 1.0),
    Bar("KB per open stream, 500 of them", "paced", "stream_kb", 30, 15, base=""),
    Bar("KB per open stream, 5,000 of them", "many", "stream_kb", 30, 15, base=""),
    Bar("5,000 open streams, how many broke", "many", "errors", 0, 0, base=""),
    Bar("CPU of two workers to that of one", "rated", "cpu_us", 1.15, 1.05, "two", "redis"),
    Bar("CPU of a 400 KB prompt", "plain 400 KB", "cpu_us", 1.5, 1.0),
)


def holds(seen: Iterable[float], bound: float, least: bool = False) -> bool:
    """Whether the median of the rounds keeps to `bound`, and the worst within a little of it."""
    rounds = list(seen)
    if least:
        return statistics.median(rounds) >= bound and min(rounds) >= bound / ROOM
    return statistics.median(rounds) <= bound and max(rounds) <= bound * ROOM


def judged(bar: Bar, rounds: Rounds) -> str:
    """What is to be said of one bar: its figures and whether it holds, or why not measured."""
    peers = rounds.get(bar.measure, {})
    missing = [name for name in (bar.peer, bar.base) if name and name not in peers]
    if missing:
        return f"not measured: {missing[0]} absent" if peers else "not measured"
    results = peers[bar.peer]
    if bar.field == "errors":
        seen = {number: figures["errors"] for number, figures in results.items()}
    elif failed := [number for number, figures in results.items() if figures["errors"]]:
        return f"does not hold: {bar.peer} failed in {len(failed)} of {len(results)} rounds"
    elif bar.base:
        seen = ratios(peers, bar.peer, bar.base, bar.field)
    else:
        seen = values(results, bar.field)
    if not seen:
        return f"not measured: no round in which {bar.base or bar.peer} has the figure"
    worst = min(seen.values()) if bar.least else max(seen.values())
    says = [
        f"{name} {'holds' if holds(seen.values(), bound, bar.least) else 'does NOT hold'}"
        for name, bound in (("must", bar.must), ("aim", bar.aim))
    ]
    told = f"{statistics.median(seen.values()):.2f}, worst {worst:.2f}"
    return f"{told}: {', '.join(says)}"


def report(rounds: Rounds) -> Iterator[str]:
    """A line for each bar, in Markdown."""
    yield "| bar | against | must | aim | seen |"
    yield "|---|---|--:|--:|---|"
    for bar in BARS:
        sign = ">=" if bar.least else "<="
        cells = (f"{sign} {bar.must:g}", f"{sign} {bar.aim:g}", judged(bar, rounds))
        yield f"| {bar.title:<37} | {bar.base or '-':<11} | " + " | ".join(cells) + " |"

"""Latency against load: the first event at a tenth to nine tenths of the gateway's maximum."""

import statistics
from collections.abc import Mapping

from tests.bench.drawing import Lines, drawn
from tests.bench.driver import Driver
from tests.bench.measures import MAXIMA, MEASURES, Figures
from tests.bench.running import Running
from tests.bench.table import values

LOADS = tuple(tenth / 10 for tenth in range(1, 10))
ENDS = ("p50", "p99")
#: Load, then peer, then round.
Points = dict[float, dict[str, dict[int, Figures]]]


def taken(driver: Driver, peers: list[Running], rounds: int) -> tuple[float, Points]:
    """The gateway's maximum of short streams a second, and every load with every peer, in turn."""
    measure = next(each for each in MEASURES if each.rate == "short streams")
    gateway = next(one for one in peers if one.peer.name == "fairgate")
    most = driver.maximum(gateway, MAXIMA["short streams"])
    points: Points = {}
    for number in range(rounds):
        for load in LOADS:
            for one in peers:
                figures = driver.measure(one, measure, {measure.rate: load * most})
                points.setdefault(load, {}).setdefault(one.peer.name, {})[number] = figures
    return most, points


def lines(points: Points, end: str) -> Lines:
    """The medians of the rounds without an error; a load that a peer failed at is left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for load, peers in points.items():
        for peer, results in peers.items():
            if good := values(results, f"first_us_{end}"):
                found.setdefault(peer, []).append((load, statistics.median(good.values())))
    return found


def picture(most: float, points: Points) -> str:
    """As an SVG."""
    panels: Mapping[str, Lines] = {
        f"time to the first event, {end}": lines(points, end) for end in ENDS
    }
    return drawn(
        panels, f"load; 100 % are {most:,.0f} streams/s, the gateway's maximum on one core"
    )

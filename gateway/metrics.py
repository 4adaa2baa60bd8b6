"""What is counted, in plain integers, and its form for Prometheus.

A request adds to a few numbers found by one look-up; labels are made when they are asked for.
Label values come from the configuration or from discovery, at most 256 of a kind: anything else
is `other`, so that no caller can grow the series.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import add
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from backends.base import Replica
from backends.errors import BackendError
from backends.pool import Pool
from gateway.terms import Record

OTHER = "other"
MOST_VALUES = 256
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Histogram:
    """Mutable state: how many observations fell in each bucket, and their sum in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds


class Tally:
    """What was counted of requests alike in every label. Mutable state: all of it; the histograms
    are those of its endpoint, model and pool, which it shares.
    """

    __slots__ = ("cached", "completion", "first_event", "prompt", "requests", "seconds")

    def __init__(self, seconds: Histogram, first_event: Histogram) -> None:
        self.requests = 0
        self.prompt = 0
        self.cached = 0
        self.completion = 0
        self.seconds = seconds
        self.first_event = first_event


class Names(dict[str, str]):
    """The values a label may have, each by itself, and `other` by any other name."""

    def learn(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self) < MOST_VALUES:
                self[name] = name

    def __missing__(self, name: str) -> str:
        return OTHER


class Gauges(Protocol):
    """What is read off the live objects when someone asks."""

    def pools(self) -> Iterable[Pool]: ...


class Metrics:
    """Every count of one process. Mutable state: all of it."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self.models = Names()
        self.teams = Names()
        #: By endpoint, model, pool, team and status.
        self.tallies: dict[tuple[str, str, str, str, int], Tally] = {}
        # By endpoint, model and pool.
        self.seconds: defaultdict[tuple[str, str, str], Histogram] = defaultdict(Histogram)
        self.first_event: defaultdict[tuple[str, str, str], Histogram] = defaultdict(Histogram)
        self.retries: Counter[tuple[str, str]] = Counter()
        self.stream_failures: Counter[tuple[str, str]] = Counter()
        self.limited: Counter[tuple[str, str]] = Counter()
        self.aborts: Counter[str] = Counter()
        self.unknown_fields = 0
        self.log_lines_dropped = 0
        self.loop_lag = 0.0
        self.limits_degraded = False
        self.limits_decided_here = 0
        self.limits_settlements_dropped = 0

    def close(self, record: Record) -> None:
        """Count one finished request."""
        tally = self.tallies.get(
            (record.endpoint, record.model, record.pool, record.team, record.status)
        )
        if tally is None:
            tally = self._tally(record)
        tally.requests += 1
        tally.seconds.observe(record.total_ms / 1000)
        if record.first_event_ms:
            tally.first_event.observe(record.first_event_ms / 1000)
        if record.prompt_tokens:
            tally.prompt += record.prompt_tokens
            tally.cached += record.cached_tokens
        if record.completion_tokens:
            tally.completion += record.completion_tokens
        if record.outcome == "client_gone" and record.attempts:
            self.aborts["streaming" if record.first_event_ms else "waiting"] += 1
        if record.limited_by:
            self.limited[self.teams[record.team or OTHER], record.limited_by] += 1

    def _tally(self, record: Record) -> Tally:
        """Kept under labels alone: a name that is none finds its labels, `other`, each time."""
        model, pool = self.models[record.model or OTHER], self.models[record.pool or OTHER]
        path = record.endpoint, model, pool
        labels = *path, self.teams[record.team or OTHER], record.status
        tally = self.tallies.get(labels)
        if tally is None:
            tally = self.tallies[labels] = Tally(self.seconds[path], self.first_event[path])
        return tally

    # Observer

    def attempt_failed(self, pool: str, replica: Replica, exc: BackendError) -> None:
        self.stream_failures[self.models[pool], exc.reason] += 1

    def retried(self, pool: str, reason: str) -> None:
        self.retries[self.models[pool], reason] += 1

    def counts(self) -> Counts:
        """Everything as plain numbers, the gauges as they are now."""
        labelled: dict[str, Counter[Any]] = {
            "tokens": self._tokens(),
            "retries": self.retries,
            "stream_failures": self.stream_failures,
            "limited": self.limited,
        }
        counts: Counts = {
            name: [(list(map(str, labels)), [n]) for labels, n in kept.items()]
            for name, kept in labelled.items()
        }
        counts["requests"] = [
            (list(map(str, labels)), [tally.requests]) for labels, tally in self.tallies.items()
        ]
        counts["aborts"] = [([phase], [n]) for phase, n in self.aborts.items()]
        for name, histograms in (("seconds", self.seconds), ("first_event", self.first_event)):
            counts[name] = [
                (list(of), [*h.counts, h.sum]) for of, h in histograms.items() if any(h.counts)
            ]
        # Each once: pools of two configurations may share it.
        replicas = {
            (pool.name, id(replica)): ([pool.name, replica.url], replica)
            for pool in list(self._gauges.pools())[:MOST_VALUES]
            for replica in pool.replicas[:MOST_VALUES]
        }.values()
        counts["in_flight"] = [(labels, [replica.in_flight]) for labels, replica in replicas]
        now = time.monotonic()
        counts["up"] = [(labels, [int(r.serves(now))]) for labels, r in replicas]
        counts["unknown_fields"] = [([], [self.unknown_fields])]
        counts["log_lines_dropped"] = [([], [self.log_lines_dropped])]
        counts["loop_lag"] = [([], [self.loop_lag])]
        counts["limits_degraded"] = [([], [int(self.limits_degraded)])]
        counts["limits_decided_here"] = [([], [self.limits_decided_here])]
        counts["limits_settlements_dropped"] = [([], [self.limits_settlements_dropped])]
        return counts

    def _tokens(self) -> Counter[tuple[str, str, str, str]]:
        """Tokens are not told apart by endpoint and status. What was never used is no series."""
        tokens: Counter[tuple[str, str, str, str]] = Counter()
        for (_, model, pool, team, _), tally in self.tallies.items():
            if tally.prompt:
                tokens[model, pool, team, "prompt"] += tally.prompt
                tokens[model, pool, team, "cached"] += tally.cached
            if tally.completion:
                tokens[model, pool, team, "completion"] += tally.completion
        return tokens

    def render(self) -> bytes:
        return render([self.counts()])


# Counts of several processes

#: By the name of its family: labels, and the numbers counted under them. JSON holds them too.
Counts = dict[str, list[tuple[list[str], list[float]]]]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `combine` makes one number of two processes'; `stays` when its process ends."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    kind: Callable[..., Any] = CounterMetricFamily
    combine: Callable[[float, float], float] = add
    stays: bool = True

    def metric(self, series: Series) -> Metric:
        metric: Any = self.kind(self.name, self.text, labels=self.labels)
        for labels, numbers in series.items():
            if self.kind is HistogramMetricFamily:
                bounds = (*map(str, _SECONDS), "+Inf")
                buckets = list(zip(bounds, accumulate(numbers[:-1]), strict=True))
                metric.add_metric(labels, buckets, numbers[-1])
            else:
                metric.add_metric(labels, numbers[0])
        return metric  # type: ignore[no-any-return]


Series = dict[tuple[str, ...], list[float]]
_PATH = ("endpoint", "model", "pool")
_REPLICA = ("model", "replica")
_gauge = partial(Family, kind=GaugeMetricFamily, stays=False)

FAMILIES = {
    "requests": Family("fairgate_requests", "Finished requests.", (*_PATH, "team", "status")),
    "tokens": Family("fairgate_tokens", "Tokens used.", ("model", "pool", "team", "direction")),
    "retries": Family(
        "fairgate_retries", "Attempts made again on another replica.", ("model", "reason")
    ),
    "stream_failures": Family(
        "fairgate_stream_failures",
        "Attempts that failed on the model server's side.",
        ("model", "reason"),
    ),
    "aborts": Family(
        "fairgate_upstream_aborts",
        "Requests ended on the model server because the caller left.",
        ("phase",),
    ),
    "unknown_fields": Family("fairgate_unknown_fields", "Request fields left out."),
    "limited": Family("fairgate_limited", "Requests refused by a limit.", ("team", "rule")),
    "limits_decided_here": Family(
        "fairgate_limits_decided_here", "Requests whose limits were decided without Redis."
    ),
    "limits_settlements_dropped": Family(
        "fairgate_limits_settlements_dropped", "Requests whose use Redis will never hear of."
    ),
    "log_lines_dropped": Family("fairgate_log_lines_dropped", "Log lines lost."),
    "worker_restarts": Family(
        "fairgate_worker_restarts", "Serving processes that ended by themselves."
    ),
    "config_reloads": Family(
        "fairgate_config_reloads", "New configurations read while running.", ("result",)
    ),
    "config_last_reload_successful": _gauge(
        "fairgate_config_last_reload_successful", "0 while the newest one was refused."
    ),
    "seconds": Family(
        "fairgate_request_seconds", "From head to last byte.", _PATH, HistogramMetricFamily
    ),
    "first_event": Family(
        "fairgate_time_to_first_event_seconds",
        "From head to the first event or plain answer.",
        _PATH,
        HistogramMetricFamily,
    ),
    "in_flight": _gauge("fairgate_in_flight", "Requests under way.", _REPLICA),
    "up": _gauge(
        "fairgate_replica_up", "1 unless it is ejected or drained.", _REPLICA, combine=min
    ),
    "limits_degraded": _gauge("fairgate_limits_degraded", "1 while Redis is away.", combine=max),
    "loop_lag": _gauge(
        "fairgate_event_loop_lag_seconds", "How late the event loop last woke.", combine=max
    ),
}


class Sum:
    """The counts of several processes as one's. Mutable state: `series`, by family."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {name: {} for name in FAMILIES}
        for name, family in FAMILIES.items():
            if family.stays and not family.labels:
                self.series[name][()] = [0]

    def add(self, counts: Counts, *, ended: bool = False) -> None:
        """Add a process's. Of one that has `ended` only what it counted goes on, no gauge."""
        for name, told in counts.items():
            family, series = FAMILIES[name], self.series[name]
            if ended and not family.stays:
                continue
            for labels, numbers in told:
                known = series.get(tuple(labels))
                if known is not None:
                    numbers = list(map(family.combine, known, numbers))
                series[tuple(labels)] = numbers

    def counts(self) -> Counts:
        return {
            name: [(list(labels), numbers) for labels, numbers in series.items()]
            for name, series in self.series.items()
        }

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            yield family.metric(self.series[name])


def render(processes: Iterable[Counts]) -> bytes:
    """The text form (https://prometheus.io/docs/instrumenting/exposition_formats/) of the sums."""
    whole = Sum()
    for counts in processes:
        whole.add(counts)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(whole)
    return generate_latest(registry)

"""What is counted, in plain integers, and its form for Prometheus.

A request adds to a few numbers found by one look-up; labels are made when they are asked for.
Label values come from the configuration or from discovery, at most 256 of a kind: anything else
is `other`, so that no caller can grow the series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from backends.base import Replica
from backends.errors import BackendError
from backends.pool import Pool
from gateway.terms import Record

OTHER = "other"
MOST_VALUES = 256
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DIRECTIONS = ("prompt", "cached", "completion")


class Histogram:
    """Mutable state: how many observations fell in each bucket, and their sum in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        total, told = 0, []
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self.counts, strict=True):
            total += count
            told.append((bound, float(total)))
        return told


class Names:
    """The values a label may have. Mutable state: those known so far."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known: set[str] = set()
        self.learn(known)

    def learn(self, names: Iterable[str]) -> None:
        for name in names:
            if len(self._known) < MOST_VALUES:
                self._known.add(name)

    def __getitem__(self, name: str) -> str:
        return name if name in self._known else OTHER


class Gauges(Protocol):
    """What is read off the live objects when someone asks."""

    def pools(self) -> Iterable[Pool]: ...


class Metrics:
    """Every count of one process. Mutable state: all of it."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges
        self.models = Names()
        self.teams = Names()
        self.requests: Counter[tuple[str, str, str, int]] = Counter()
        self.seconds: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.first_event: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.tokens: Counter[tuple[str, str, str]] = Counter()
        self.retries: Counter[tuple[str, str]] = Counter()
        self.stream_failures: Counter[tuple[str, str]] = Counter()
        self.aborts: Counter[str] = Counter()
        self.unknown_fields = 0
        self.log_lines_dropped = 0
        self.loop_lag = 0.0

    def close(self, record: Record, seconds: float) -> None:
        """Count one finished request that took `seconds`."""
        model = self.models[record.model] if record.model else OTHER
        team = self.teams[record.team] if record.team else OTHER
        endpoint = record.endpoint
        self.requests[endpoint, model, team, record.status] += 1
        self.seconds[endpoint, model].observe(seconds)
        if record.first_event:
            self.first_event[endpoint, model].observe(record.first_event - record.began)
        usage = record.usage
        if usage.prompt:
            self.tokens[model, team, "prompt"] += usage.prompt
            self.tokens[model, team, "cached"] += usage.cached
        if usage.completion:
            self.tokens[model, team, "completion"] += usage.completion
        if record.outcome == "client_gone" and record.attempts:
            self.aborts["streaming" if record.first_event else "waiting"] += 1
        self.unknown_fields += record.dropped_fields

    # Observer

    def attempt_failed(self, pool: str, replica: Replica, exc: BackendError) -> None:
        self.stream_failures[self.models[pool], exc.reason] += 1

    def retried(self, pool: str, reason: str) -> None:
        self.retries[self.models[pool], reason] += 1

    def render(self) -> bytes:
        """The text form (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Exposition(self, self._gauges))
        return generate_latest(registry)


class _Exposition(Collector):
    def __init__(self, metrics: Metrics, gauges: Gauges) -> None:
        self._metrics = metrics
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        yield from self._counters()
        yield from self._histograms()
        yield from self._replicas()
        lag = GaugeMetricFamily(
            "fairgate_event_loop_lag_seconds", "How late the event loop last woke."
        )
        lag.add_metric([], self._metrics.loop_lag)
        yield lag

    def _counters(self) -> Iterator[Metric]:
        m = self._metrics
        yield _counter(
            "fairgate_requests",
            "Finished requests.",
            ("endpoint", "model", "team", "status"),
            ((tuple(map(str, key)), value) for key, value in m.requests.items()),
        )
        yield _counter(
            "fairgate_tokens", "Tokens used.", ("model", "team", "direction"), m.tokens.items()
        )
        yield _counter(
            "fairgate_retries",
            "Attempts made again on another replica.",
            ("model", "reason"),
            m.retries.items(),
        )
        yield _counter(
            "fairgate_stream_failures",
            "Attempts that failed on the model server's side.",
            ("model", "reason"),
            m.stream_failures.items(),
        )
        yield _counter(
            "fairgate_upstream_aborts",
            "Requests ended on the model server because the caller left.",
            ("phase",),
            (((phase,), value) for phase, value in m.aborts.items()),
        )
        yield _counter(
            "fairgate_unknown_fields", "Request fields left out.", (), [((), m.unknown_fields)]
        )
        yield _counter(
            "fairgate_log_lines_dropped", "Log lines lost.", (), [((), m.log_lines_dropped)]
        )

    def _histograms(self) -> Iterator[Metric]:
        for name, text, kept in (
            ("fairgate_request_seconds", "From head to last byte.", self._metrics.seconds),
            (
                "fairgate_time_to_first_event_seconds",
                "From head to the first event or plain answer.",
                self._metrics.first_event,
            ),
        ):
            family = HistogramMetricFamily(name, text, labels=("endpoint", "model"))
            for labels, histogram in kept.items():
                family.add_metric(labels, histogram.buckets(), histogram.sum)
            yield family

    def _replicas(self) -> Iterator[Metric]:
        labels = ("model", "replica")
        flying = GaugeMetricFamily("fairgate_in_flight", "Requests under way.", labels=labels)
        up = GaugeMetricFamily(
            "fairgate_replica_up", "1 unless its last attempt failed.", labels=labels
        )
        for pool in list(self._gauges.pools())[:MOST_VALUES]:
            for replica in pool.replicas[:MOST_VALUES]:
                flying.add_metric((pool.name, replica.url), replica.in_flight)
                up.add_metric((pool.name, replica.url), replica.last_error is None)
        yield flying
        yield up


def _counter(
    name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], int]]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for value, count in values:
        family.add_metric(value, count)
    return family

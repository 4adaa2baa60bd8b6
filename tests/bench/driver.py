"""Takes the measures: one peer, one load, all that was spent and seen meanwhile."""

import contextlib
import statistics
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.bench import running
from tests.bench.measures import MAXIMA, Figures, Measure, Rounds
from tests.bench.peers import PEERS, Place

WARM_UP = 50  # requests before each measure
QUICK = 0.4  # of the requests
MEMORY_EVERY = 0.3  # seconds


@contextlib.contextmanager
def peak_memory(pid: int | None) -> Iterator[list[float]]:
    """A list with the largest memory of the tree seen, in MB."""
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while pid is not None and not stop.is_set():
            peak[0] = max(peak[0], running.memory(pid))
            stop.wait(MEMORY_EVERY)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def middle(taken: Sequence[Figures]) -> Figures:
    """The median of each figure, but every error."""
    names = [name for name in taken[0] if name != "first_error"]  # the one that is a text
    figures = {name: statistics.median(each[name] for each in taken) for name in names}
    return figures | {"errors": sum(each["errors"] for each in taken)}


class Driver:
    """Built programs and a stand-in. Mutable state: `rounds`, `failed`, `rates`, `idle`."""

    def __init__(self, place: Place, quick: bool) -> None:
        self.place, self.quick = place, quick
        self.rounds: Rounds = {}
        self.failed: dict[tuple[str, str], str] = {}  # peer and what it failed at: why
        self.rates: dict[str, float] = {}  # half of the gateway's maximum, a second
        self.idle: dict[running.Running, float] = {}  # MB before its first load
        self._taken: dict[tuple[str, str, int], list[Figures]] = {}
        self.proxy_core, self.load_core = running.cores()

    @contextlib.contextmanager
    def peers(self, names: Sequence[str]) -> Iterator[list[running.Running]]:
        """Every peer that is found here and starts, ready; ended afterwards."""
        with contextlib.ExitStack() as stack:
            started: list[running.Running] = []
            for name in names:
                if peer := PEERS[name](self.place):
                    one = running.Running(peer, self.proxy_core, self.load_core)
                    stack.callback(one.close)
                    started.append(one)
            yield [one for one in started if self._is_ready(one)]

    def _is_ready(self, one: running.Running) -> bool:
        try:
            one.wait_ready()
        except running.NotStarted as exc:
            self.failed[one.peer.name, "start"] = str(exc)
            return False
        return True

    def calibrate(self, one: running.Running, names: Iterable[str], told: float | None) -> None:
        """Half of what a core of the gateway takes: the rates of the open loops with these names.

        One that is `told` is not that of paced streams, which stay open for long.
        """
        for name in names:
            measure = MAXIMA[name]
            given = None if measure.pace else told
            self.rates[name] = given or 0.5 * self.maximum(one, measure)

    def maximum(self, one: running.Running, measure: Measure) -> float:
        """How many a second one core would take, by the CPU that each took.

        Not by how fast they came, which says as much about the rest of the machine.
        """
        self._load(one, *measure.load(one.peer, QUICK))
        figures = self.measure(one, measure)
        if figures["errors"]:
            raise SystemExit(f"{one.peer.name}: {measure.name}: {figures['first_error']}")
        return 1e6 / figures["cpu_us"]

    def take(self, one: running.Running, measure: Measure, number: int) -> None:
        """Measures; the figures of round `number` are the medians of all that is taken in it."""
        figures = self.measure(one, measure)
        name = one.peer.name
        if figures["errors"]:
            why = f"{figures['errors']} errors: {figures['first_error']}"
            self.failed[name, measure.name] = why
        taken = self._taken.setdefault((measure.name, name, number), [])
        taken.append(figures)
        self.rounds.setdefault(measure.name, {}).setdefault(name, {})[number] = middle(taken)

    def measure(
        self, one: running.Running, measure: Measure, rates: Mapping[str, float] | None = None
    ) -> Figures:
        requests, options = measure.load(one.peer, QUICK if self.quick else 1.0)
        if measure.rate:
            options += ("--rate", str((rates or self.rates)[measure.rate]))
        upstream = self.place.upstreams[0]
        options += ("--path", measure.path)
        warm_up = max(10, round(WARM_UP * one.peer.share))
        self._load(one, warm_up, ("--connections", "10", "--path", measure.path))
        if measure.streams:
            self._note_idle(one)
        running.fetch(upstream, f"/pace/{measure.pace}")
        busy, ticks = running.core_busy(self.load_core)
        before = running.cpu(one.pid) if one.pid is not None else 0.0
        with peak_memory(one.pid if measure.streams else None) as peak:
            figures = self._load(one, requests, options)
        spent = running.cpu(one.pid) - before if one.pid is not None else 0.0
        busy_after, ticks_after = running.core_busy(self.load_core)
        running.fetch(upstream, "/pace/0")
        figures["busy"] = (busy_after - busy) / max(1.0, ticks_after - ticks)
        if (done := figures[measure.per]) and spent:
            figures |= {"cpu_us": spent / done * 1e6, "per_core": done / spent}
        if peak[0]:
            idle = self.idle[one]
            figures |= {"idle_mb": idle, "peak_mb": peak[0]}
            figures["stream_kb"] = (peak[0] - idle) * 1024 / requests
        return figures

    def _note_idle(self, one: running.Running) -> None:
        """Once for each process: later its memory holds what earlier measures left."""
        if one.pid is not None and one not in self.idle:
            self.idle[one] = running.memory(one.pid)

    def _load(self, one: running.Running, requests: int, options: Sequence[str]) -> Figures:
        arguments = ["--port", str(one.peer.port), "--model", one.peer.model]
        for header in one.peer.headers:
            arguments += ["--header", header]
        arguments += ["--loose"] if one.peer.loose else []
        arguments += ["--requests", str(requests), "--seconds", "60", *options]
        return running.load(self.place.folder, self.load_core, arguments)


@contextlib.contextmanager
def driver(folder: Path, config: Path, quick: bool) -> Iterator[Driver]:
    """One whose programs are built and whose stand-in runs, on the second core."""
    running.build(folder)
    with running.standin(folder, running.cores()[1]) as (_, ports):
        yield Driver(Place(folder, ports, config), quick)

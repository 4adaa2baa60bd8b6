"""Thousands of open streams on one core: each arrives whole, and memory stands still."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bench import running
from tests.faults import pinned
from tests.faults.pinned import Bed

#: Between two events of a stream, in microseconds.
PACE = 1_000_000
#: What one open stream may cost, in KB.
EACH = 30
#: What the allocator may keep for itself between the second minute and the last, in MB.
GROWTH = 4.0
#: Descriptors that are no stream's: the log, listeners, probes, libraries.
SPARE = 200


@dataclass(frozen=True)
class Crowd:
    """So many streams at once, each with an event a second for so many `seconds`."""

    streams: int
    seconds: int
    #: They come over so many seconds.
    arriving: int
    #: The memory of the second of so many parts is compared with that of the last; 0: it is not.
    minutes: int = 0


LONG = int(os.environ.get("FAIRGATE_STREAMS_SECONDS", "600"))


@dataclass
class Course:
    """What the gateway was seen to hold and spend. Mutable state: all of it, while streams run."""

    #: MB before the first stream, and once a second while all of them are open.
    idle: float
    memory: list[float] = field(default_factory=list)
    #: Seconds since the first of those, and the CPU seconds since then.
    seconds: float = 0.0
    cpu: float = 0.0

    def part(self, number: int, parts: int) -> float:
        """The median of one of so many equal parts, the first of them 0."""
        length = max(1, len(self.memory) // parts)
        return statistics.median(self.memory[number * length :][:length])


@contextmanager
def descriptors_for(streams: int) -> Iterator[None]:
    """Each stream is two sockets of the gateway's; what is started meanwhile inherits the limit."""
    wanted = 2 * streams + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{streams} streams need {wanted} open files; the hard limit here is {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def watched(bed: Bed, crowd: Crowd, course: Course, run: Future[dict[str, float]]) -> None:
    """Look once a second, for as long as all streams are open."""
    began = spent = 0.0
    while not run.done():
        count = bed.open_streams()
        if count == crowd.streams:
            now, cpu = time.monotonic(), running.cpu(bed.pid)
            if not course.memory:
                began, spent = now, cpu
            course.memory.append(running.memory(bed.pid))
            course.seconds, course.cpu = now - began, cpu - spent
        elif course.memory:
            break  # the first of them has ended
        time.sleep(1)


@pytest.mark.parametrize(
    "crowd",
    [
        pytest.param(Crowd(1_000, 15, 3), marks=pytest.mark.slow, id="short"),
        pytest.param(Crowd(5_000, LONG, 10, minutes=10), marks=pytest.mark.soak, id="long"),
    ],
)
def test_open_streams_all_arrive_whole_and_memory_stands_still(
    tmp_path: Path, crowd: Crowd
) -> None:
    with descriptors_for(crowd.streams), pinned.serving(tmp_path) as bed:
        bed.load("--stream", "--requests", "200", "--connections", "50")
        bed.pace(PACE)
        course = Course(running.memory(bed.pid))
        with ThreadPoolExecutor(1) as aside:
            run = aside.submit(bed.load, "--stream", *_options(crowd))
            watched(bed, crowd, course, run)
            told = run.result()
    _judge(crowd, told, course)


def _options(crowd: Crowd) -> tuple[str, ...]:
    streams = str(crowd.streams)
    rate = str(crowd.streams / crowd.arriving)
    # The last to come has as many seconds beside all the others as the rest of its own.
    events = str(crowd.seconds + crowd.arriving)
    return ("--requests", streams, "--connections", streams, "--rate", rate, "--events", events)


def _judge(crowd: Crowd, told: dict[str, float], course: Course) -> None:
    events = crowd.streams * (crowd.seconds + crowd.arriving)
    assert told["errors"] == 0, told["first_error"]
    assert (told["requests"], told["events"]) == (crowd.streams, events)
    assert course.memory, "the streams were never open all at once"
    parts = crowd.minutes or 1
    first, last = course.part(min(1, parts - 1), parts), course.part(parts - 1, parts)
    each = (max(first, last) - course.idle) * 1024 / crowd.streams
    relayed = crowd.streams * course.seconds * 1_000_000 / PACE
    print(
        f"{crowd.streams} streams, all open for {course.seconds:.0f} s, {events} events, none "
        f"lost; memory {course.idle:.1f} MB idle, {each:.1f} KB a stream, {first:.1f} MB in the "
        f"second of {parts} parts, {last:.1f} in the last, {max(course.memory):.1f} at most; "
        f"{course.cpu / max(1.0, relayed) * 1e6:.1f} us of CPU an event"
    )
    assert each <= EACH
    if crowd.minutes:
        assert last - first <= GROWTH

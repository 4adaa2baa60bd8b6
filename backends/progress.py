"""Whether an engine gets on with its work, by the figures it publishes.

Pure: the clock comes in. `/health` is not among the figures: vLLM answers it while its engine is
deadlocked, and is late while it works.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Seconds without a step, or without an answer, after which an engine has stopped.
PATIENCE = 10.0
#: So many times the longest pause between two steps that was seen is no normal pause.
_PAUSES = 5
#: A pause that is longer says nothing of the next, and each look forgets a little of the longest.
_LONGEST_PAUSE = 60.0
_KEPT = 0.98

# A histogram's count, one for each step of the engine; the others are gauges.
_STEPS = b"iteration_tokens_total_count"
_FIGURE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|"
    + _STEPS
    + rb")(?:\{[^\n]*\})? ([0-9.eE+-]+)\s*$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests `running` and `waiting`, the share of the KV cache in use, the `steps` so far."""

    running: int
    waiting: int
    kv: float
    steps: int


def read(page: bytes) -> Figures | None:
    """The figures of a page in Prometheus' text form; None where it has not all of them.

    Several engines or models of one server are added up; of the KV caches it is the fullest.
    """
    found: dict[bytes, list[float]] = {}
    for name, number in _FIGURE.findall(page):
        try:
            found.setdefault(name, []).append(float(number))
        except ValueError:
            return None
    try:
        return Figures(
            running=int(sum(found[b"num_requests_running"])),
            waiting=int(sum(found[b"num_requests_waiting"])),
            kv=max(found[b"kv_cache_usage_perc"]),
            steps=int(sum(found[_STEPS])),
        )
    except (KeyError, OverflowError):
        return None


class Progress:
    """Mutable state: `_steps` at the last look and `_since`, when they last grew or nothing ran;
    `_longest`, the longest pause between steps seen while something ran; `_answered`, when the last
    answer came, and `_now`, when it was last looked.
    """

    __slots__ = ("_answered", "_longest", "_now", "_running", "_since", "_steps")

    def __init__(self, now: float) -> None:
        self._steps = -1
        self._running = 0
        self._since = self._answered = self._now = now
        self._longest = 0.0

    def saw(self, now: float, figures: Figures | None) -> None:
        """An answer came; None where it had no figures."""
        self._now = self._answered = now
        self._longest *= _KEPT
        if figures is None:
            self._running = 0
            return
        stepped = figures.steps != self._steps
        if figures.steps < self._steps:
            self._longest = 0.0  # another process: what was seen of the one before is nothing to it
        elif stepped and self._running:
            self._longest = max(self._longest, min(now - self._since, _LONGEST_PAUSE))
        if stepped or not (figures.running and self._running):
            self._since = now
        self._steps, self._running = figures.steps, figures.running

    def silence(self, now: float) -> None:
        """A connection was made and no answer came in time."""
        self._now = now

    @property
    def stuck(self) -> str:
        """Why it makes no progress; empty where it does, or has nothing to do."""
        pause = self._answered - self._since
        if self._running and pause >= max(PATIENCE, _PAUSES * self._longest):
            return f"no step for {pause:.0f} s with {self._running} requests running"
        return ""

    @property
    def silent(self) -> str:
        """Why it may have stopped altogether; a busy server can be this slow."""
        silence = self._now - self._answered
        return f"no answer for {silence:.0f} s" if silence >= PATIENCE else ""

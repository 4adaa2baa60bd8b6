"""Whether an engine gets on with its work, by the figures it publishes.

Pure: the clock comes in. `/health` is not among the figures: vLLM answers it while its engine is
deadlocked, and is late while it works.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Seconds without a step, or without an answer, after which an engine has stopped.
PATIENCE = 10.0
#: So many times the longest pause between two steps that was seen is no normal pause.
_PAUSES = 5
#: A pause that is longer says nothing of the next, and with each step that is seen a little of the
#: longest is forgotten: a quarter in a minute of work, nearly all in ten.
_LONGEST_PAUSE = 60.0
_KEPT = 0.995

_RUNNING = b"\nvllm:num_requests_running"
_WAITING = b"\nvllm:num_requests_waiting"
_KV = b"\nvllm:kv_cache_usage_perc"
# A histogram's count: one for each step of an engine that brought somebody a token.
_STEPS = b"\nvllm:iteration_tokens_total_count"


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
    page = b"\n" + page
    try:
        return Figures(
            running=int(sum(_numbers(page, _RUNNING))),
            waiting=int(sum(_numbers(page, _WAITING))),
            kv=min(1.0, max(_numbers(page, _KV))),
            steps=int(sum(_numbers(page, _STEPS))),
        )
    except (ValueError, IndexError, OverflowError):
        return None


def _numbers(page: bytes, name: bytes) -> list[float]:
    """What the lines of that name say. Raises ValueError or IndexError where they say nothing.

    Searching is far quicker than looking at each line: a page has 100 KB, of which nearly all is of
    no interest, and each engine has a new one each second.
    """
    numbers = []
    at = page.find(name)
    while at >= 0:
        begin = at + len(name)
        end = page.find(b"\n", begin)
        line = page[begin : end if end >= 0 else len(page)]
        if line[:1] in (b"{", b" "):  # else another name begins like this one
            number = float(line.rpartition(b"}")[2].split()[0])
            if not 0 <= number < math.inf:
                raise ValueError("not an amount")
            numbers.append(number)
        at = page.find(name, begin)
    if not numbers:
        raise ValueError(f"no {name!r}")
    return numbers


class Progress:
    """Mutable state: the newest `_figures`, the `_steps` last known, and `_since`, when the figures
    last showed that it works or that nothing runs; `_longest`, the longest pause between steps seen
    while something ran; `_answered`, when the last answer came; `_unanswered`, when the first
    question after it was asked, None where none was; `_now`, when that was last found to be so.
    """

    __slots__ = (*("_answered", "_figures", "_longest", "_now", "_since", "_steps", "_unanswered"),)

    def __init__(self, now: float) -> None:
        self._figures: Figures | None = None
        self._steps = 0
        self._since = self._answered = self._now = now
        self._unanswered: float | None = None
        self._longest = 0.0

    def saw(self, now: float, figures: Figures | None) -> None:
        """An answer came; None where it had no figures."""
        before, self._figures = self._figures, figures
        self._answered = now
        self._unanswered = None
        if figures is None:
            return
        if figures.steps < self._steps:
            self._longest = 0.0  # another process: what was seen of the one before is nothing to it
            before = None
        if before is None or not (before.running and figures.running):
            self._since = now
        elif figures.steps > before.steps or figures.kv != before.kv:
            # The pieces of a long prompt bring nobody a token, but fill the cache.
            pause = min(now - self._since, _LONGEST_PAUSE)
            self._longest = max(self._longest * _KEPT, pause)
            self._since = now
        self._steps = figures.steps

    def silence(self, asked: float, now: float) -> None:
        """The question of `asked` reached it, and no answer came until now."""
        if self._unanswered is None:
            self._unanswered = asked
        self._now = now

    @property
    def stuck(self) -> str:
        """Why it makes no progress; empty where it does, or has nothing to do."""
        if self._figures is None:
            return ""
        pause = self._answered - self._since
        if pause < max(PATIENCE, _PAUSES * self._longest):
            return ""
        return f"no step for {pause:.0f} s, requests running: {self._figures.running}"

    @property
    def silent(self) -> str:
        """Why it may have stopped altogether; a busy server can be this slow."""
        silence = 0.0 if self._unanswered is None else self._now - self._unanswered
        return f"no answer for {silence:.0f} s" if silence >= PATIENCE else ""

"""A relay between a fake caller and flights the test flies itself, on a clock the test moves."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

import orjson
import pytest

from backends.base import Origin, Replica
from backends.errors import BackendError
from gateway.alarms import Alarms
from gateway.endpoints.base import OPENAI
from gateway.errors import from_backend
from gateway.relay import Relay
from gateway.reply import Reply
from gateway.settings import Timeouts
from gateway.wire.answer import Translator
from tests.fakes.caller import FakeCaller
from tests.gateway.endpoints import route

TIMES = Timeouts(
    first_event=100.0, early_commit=30.0, heartbeat=10.0, stall=60.0, client_write=20.0
)
DEADLINE = 590.0
EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"),)
JSON = ((b"content-type", b"application/json"),)
DONE = b"data: [DONE]\n\n"


def words(text: str) -> bytes:
    """An event that says something, in no dialect."""
    return b'data: {"x":' + orjson.dumps(text) + b"}\n\n"


class Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Clock:
    """The event loop's clock, as far as the relay uses the loop."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls = self.made = 0
        self._order = count()
        self._due: list[tuple[float, int, Timer]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        self.made += 1
        heapq.heappush(self._due, (when, next(self._order), timer))
        return timer

    @property
    def armed(self) -> int:
        return sum(timer.call is not None for _, _, timer in self._due)

    def wait(self, seconds: float) -> None:
        """Let so much time pass, every timer on its way called at its moment."""
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            when, _, timer = heapq.heappop(self._due)
            self.now = max(self.now, when)
            if timer.call is not None:
                self.calls += 1
                timer.call()
        self.now = until


class Flight:
    """One scripted call: what the relay did to it."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self.doings: list[str] = []
        self.over = False

    def pause(self) -> None:
        self.doings.append("pause")

    def resume(self) -> None:
        self.doings.append("resume")

    def fail(self, exc: BackendError) -> None:
        if not self.over:
            self.over = True
            self._relay.broken(exc)


class Stage:
    """A relay between a fake caller and flights that the test flies itself."""

    def __init__(
        self,
        clock: Clock,
        translator: Translator,
        *,
        stream: bool,
        speech: Any = OPENAI,
        times: Timeouts = TIMES,
    ) -> None:
        self.clock = clock
        self.caller = FakeCaller()
        self.reply = Reply(self.caller, speech, "req_1")
        self.left = 0
        self.translator = translator
        self.alarms = Alarms()
        self.relay = Relay(
            self.reply,
            translator,
            route(timeouts=times, event_limit=1000, headers=b"x-fairgate-model: tiny\r\n"),
            stream,
            clock.now + DEADLINE,
            self._leave,
            self.alarms,
        )
        self.flight = Flight(self.relay)

    def _leave(self) -> None:
        self.left += 1

    def failed(self) -> BackendError | None:
        return self.relay.failure

    def begun(self) -> bool:
        """Whether the caller has a status."""
        return self.caller.status is not None

    def promised(self) -> bool:
        return self.relay.promised

    @property
    def sent(self) -> bytes:
        return self.caller.body

    def fly(self, headers: Any = EVENTS, status: int = 200) -> None:
        """A new attempt, up to the head of its answer."""
        self.take_off()
        self.relay.head(status, headers)

    def take_off(self) -> None:
        self.flight = Flight(self.relay)
        self.relay.begin(self.flight, Replica("http://h", Origin("h", 80)))
        self.relay.sent()

    def data(self, *pieces: bytes) -> None:
        for piece in pieces:
            assert not self.flight.over
            self.relay.data(piece)

    def end(self) -> None:
        self.flight.over = True
        self.relay.end()

    def tell_failure(self) -> None:
        """What the exchange does with a failure that no other replica can mend."""
        failure = self.relay.failure
        assert failure is not None
        self.reply.refuse(from_backend(failure))


def clock_of(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock in place of the event loop, for a test that has none."""
    clock = Clock()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return clock

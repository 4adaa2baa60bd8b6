"""Step 6: the answer's way back, written from the engine's own callbacks.

Nothing is sent before the first whole event is in hand, or `early_commit` is over; until then
another replica may still be tried and an error still has its status. From there on whole events
leave as they come: one write for what came together, never half an event, so that a heartbeat or
the last words of a broken stream cannot fall inside one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from backends.base import Flight, Headers, Replica
from backends.errors import (
    BackendError,
    BadAnswer,
    ConnectionBroken,
    DeadlinePassed,
    FirstEventTimeout,
    StreamTruncated,
    UpstreamTimeout,
)
from backends.framing import Framer
from gateway.alarms import Alarms
from gateway.reply import Reply, State
from gateway.route import Route
from gateway.wire.answer import Translator

#: A plain answer up to this size is edited as a whole; a larger one is relayed as it comes.
LARGEST_HELD = 1 << 20
_EVENTS, _JSON = b"text/event-stream", b"application/json"
_ERROR_LIMIT = 64 * 1024
_TAIL = 64 * 1024


class ClientStalled(ConnectionBroken):
    """Raised when the caller did not read for `client_write`; the engine is not to blame."""

    reason = "client_stall"
    elsewhere = False
    blames = False


class Relay:
    """The sink of one request, over all its attempts, and the watcher of its caller.

    Mutable state: `failure` and `promised` as a `Sink` has them; `reached`, whether an engine may
    have had the request, in any attempt; the attempt's flight, framer and what is held of its
    answer; `_began`, `heard` and `_spoke`, when it began, when the engine and when we last said
    something;
    `_paused_at`, since when the caller does not read; `_alarm`, the one timer of the request.
    """

    def __init__(
        self,
        reply: Reply,
        translator: Translator,
        route: Route,
        stream: bool,
        deadline: float,
        leave: Callable[[], None],
        alarms: Alarms,
    ) -> None:
        self._loop = alarms.loop
        self._reply = reply
        self._translator = translator
        self._kind = route.pool.kind
        self._stream = stream
        self._timeouts = route.timeouts
        self._extra = route.headers
        self._event_limit = route.event_limit
        self._leave = leave
        self._deadline = deadline
        self._accepted = self._loop.time()
        self._alarms = alarms
        self._alarm = alarms.take()
        self._paused_at = 0.0
        self._spoke = 0.0
        self.first_event = 0.0
        self.reached = False
        # Of one attempt
        self.failure: BackendError | None = None
        self.promised = False
        self._flight: Flight | None = None
        self._framer: Framer | None = None
        self._take: Callable[[bytes], None] = _ignore
        self._status = 0
        self._held: list[bytes] = []
        self._size = 0
        self._began = 0.0
        self.heard = 0.0

    def close(self) -> None:
        """Let go of everything, of itself too: what refers to itself waits for the collector."""
        self._alarms.give(self._alarm)
        self._take = _ignore
        self._flight = None

    # Sink

    def begin(self, flight: Flight, replica: Replica) -> None:
        if self.failure is not None:
            self.failure = None
            self._translator.restart()
        self._flight = flight
        if self._paused_at:
            flight.pause()
        self._held = []
        self._size = 0
        self._status = 0
        self._began = self.heard = self._loop.time()
        if not self._alarm.is_set:
            self._alarm.set(self._soonest(), self._tick)

    def sent(self) -> None:
        self.reached = True
        self._reply.prepare()
        if self._stream:
            self._framer = self._kind.framer(self._event_limit)

    def head(self, status: int, headers: Headers) -> None:
        self._status = status
        self.heard = self._loop.time()
        if status >= 300:
            self._take = self._take_error
            return
        media = b""
        for name, value in headers:
            if name == b"content-type":
                media = value
                break
        wanted = _EVENTS if self._stream else _JSON
        if status != 200 or not (media.startswith(wanted) or media.lower().startswith(wanted)):
            self._take = _ignore
            self._fail(BadAnswer(f"{status} with {media[:64].lower().decode('latin-1')!r}"))
        elif self._stream:
            self._take = self._take_events
        else:
            self._take = self._take_plain

    def data(self, piece: bytes) -> None:
        self.heard = self._loop.time()
        self._take(piece)

    def end(self) -> None:
        if self._status >= 300:
            self.failure = self._kind.read_error(self._status, b"".join(self._held))
        elif self._stream:
            self._end_stream()
        elif self._size <= LARGEST_HELD:
            self._end_whole()
        else:
            self._reply.end(self._translator.closing(b"".join(self._held)))

    def broken(self, exc: BackendError) -> None:
        if self._reply.state is not State.ENDED:  # what follows the last event harms nobody
            self.failure = exc

    # Watcher

    def gone(self) -> None:
        self._leave()

    def pause(self) -> None:
        self._paused_at = self._loop.time()
        if self._flight is not None:
            self._flight.pause()
            self._arm(self._paused_at)

    def resume(self) -> None:
        self._paused_at = 0.0
        self.heard = self._loop.time()
        if self._flight is not None:
            self._flight.resume()
            self._arm(self.heard)

    # What an answer's pieces are taken for

    def _take_events(self, piece: bytes) -> None:
        assert self._framer is not None
        try:
            events = self._framer.cut(piece)
        except BadAnswer as exc:
            self._fail(exc)
            return
        if events and _is_text(events):
            self._relay(events)
        elif events:
            self._fail(BadAnswer("an event that is not UTF-8"))

    def _relay(self, events: bytes) -> None:
        translator = self._translator
        told = translator.feed(events)
        if translator.failed is not None:
            if told:
                self._send(told)
            self._fail(translator.failed)
        elif translator.done:
            self._promise()
            self._take = _ignore
            self._reply.end(told)
        elif told:
            self._send(told)

    def _send(self, told: bytes) -> None:
        if not self.promised:
            self._promise()
        self._spoke = self.heard
        self._reply.data(told)

    def _promise(self) -> None:
        """From here on what fails is told inside the stream."""
        if not self.promised:
            self.promised = True
            self.first_event = time.monotonic()
            if self._reply.state is State.NONE:
                self._reply.start_stream(self._extra)

    def _take_plain(self, piece: bytes) -> None:
        self._size += len(piece)
        self._held.append(piece)
        if self._size > LARGEST_HELD:
            self.promised = True
            self.first_event = time.monotonic()
            self._reply.start_plain(self._extra)
            head = b"".join(self._held)
            self._reply.data(self._translator.opening(head))
            self._held = [head[-_TAIL:]]
            self._take = self._take_more

    def _take_more(self, piece: bytes) -> None:
        self._size += len(piece)
        self._reply.data(self._translator.more(piece))
        self._held = [(b"".join(self._held) + piece)[-_TAIL:]]

    def _take_error(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= _ERROR_LIMIT:
            self._held.append(piece)

    def _end_stream(self) -> None:
        if self._reply.state is State.ENDED or self.failure is not None:
            return
        assert self._framer is not None
        translator = self._translator
        rest = self._framer.rest()
        # The last line's end may be missing; the terminator itself may not. Anything else that
        # is unfinished is never sent: it may be half an event.
        told = translator.feed(rest + b"\n\n") if rest.strip() else b""
        if translator.done:
            self._send(told)
            self._reply.end()
        else:
            truncated = StreamTruncated("the stream ended without its terminator")
            self.failure = translator.failed or truncated

    def _end_whole(self) -> None:
        try:
            body = b"".join(self._held)
            if not _is_text(body):
                raise BadAnswer("an answer that is not UTF-8")
            body = self._translator.whole(body)
        except BackendError as exc:
            self.failure = exc
            return
        self.promised = True
        self.first_event = time.monotonic()
        self._reply.whole(body, self._extra)

    def _fail(self, exc: BackendError) -> None:
        assert self._flight is not None
        self._flight.fail(exc)

    # The one alarm: when it rings something may be due, and it is set for what may be next.

    def _soonest(self) -> float:
        """The earliest that anything can be due. Most answers are whole by then; of any other it
        is looked what is due next, which takes longer to tell.
        """
        t = self._timeouts
        first = min(t.first_event, t.early_commit, t.heartbeat, t.stall, t.client_write)
        return min(self._deadline, self._accepted + first)

    def _arm(self, now: float) -> None:
        wake = self._next(now)
        if self._stream and not self.promised and not self._paused_at:
            # An event may come now and be the last for long: be awake for what is due after it.
            wake = min(wake, now + self._timeouts.heartbeat, now + self._timeouts.stall)
        self._alarm.set(wake, self._tick)

    def _next(self, now: float) -> float:
        times = self._timeouts
        if self._paused_at:
            return self._paused_at + times.client_write
        if not self._stream:
            return self._deadline
        if self.promised:
            due = self.heard + times.stall
            ended = self._reply.state is State.ENDED  # only the engine's own end is missing
            return due if ended else min(due, self._spoke + times.heartbeat)
        due = min(self._began + times.first_event, self._deadline)
        if self._reply.state is State.NONE:
            return min(due, self._accepted + times.early_commit)
        return min(due, self._spoke + times.heartbeat)

    def _tick(self) -> None:
        now = self._loop.time()
        if self._flight is None:
            return
        if now >= self._next(now):
            self._due(now, self._flight)
        if not self._alarm.is_set:
            self._arm(now)

    def _due(self, now: float, flight: Flight) -> None:
        times = self._timeouts
        if self._paused_at:
            flight.fail(ClientStalled("the caller does not read"))
        elif not self._stream:
            flight.fail(DeadlinePassed("no answer within its time"))
        elif self.promised and now >= self.heard + times.stall:
            flight.fail(UpstreamTimeout(f"silent for {times.stall:g} s"))
        elif not self.promised and now >= self._deadline:
            flight.fail(DeadlinePassed("no event before the caller's own time is over"))
        elif not self.promised and now >= self._began + times.first_event:
            flight.fail(FirstEventTimeout(f"no event within {times.first_event:g} s"))
        else:
            self._beat(now)

    def _beat(self, now: float) -> None:
        if self._reply.state is State.NONE:
            self._reply.start_stream(self._extra)
        self._reply.heartbeat()
        self._spoke = now


def _is_text(piece: bytes) -> bool:
    """Whether it is UTF-8, as JSON and event streams are; nearly all of it is ASCII."""
    if piece.isascii():
        return True
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _ignore(piece: bytes) -> None:
    """What comes after the end, or after a failure, is nobody's."""

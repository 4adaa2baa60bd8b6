"""The fault matrix as data: what breaks, in which phase of a request, and what its caller is told.

    A  before the engine's head     B  head seen, no whole event yet, nothing sent to the caller
    C  in the middle of a stream    D  while the gateway drains after SIGTERM

A cell is a tuple of cases, or says why there is none. tests/faults/test_matrix.py plays them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

from tests.fakes.script import Chunk, EndChunks, Fin, Hang, Received, Rst, Send, Step, plain
from tests.faults import leaving, processes, stages
from tests.faults.asking import MESSAGES

Phase = Literal["A", "B", "C", "D"]
PHASES: tuple[Phase, ...] = ("A", "B", "C", "D")


@dataclass(frozen=True)
class Told:
    """What a caller is told and the log says. `inside`: by a frame of the stream it reads."""

    outcome: str = "ok"
    status: int = 200
    type: str = ""
    code: str | None = None
    anthropic_status: int = 200
    anthropic_type: str = ""
    attempts: int = 1
    inside: bool = False
    retry_after: bool = False


WHOLE = Told()
RETRIED = replace(WHOLE, attempts=2)
BAD_REQUEST = Told("refused", 400, "invalid_request_error", "invalid_request", 400)
BAD_REQUEST = replace(BAD_REQUEST, anthropic_type="invalid_request_error")
BROKEN = Told("upstream_failed", 502, "server_error", "upstream_error", 502, "api_error")
SLOW = Told("timed_out", 504, "server_error", "timeout", 504, "timeout_error")
BUSY = Told("refused", 503, "server_error", "overloaded", 529, "overloaded_error")
BUSY = replace(BUSY, retry_after=True)
STOPPING = replace(BUSY, outcome="drained")


def inside(told: Told) -> Told:
    return replace(told, inside=True)


@dataclass(frozen=True)
class Fate:
    """What a caller is told where another replica is well, and where there is none."""

    two: Told
    alone: Told


MOVED = Fate(RETRIED, BROKEN)
MOVED_OR_SLOW = Fate(RETRIED, SLOW)
MOVED_OR_BUSY = Fate(RETRIED, BUSY)
CUT = Fate(inside(BROKEN), inside(BROKEN))
STALLED = Fate(inside(SLOW), inside(SLOW))
REFUSED = Fate(BAD_REQUEST, BAD_REQUEST)


class Strike(Enum):
    """What happens to an engine that is a process, or to one that does not go on by itself."""

    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    DEADLOCK = "no step, though it answers /health and /metrics"


Steps = Callable[[Received], Iterable[Step]]


@dataclass(frozen=True)
class Case:
    """Callers whose answers have come to a phase, and a fault at the engine of all of them then.

    `fault` is what the engine does, given the request it does it to. `plain` is the fate of a
    caller who did not ask for a stream, None where there is no such case. `standing` is how the
    replica stands afterwards, empty where it is not looked at; `times` are timeouts of its own.
    """

    fault: Strike | Steps
    until: Literal["A", "B", "C"]
    stream: Fate
    plain: Fate | None
    name: str = ""
    standing: str = ""
    times: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False


@dataclass(frozen=True)
class Staged:
    """A case with a stage of its own. It asserts all that the driver asserts of the others."""

    play: Callable[[stages.Stage], Awaitable[None]]
    name: str = ""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotApplicable:
    """A cell without a case, and why."""

    reason: str


Cell = tuple[Case | Staged, ...] | NotApplicable
Row = Mapping[Phase, Cell]


def draining(*cases: Case) -> tuple[Case, ...]:
    return tuple(replace(case, draining=True) for case in cases)


def _always(*steps: Step) -> Steps:
    return lambda request: steps


# What engines do


def _frame(code: int, kind: str) -> Steps:
    openai = b'data: {"error":{"message":"secret place","type":"E","param":null,"code":%d}}\n\n'
    error = b'{"type":"error","error":{"type":"%b","message":"secret place"}}' % kind.encode()

    def steps(request: Received) -> Iterable[Step]:
        if request.path == MESSAGES:
            return [Chunk(b"event: error\ndata: %b\n\n" % error), EndChunks()]
        return [Chunk(openai % code), Chunk(b"data: [DONE]\n\n"), EndChunks()]

    return steps


def _huge(request: Received) -> Iterator[Step]:
    """An event of a GiB."""
    for _ in range(1024):
        yield Chunk(bytes(1 << 20))


def _not_text(request: Received) -> Iterable[Step]:
    """Bytes that are no UTF-8: an event, or the rest of a plain answer."""
    if b'"stream": true' not in request.body and b'"stream":true' not in request.body:
        return [Send(b"\xff" * 8192), Fin()]
    return [Chunk(b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n'), Hang()]


def _abort(request: Received) -> Iterable[Step]:
    """What vLLM says to streams under way when it is told to end at once."""
    if request.path == MESSAGES:
        return [Fin()]
    choice = b'{"index":0,"delta":{},"finish_reason":"abort"}'
    said = b'data: {"object":"chat.completion.chunk","choices":[%b]}\n\n' % choice
    return [Chunk(said), Chunk(b"data: [DONE]\n\n"), EndChunks()]


RST, FIN, END = _always(Rst()), _always(Fin()), _always(EndChunks())
SILENCE = _always(Hang())
FULL = _always(*plain(503, b'{"error":{"message":"secret place"}}'))
FAILED, MISUSED = _frame(500, "api_error"), _frame(400, "invalid_request_error")

#: Timers that something hanging is found by; all others are long.
QUICK = {"first_event": "900ms", "stall": "900ms", "total": "4s"}
ENDING = {"drain": "700ms"}
#: Probes find what hangs long before; but with no other replica there is nowhere to move.
PATIENT = {"first_event": "4s", "total": "5s"}

_NOTHING_SENT = NotApplicable("a refusal is a whole answer: nothing comes after it")
_ONE_HEAD = NotApplicable("an error frame comes after a head")
_IDLE_ONLY = NotApplicable("only a connection that was idle can have gone stale")
_CONNECTED = NotApplicable("there is a connection: no name is looked up any more")
_WRITING = NotApplicable("nothing is written to the caller before its first event")
_ARRIVED = NotApplicable("the request is here: its caller sends nothing any more")
_AS_A = NotApplicable("to the gateway's configuration all requests under way are alike: see A")
_NO_EVENT = NotApplicable("nothing is due to the caller yet")
_ANY = NotApplicable("draining adds nothing to how late the loop is")


def _hanging(strike: Strike | Steps, times: Mapping[str, str]) -> Row:
    """An engine that holds its connections and says nothing any more."""
    moved, cut = MOVED_OR_SLOW, STALLED
    last = Fate(inside(STOPPING), inside(STOPPING))
    in_mid_stream = Case(strike, "C", cut, moved, standing="ejected", times=QUICK)
    # The plain answer of an engine that is known to be deadlocked has moved before the deadline.
    waited = None if strike is Strike.DEADLOCK else Fate(STOPPING, STOPPING)
    at_the_end = Case(strike, "C", last, waited, "deadline", times=ENDING)
    return {
        "A": (Case(strike, "A", moved, moved, standing="ejected", times=times),),
        "B": (Case(strike, "B", moved, moved, standing="ejected", times=times),),
        "C": (in_mid_stream,),
        "D": draining(replace(in_mid_stream, name="stall"), at_the_end),
    }


def _ends(name: str, fault: Steps) -> dict[Phase, Case]:
    return {
        "A": Case(fault, "A", MOVED, MOVED, name),
        "B": Case(fault, "B", MOVED, MOVED, name),
        "C": Case(fault, "C", CUT, MOVED, name),
    }


_BY_RST, _BY_FIN = _ends("rst", RST), _ends("fin", FIN)
_GARBAGE = (
    Case(_huge, "C", CUT, None, "endless"),
    Case(_not_text, "C", CUT, MOVED, "not-utf8"),
)
_ABORTED = (
    Case(_abort, "C", CUT, None, "abort"),
    Case(FIN, "C", CUT, MOVED, "no-terminator"),
    Case(SILENCE, "C", STALLED, MOVED_OR_SLOW, "silence", times=QUICK),
)

MATRIX: Mapping[str, Row] = {
    "F1 engine killed": {
        "A": (Case(Strike.KILL, "A", MOVED, MOVED),),
        "B": (Case(Strike.KILL, "B", MOVED, MOVED),),
        "C": (Case(Strike.KILL, "C", CUT, MOVED),),
        "D": draining(Case(Strike.KILL, "C", CUT, MOVED)),
    },
    "F2 engine hangs": _hanging(Strike.STOP, QUICK),
    "F3 engine deadlocked": _hanging(Strike.DEADLOCK, {"first_event": "5s", "total": "6s"}),
    "F4 connection ends": {
        **{phase: (_BY_RST[phase], _BY_FIN[phase]) for phase in _BY_RST},
        "D": draining(_BY_RST["C"], _BY_FIN["C"]),
    },
    "F5 engine full": {
        "A": (Case(FULL, "A", MOVED_OR_BUSY, MOVED_OR_BUSY, standing="up"),),
        "B": _NOTHING_SENT,
        "C": _NOTHING_SENT,
        "D": draining(Case(FULL, "A", MOVED_OR_BUSY, MOVED_OR_BUSY, standing="up")),
    },
    "F6 error frame": {
        "A": _ONE_HEAD,
        "B": (
            Case(FAILED, "B", MOVED, None, "fault"),
            Case(MISUSED, "B", REFUSED, None, "request", standing="up"),
        ),
        "C": (Case(FAILED, "C", CUT, None),),
        "D": draining(Case(FAILED, "C", CUT, None)),
    },
    "F7 end without terminator": {
        "A": _ONE_HEAD,
        "B": (Case(END, "B", MOVED, None),),
        "C": (Case(END, "C", CUT, None),),
        "D": draining(Case(END, "C", CUT, None)),
    },
    "F8 garbage": {
        "A": NotApplicable("garbage follows a head; what is no head is a broken connection"),
        "B": (
            Case(_huge, "B", MOVED, None, "endless"),
            Case(_not_text, "B", MOVED, MOVED, "not-utf8"),
            Staged(stages.split_line_ends, "crlf"),
        ),
        "C": _GARBAGE,
        "D": draining(*_GARBAGE),
    },
    "F9 stale connection": {
        "A": (Staged(stages.stale),),
        "B": _IDLE_ONLY,
        "C": _IDLE_ONLY,
        "D": _IDLE_ONLY,
    },
    "F10 names not resolved": {
        "A": (
            Staged(stages.unknown_name, "never"),
            Staged(stages.name_lost, "no-more", ("slow",)),
        ),
        "B": _CONNECTED,
        "C": (Staged(stages.name_lost_in_mid_stream),),
        "D": (Staged(stages.name_lost_while_draining),),
    },
    "F11 caller leaves": {
        "A": (Staged(leaving.left_unanswered),),
        "B": (Staged(leaving.left_before_an_event),),
        "C": (Staged(leaving.left_in_mid_stream),),
        "D": (Staged(leaving.left_while_draining),),
    },
    "F12 caller vanishes": {
        "A": NotApplicable("nothing is sent to it: known when its answer begins, as in C"),
        "B": (Staged(leaving.vanished_before_an_event, marks=("soak",)),),
        "C": (Staged(leaving.vanished_in_mid_stream, marks=("soak",)),),
        "D": (Staged(leaving.vanished_while_draining),),
    },
    "F13 request drips": {
        "A": (Staged(leaving.head_drips, "head"), Staged(leaving.body_drips, "body")),
        "B": _ARRIVED,
        "C": _ARRIVED,
        "D": (Staged(leaving.drips_while_draining),),
    },
    "F14 caller reads slowly": {
        "A": _WRITING,
        "B": _WRITING,
        "C": (Staged(leaving.not_read),),
        "D": (Staged(leaving.not_read_while_draining),),
    },
    "F18 worker killed": {
        "A": (Staged(processes.worker_killed_unanswered, marks=("slow",)),),
        "B": (Staged(processes.worker_killed_before_an_event, marks=("slow",)),),
        "C": (Staged(processes.worker_killed_in_mid_stream, marks=("slow",)),),
        "D": (Staged(processes.worker_killed_while_draining, marks=("slow",)),),
    },
    "F19 told to stop": {
        "A": (Staged(stages.stopped_unanswered),),
        "B": (Staged(stages.stopped_before_an_event),),
        "C": (
            Staged(stages.stopped_in_mid_stream, "in-time"),
            Staged(stages.stopped_at_the_deadline, "deadline"),
        ),
        "D": (Staged(stages.stopped_twice),),
    },
    "F20 engine told to stop": {
        "A": (Case(FIN, "A", MOVED, MOVED),),
        "B": (Case(FIN, "B", MOVED, MOVED),),
        "C": _ABORTED,
        "D": draining(*_ABORTED),
    },
    "F25 bad configuration": {
        "A": (Staged(processes.bad_reload, marks=("slow",)),),
        "B": _AS_A,
        "C": (Staged(processes.bad_reload_in_mid_stream, marks=("slow",)),),
        "D": (Staged(processes.bad_reload_while_draining, marks=("slow",)),),
    },
    "F26 event loop blocked": {
        "A": (Staged(stages.loop_blocked),),
        "B": _NO_EVENT,
        "C": (Staged(stages.loop_blocked_in_mid_stream),),
        "D": _ANY,
    },
}

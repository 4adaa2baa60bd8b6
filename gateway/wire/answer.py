"""What the translators of both dialects share: one request's way out and its answer's way back.

Bytes pass untouched but for what must change: the model's name, and usage the caller did not ask
for. A key is found by its quoted name: inside a JSON string the quotes would be escaped.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Raw

from backends.errors import ABOUT_THE_REQUEST, BadAnswer, StreamFailed
from gateway.errors import NOT_ACCEPTED
from gateway.terms import Ask, Size, Usage
from gateway.wire.large import MODEL, Renaming

_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')

_object = msgspec.json.Decoder(dict[str, Raw])


_ABSENT = Raw(b"")

#: Tokens as an engine counts them. Below or above, it has lost count: a limit charged with that
#: would hold for days, or for nobody.
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Choice(msgspec.Struct, gc=False):
    finish_reason: Raw = _ABSENT


class Answer(msgspec.Struct):
    """What is looked at of a plain answer, raw values empty where they are not there."""

    model: Raw = _ABSENT
    usage: Raw = _ABSENT
    input_tokens: Raw = _ABSENT
    error: Raw = _ABSENT
    choices: list[_Choice] | None = None


_answer = msgspec.json.Decoder(Answer)
#: How many models and teams are written down at a time.
_FEW = 1024
#: Of a request that is charged nothing.
UNMEASURED = Size()


class Translator:
    """One request in one dialect; its subclasses know the dialect. `size` is the request's.

    Mutable state: `usage`, used so far; `events`, how many were relayed; `done`, whether the
    stream's own end was seen; `failed`, what the engine said went wrong inside a stream.
    """

    #: Of an answer in pieces.
    _renaming: Renaming

    def __init__(self, ask: Ask, fields: dict[str, Raw], size: Size = UNMEASURED) -> None:
        self.size = size
        self.usage = Usage()
        self.events = 0
        self.done = False
        self.failed: StreamFailed | None = None
        self._ask = ask
        self._fields = fields
        self._named = _named(ask.model)
        self._name_sent: bytes | None = None

    @property
    def dropped(self) -> int:
        """How many fields of the request were unknown and left out."""
        sent, passed = self._ask.fields.keys(), self._fields.keys()
        return 0 if passed >= sent else len(sent - passed)

    def restart(self) -> None:
        """Forget an attempt of which the caller has seen nothing."""
        self.usage = Usage()
        self.events = 0
        self.done = False
        self.failed = None
        self._name_sent = None

    def request(self, upstream_model: str) -> bytes:
        """The body for the server: what was checked, nothing else, under the server's own name."""
        self._fields["model"] = _written(upstream_model)
        return msgspec.json.encode(self._fields)

    def set(self, name: str, value: str) -> None:
        """A field of the gateway's own, one of a few values."""
        self._fields[name] = _written(value)

    def feed(self, events: bytes) -> bytes:
        """Whole events in, whole events out; `b""` where there is nothing to say yet."""
        raise AssertionError("a dialect has its own")

    def whole(self, body: bytes) -> bytes:
        """A plain answer, complete. Raises BadAnswer where it is none, StreamFailed where it says
        that the engine gave up on it.
        """
        try:
            answer = _looked_at(body)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise BadAnswer(f"a plain answer that is not a JSON object: {exc}") from None
        if answer.error:
            self._note_error(_told(answer.error))
        if answer.usage:
            self._note_usage(answer.usage)
        self._note_answer(answer, body)
        return self._rename_whole(body, answer.model) if answer.model else body

    def opening(self, head: bytes) -> bytes:
        """The beginning of a plain answer that is too large to be held."""
        self._renaming = Renaming(self._named)
        return self._renaming.feed(head)

    def more(self, piece: bytes) -> bytes:
        """What follows of it."""
        return self._renaming.feed(piece)

    def closing(self, tail: bytes) -> bytes:
        """The end of it; the usage is taken from its `tail`, which has been told."""
        found = _USAGE.findall(tail)
        if found:
            self._note_usage(Raw(found[-1]))
        return self._renaming.rest()

    def _ordinary(self, events: bytes, prefix: bytes, going_on: bytes) -> int:
        """How much of a run are events that all begin with `prefix`, the last of them whole and
        holding `going_on`: such a stream says nothing else yet, and they need no closer look.
        Only where they end in LF: another stream's events are not counted by that.

        Counting one long text is much cheaper than looking for several short ones in each event.
        0 where the run is of another kind.
        """
        if not events.startswith(prefix):
            return 0
        last = events.rfind(prefix)
        end = events.find(b"\n\n", last) + 2
        stop = end if end == len(events) and events.find(going_on, last) >= 0 else last
        alike = events.count(prefix, 0, stop) == events.count(b"\n\n", 0, stop)
        return stop if alike else 0

    def _note_answer(self, answer: Answer, body: bytes) -> None:
        """Look for what a dialect tells outside `usage`. Raises StreamFailed."""

    def _note_error(self, error: Any) -> None:
        """Some servers say with a 200 that they failed. Raises StreamFailed."""
        raise AssertionError("a dialect has its own")

    def _note_usage(self, usage: Raw) -> None:
        raise AssertionError("a dialect has its own")

    def _rename_whole(self, body: bytes, model: Raw) -> bytes:
        """A plain answer with the caller's name in place of `model`, its own."""
        sent = b'"model":%b' % bytes(model)
        at = body.find(sent)
        first = body.find(b'"model"') == at
        if first and at > 0 and body.find(b"{", 1, at) < 0 and body.find(b"[", 1, at) < 0:
            return b"%b%b%b" % (body[:at], self._named, body[at + len(sent) :])
        document = _object.decode(body)  # it comes later, or is written in another way
        document["model"] = Raw(self._named.partition(b":")[2])
        return msgspec.json.encode(document)

    def _rename(self, events: bytes) -> bytes:
        """The caller's name for the model in place of the server's."""
        sent = self._name_sent
        if sent is not None and sent in events:
            return events if sent == self._named else events.replace(sent, self._named)
        found = MODEL.search(events)
        if found is None:
            return events
        self._name_sent = found.group()
        return MODEL.sub(lambda _: self._named, events)


@lru_cache(_FEW)
def _named(model: str) -> bytes:
    """The pair that says so."""
    return b'"model":' + orjson.dumps(model)


@lru_cache(_FEW)
def _written(value: str) -> Raw:
    return Raw(msgspec.json.encode(value))


def _looked_at(body: bytes) -> Answer:
    """Raises msgspec.DecodeError where it is no JSON object."""
    try:
        return _answer.decode(body)
    except msgspec.ValidationError:  # choices of another shape are not ours to judge
        told = _object.decode(body)
    model, usage, tokens = (told.get(n, _ABSENT) for n in ("model", "usage", "input_tokens"))
    return Answer(model, usage, tokens, told.get("error", _ABSENT))


def _told(error: Raw) -> Any:
    """What it holds; where that cannot be read, that there is one."""
    try:
        return msgspec.json.decode(error)
    except (msgspec.DecodeError, RecursionError):
        return True


def failure(status: int, message: Any) -> StreamFailed:
    """An engine's failure in an answer that began well; its own `message` is kept only where it is
    about the request.
    """
    if status not in ABOUT_THE_REQUEST:
        return StreamFailed("error frame", status)
    return StreamFailed(message if message and isinstance(message, str) else NOT_ACCEPTED, status)


def single(events: bytes, prefix: bytes) -> bool:
    """Whether it is one event that begins with `prefix` and has no more lines than that and one.

    What a read brings nearly always is, and it is known by its first end of a line.
    """
    return (
        events.endswith(b"\n\n")
        and events.startswith(prefix)
        and events.find(b"\n", len(prefix)) == len(events) - 2
    )

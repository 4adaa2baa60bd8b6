"""What the tests of the wire share: recorded streams, a reference parser, and one request's way."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from msgspec import Raw

from backends.framing import Framer
from gateway.terms import Ask
from gateway.wire.answer import Translator
from gateway.wire.anthropic import AnthropicTranslator
from gateway.wire.openai import OpenAITranslator

RECORDED = Path(__file__).parents[2] / "transcripts"
STREAMS = sorted(path.parent.name for path in RECORDED.glob("*/upstream.sse"))
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
#: What callers call the model; the recorded engine calls it `tiny`.
NAME = "team/mine"

Event = tuple[str, str]


def recorded(name: str) -> bytes:
    """The stream `name` as the engine sent it, lines ending in LF."""
    return (RECORDED / name / "upstream.sse").read_bytes()


def document(name: str) -> bytes:
    """The plain answer `name`."""
    return (RECORDED / name / "upstream.json").read_bytes()


def raw(**fields: Any) -> dict[str, Raw]:
    return {name: Raw(orjson.dumps(value)) for name, value in fields.items()}


def chat(*, wants_usage: bool = False, stream: bool = True, **fields: Any) -> OpenAITranslator:
    sent = raw(model=NAME, messages=[], stream=stream, **fields)
    return OpenAITranslator(Ask(NAME, stream, sent, wants_usage=wants_usage), dict(sent))


def messages(*, stream: bool = True) -> AnthropicTranslator:
    sent = raw(model=NAME, messages=[], stream=stream)
    return AnthropicTranslator(Ask(NAME, stream, sent), dict(sent))


def translator(name: str, *, wants_usage: bool = False) -> Translator:
    """One of the dialect in which `name` was recorded."""
    return messages() if name.startswith("messages") else chat(wants_usage=wants_usage)


def play(translator: Translator, pieces: Iterable[bytes], limit: int = 1 << 20) -> list[bytes]:
    """The runs of events a caller is sent for these reads of an engine."""
    framer = Framer(limit)
    runs = []
    for piece in pieces:
        events = framer.cut(piece)
        told = translator.feed(events) if events else b""
        if told:
            runs.append(told)
        if translator.failed is not None:
            break
    return runs


def parse(stream: bytes) -> list[Event]:
    """The events of a whole stream, as type and data (WHATWG HTML, "Parsing an event stream")."""
    events: list[Event] = []
    kind, data = "", list[str]()
    for line in _lines(stream):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((kind or "message", "\n".join(data)))
            kind, data = "", []
        elif name == "event":
            kind = value
        elif name == "data":
            data.append(value)
    return events


def _lines(stream: bytes) -> Iterator[str]:
    lines = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode().split("\n")
    assert lines.pop() == "", "the stream ends inside a line"
    return iter(lines)


def cut(stream: bytes, at: Sequence[int]) -> list[bytes]:
    """`stream` in pieces that end at the offsets `at`."""
    edges = [0, *sorted(at), len(stream)]
    return [stream[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]


def single(stream: bytes) -> list[bytes]:
    """One byte a piece."""
    return [stream[n : n + 1] for n in range(len(stream))]

"""The Anthropic dialect: messages and the counting of their tokens.

vLLM speaks it itself, so events pass as they come.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
from msgspec import Raw

from backends.errors import StreamFailed
from gateway.errors import GatewayError
from gateway.terms import Standing, Standings, Usage
from gateway.wire import sse
from gateway.wire.answer import Answer, Tokens, Translator, failure, single
from gateway.wire.large import MODEL

#: With data: an event without any makes clients read an empty document.
HEARTBEAT = b'event: ping\ndata: {"type": "ping"}\n\n'

#: What nearly all events of a stream begin with.
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta",'
_STOP = re.compile(rb'"type"\s*:\s*"message_stop"')

#: The engine's error types by the status they stand for (vLLM `serve/anthropic`).
_STATUS = {
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "not_found_error": 404,
    "NotFoundError": 404,
    "rate_limit_error": 429,
    "overloaded_error": 503,
}


class _Tokens(msgspec.Struct):
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None


_tokens = msgspec.json.Decoder(_Tokens | None)


class AnthropicTranslator(Translator):
    """Streams open with `message_start` and end with `message_stop`."""

    def feed(self, events: bytes) -> bytes:
        if single(events, _DELTA) and b'"delta":' in events:
            self.events += 1
            return events
        stop = self._ordinary(events, _DELTA, b'"delta":')
        if not stop:
            return self._look(events)
        self.events += events.count(b"\n\n", 0, stop)
        return events if stop == len(events) else events[:stop] + self._look(events[stop:])

    def _look(self, events: bytes) -> bytes:
        """Events of which any may be the first, the last, or tell of something."""
        if events[:1] == b":":  # after an event one is let pass: to look for it costs time
            events = sse.without_comments(events)
        self.events += events.count(b"content_block_delta") // 2
        if b'"usage"' in events or b'"error"' in events or b"event: error" in events:
            events = self._read(events)
        if b'"message_stop"' in events[-80:] and _STOP.search(events[-80:]):
            self.done = True
        if self._name_sent is None:  # only `message_start` names the model
            return self._rename(events)
        return events

    def _rename(self, events: bytes) -> bytes:
        """The first only: a tool's input may come together with it, and have a `model` too."""
        found = MODEL.search(events)
        if found is None:
            return events
        self._name_sent = found.group()
        return events[: found.start()] + self._named + events[found.end() :]

    def _read(self, events: bytes) -> bytes:
        passed = []
        for event in sse.split(events):
            if b'"usage"' in event or b"error" in event:
                self._note(event)
                if self.failed is not None:
                    break
            passed.append(event)
        return b"".join(passed)

    def _note(self, event: bytes) -> None:
        try:
            document = orjson.loads(sse.payload(event))
        except orjson.JSONDecodeError:
            return
        if not isinstance(document, dict):
            return
        if document.get("type") == "error":
            self.failed = _failure(document)
            return
        message = document.get("message")
        usage = message.get("usage") if isinstance(message, dict) else document.get("usage")
        if isinstance(usage, dict):
            self._note_usage(Raw(orjson.dumps(usage)))
            # `message_start` knows the prompt only; the rest comes with `message_delta`.
            self.usage.exact &= document.get("type") == "message_delta"

    def _note_answer(self, answer: Answer, body: bytes) -> None:
        if answer.input_tokens:  # count_tokens
            self._note_usage(Raw(body))

    def _note_error(self, error: Any) -> None:
        if error:
            raise _failure({"error": error})

    def _note_usage(self, usage: Raw) -> None:
        try:
            tokens = _tokens.decode(usage)
        except msgspec.DecodeError:
            return
        if tokens is None:
            return
        cached = tokens.cache_read_input_tokens or 0
        # The dialect counts a prompt in three parts (vLLM `_build_anthropic_usage`).
        prompt = (tokens.input_tokens or 0) + (tokens.cache_creation_input_tokens or 0) + cached
        self.usage = Usage(
            prompt=prompt or self.usage.prompt,
            cached=cached if prompt else self.usage.cached,
            completion=tokens.output_tokens or 0,
            exact=True,
        )


def error_object(exc: GatewayError, request_id: str) -> dict[str, Any]:
    """Anthropic's error object (https://docs.anthropic.com/en/api/errors)."""
    return {
        "type": "error",
        "error": {"type": exc.anthropic_type, "message": f"{exc} (request id: {request_id})"},
        "request_id": request_id,
    }


def error_frame(exc: GatewayError, request_id: str) -> bytes:
    """The last words of a broken stream. Without `event:` the SDK would skip it."""
    return b"event: error\ndata: " + orjson.dumps(error_object(exc, request_id)) + b"\n\n"


def limit_lines(standings: Standings) -> bytes:
    """https://docs.anthropic.com/en/api/rate-limits, "Response headers"."""
    requests, tokens = standings
    lines = b"" if requests is None else _REQUEST_LINES % _told(requests)
    return lines if tokens is None else lines + _TOKEN_LINES % _told(tokens)


_REQUEST_LINES = (
    b"anthropic-ratelimit-requests-limit: %d\r\nanthropic-ratelimit-requests-remaining: %d\r\n"
    b"anthropic-ratelimit-requests-reset: %b\r\n"
)
_TOKEN_LINES = _REQUEST_LINES.replace(b"requests", b"tokens")


def _told(standing: Standing) -> tuple[int, int, bytes]:
    """The time of the reset is in RFC 3339."""
    reset = orjson.dumps(datetime.fromtimestamp(standing.at, UTC), option=orjson.OPT_UTC_Z)
    return standing.limit, standing.remaining, reset[1:-1]  # less its quotes


def _failure(document: dict[str, Any]) -> StreamFailed:
    error = document.get("error")
    told = error if isinstance(error, dict) else {}
    return failure(_STATUS.get(str(told.get("type")), 500), told.get("message"))

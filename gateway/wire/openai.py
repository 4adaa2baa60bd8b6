"""The OpenAI dialect: chat, completions and embeddings."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson
from msgspec import Raw

from backends.errors import StreamFailed
from gateway.errors import GatewayError
from gateway.terms import Ask, Size, Standings, Usage
from gateway.wire import sse
from gateway.wire.answer import UNMEASURED, Answer, Tokens, Translator, failure, single

#: A comment: every client ignores it (WHATWG HTML, "Parsing an event stream").
HEARTBEAT = b": ping\n\n"

#: The beginning of a content event, up to where one differs from the next: id, time and model
#: stay the same throughout a stream (vLLM `OpenAIServingChat.chat_completion_stream_generator`).
_PREFIX = re.compile(rb'data: \{[^{}\[\]]{0,1024}"model"[^{}\[\]]{0,1024}"choices":\[\{')
_GOING_ON = b'"finish_reason":null'
_DONE = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\](?:\s|[\r\n]:[^\r\n]*)*\Z")
_ABORT, _ABORTED = b'"abort"', "the engine aborted the request"
#: In so many bytes the end is found, and a comment after it.
_TRAILING = 200
_USAGE_GIVEN = re.compile(rb'"usage"\s*:\s*\{')


class _Details(msgspec.Struct):
    cached_tokens: Tokens | None = None


class _Tokens(msgspec.Struct):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    prompt_tokens_details: _Details | None = None


_tokens = msgspec.json.Decoder(_Tokens | None)
_options = msgspec.json.Decoder(dict[str, Raw] | None)


class OpenAITranslator(Translator):
    """Streams end with `data: [DONE]`; usage comes in an event of its own, asked for by us."""

    def __init__(
        self,
        ask: Ask,
        fields: dict[str, Raw],
        size: Size = UNMEASURED,
        *,
        ask_for_usage: bool = True,
    ) -> None:
        super().__init__(ask, fields, size)
        #: What every content event of this stream begins with, once seen, and the same for callers.
        self._prefix: bytes | None = None
        self._prefix_named = b""
        if ask.stream and ask_for_usage and not ask.wants_usage:
            fields["stream_options"] = _with_usage(fields.get("stream_options"))

    def restart(self) -> None:
        super().restart()
        self._prefix = None

    def feed(self, events: bytes) -> bytes:
        if self._prefix is None:
            found = _PREFIX.match(events)
            if found is None:
                return self._look(events)
            self._prefix = found.group()
            self._prefix_named = self._rename(self._prefix)
        prefix = self._prefix
        if single(events, prefix) and events.find(_GOING_ON, len(prefix)) >= 0:
            self.events += 1
            return self._prefix_named + events[len(prefix) :]
        stop = self._ordinary(events, prefix, _GOING_ON)
        if not stop or events.find(_ABORT, 0, stop) >= 0:
            return self._look(events)
        ordinary = events[:stop]  # the same object, where it is all of them
        self.events += ordinary.count(b"\n\n")
        told = self._prefix_named.join(ordinary.split(prefix))
        return told if stop == len(events) else told + self._look(events[stop:])

    def _look(self, events: bytes) -> bytes:
        """Events of which any may be the last, or tell of something."""
        if events[:1] == b":":  # after an event one is let pass: to look for it costs time
            events = sse.without_comments(events)
        if b'"error"' in events or _ABORT in events or b'"usage"' in events:
            events = self._read(events)
        self.events += events.count(b"\n\n") or len(sse.split(events))
        if b"[DONE]" in events[-_TRAILING:] and _DONE.search(events):
            self.done = True
            self.events -= 1
            self.usage.exact = self.usage.exact or self.usage.prompt > 0
        return self._rename(events)

    def _read(self, events: bytes) -> bytes:
        """Look into the events that may carry usage, an error or an abort; the rest pass."""
        passed = []
        for event in sse.split(events):
            telling = b'"error"' in event or b'"abort"' in event or _USAGE_GIVEN.search(event)
            if telling and not self._passes(event):
                if self.failed is not None:
                    break
                continue
            passed.append(event)
        return b"".join(passed)

    def _passes(self, event: bytes) -> bool:
        try:
            document = orjson.loads(sse.payload(event))
        except orjson.JSONDecodeError:
            return True  # not ours to judge; the client would have read the same
        if not isinstance(document, dict):
            return True
        self.failed = _failure(document)
        if self.failed is not None:
            return False
        usage = document.get("usage")
        if not isinstance(usage, dict):
            return True
        self._note_usage(Raw(orjson.dumps(usage)))
        if document.get("choices"):
            self.usage.exact = False  # so far: there may be more to come
            return True
        return self._ask.wants_usage

    def _note_answer(self, answer: Answer, body: bytes) -> None:
        for choice in answer.choices or ():
            if choice.finish_reason == Raw(_ABORT):
                raise StreamFailed(_ABORTED)

    def _note_error(self, error: Any) -> None:
        failed = _failure({"error": error})
        if failed is not None:
            raise failed

    def _note_usage(self, usage: Raw) -> None:
        try:
            tokens = _tokens.decode(usage)
        except msgspec.DecodeError:
            return
        if tokens is None:
            return
        details = tokens.prompt_tokens_details
        self.usage = Usage(
            prompt=tokens.prompt_tokens or 0,
            cached=(details.cached_tokens or 0) if details else 0,
            completion=tokens.completion_tokens or 0,
            exact=True,
        )


def _with_usage(sent: Raw | None) -> Raw:
    """Stream options, and usage asked for among them."""
    options = _options.decode(sent) if sent else None
    if not options:
        return _USAGE_ALONE
    return Raw(msgspec.json.encode({**options, "include_usage": True}))


_USAGE_ALONE = Raw(b'{"include_usage":true}')


def error_object(exc: GatewayError, request_id: str) -> dict[str, Any]:
    """OpenAI's error object. openai-python shows only its message, so the id is in it."""
    return {
        "error": {
            "message": f"{exc} (request id: {request_id})",
            "type": exc.type,
            "param": exc.param,
            "code": exc.code,
        }
    }


def error_frame(exc: GatewayError, request_id: str) -> bytes:
    """The last words of a broken stream: no `[DONE]` follows, so no client takes it for whole."""
    return b"data: " + orjson.dumps(error_object(exc, request_id)) + b"\n\n"


def _failure(document: dict[str, Any]) -> StreamFailed | None:
    error = document.get("error")
    if error:
        told = error if isinstance(error, dict) else {}
        code = told.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        return failure(status, told.get("message"))
    for choice in document.get("choices") or ():
        if isinstance(choice, dict) and choice.get("finish_reason") == "abort":
            return StreamFailed(_ABORTED)
    return None


def limit_lines(standings: Standings) -> bytes:
    """https://platform.openai.com/docs/guides/rate-limits, "Rate limits in headers"."""
    lines = b""
    requests, tokens = standings
    if requests is not None:
        told = requests.limit, requests.remaining, _duration(requests.reset)
        lines = _REQUEST_LINES % told
    if tokens is not None:
        told = tokens.limit, tokens.remaining, _duration(tokens.reset)
        lines += _TOKEN_LINES % told
    return lines


_REQUEST_LINES = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\n"
    b"x-ratelimit-reset-requests: %b\r\n"
)
_TOKEN_LINES = _REQUEST_LINES.replace(b"requests", b"tokens")


def _duration(milliseconds: int) -> bytes:
    """As Go writes one: `120ms`, `1.5s`, `6m0s`, `1h0m0s`; from a minute on in whole seconds."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds if milliseconds else b"0s"
    if milliseconds < 60_000:
        return b"%gs" % (milliseconds / 1000)
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    shown = b"%dm%ds" % (minutes, seconds)
    return b"%dh%b" % (hours, shown) if hours else shown

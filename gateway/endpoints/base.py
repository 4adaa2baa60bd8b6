"""What an API path is to the exchange: how its requests are read and how it speaks."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec
from msgspec import Raw

from gateway.errors import GatewayError, InvalidRequest, TooDeep
from gateway.route import Route
from gateway.settings import Caps
from gateway.terms import Ask, Size, Standings
from gateway.wire import anthropic, caps, fields, openai
from gateway.wire.answer import Translator
from gateway.wire.size import conversation

_object = msgspec.json.Decoder(dict[str, Raw])


class Endpoint(Protocol):
    """One path that is served by a model server."""

    path: ClassVar[str]
    #: Whether tokens are charged; a request always is.
    charges_tokens: ClassVar[bool]
    heartbeat: bytes

    def read(self, body: bytes) -> Ask:
        """The checked top level of a request. Raises InvalidRequest."""

    def translator(self, ask: Ask, route: Route, allowed: Caps) -> Translator:
        """Raises InvalidRequest for a field the caller may not send, or not as large."""

    def status(self, exc: GatewayError) -> int: ...
    def error_object(self, exc: GatewayError, request_id: str) -> dict[str, Any]: ...
    def error_frame(self, exc: GatewayError, request_id: str) -> bytes: ...
    def limit_lines(self, standings: Standings) -> bytes: ...


class Spoken:
    """The OpenAI dialect's way of saying what the gateway itself has to say."""

    heartbeat = openai.HEARTBEAT
    limit_lines = staticmethod(openai.limit_lines)

    def status(self, exc: GatewayError) -> int:
        return exc.status

    def error_object(self, exc: GatewayError, request_id: str) -> dict[str, Any]:
        return openai.error_object(exc, request_id)

    def error_frame(self, exc: GatewayError, request_id: str) -> bytes:
        return openai.error_frame(exc, request_id)


class SpokenToAnthropic(Spoken):
    """The same in the Anthropic dialect."""

    heartbeat = anthropic.HEARTBEAT
    limit_lines = staticmethod(anthropic.limit_lines)

    def status(self, exc: GatewayError) -> int:
        return exc.anthropic_status or exc.status

    def error_object(self, exc: GatewayError, request_id: str) -> dict[str, Any]:
        return anthropic.error_object(exc, request_id)

    def error_frame(self, exc: GatewayError, request_id: str) -> bytes:
        return anthropic.error_frame(exc, request_id)


OPENAI = Spoken()
ANTHROPIC = SpokenToAnthropic()


def speech(path: str) -> Spoken:
    """The dialect of any path, of those that do not exist too."""
    return ANTHROPIC if "/messages" in path else OPENAI


class Reading:
    """How every JSON endpoint reads its request; the subclass names what it must carry."""

    path: ClassVar[str]
    #: The field a request is nothing without.
    required: ClassVar[str]
    streams: ClassVar[bool] = True
    #: The fields in which a caller limits the output, the first of them ours to set.
    output_limits: ClassVar[tuple[str, ...]] = ()
    charges_tokens: ClassVar[bool] = True
    #: How large a request of this shape is.
    measure = staticmethod(conversation)

    def read(self, body: bytes) -> Ask:
        sent = _decoded(body)
        model = self._model(sent)
        stream = "stream" in sent and bool(caps.decode("stream", sent["stream"], caps.BOOL))
        if stream and not self.streams:
            raise InvalidRequest("This endpoint does not stream.", "stream")
        self._require(sent)
        return Ask(model, stream, sent, wants_usage=stream and _wants_usage(sent))

    def allowed_fields(self, ask: Ask, route: Route, allowed: Caps) -> tuple[dict[str, Raw], Size]:
        """What may go to the server, and how large it is."""
        if self.path not in route.pool.kind.paths:
            raise InvalidRequest(
                f"The model `{ask.model}` is served by an OpenAI-compatible server that does not "
                f"speak {self.path}; ask for it on /v1/chat/completions.",
                "model",
            )
        if not route.pool.speaks(self.path):
            raise InvalidRequest(f"No server of the model `{ask.model}` has {self.path}.", "model")
        keep = route.pool.kind.name != "vllm"
        passed, carried = fields.checked(self.path, ask.fields, allowed, keep_unknown=keep)
        limit = self._limit_output(passed, allowed) if self.output_limits else 0
        return passed, self.measure(passed, carried, limit)

    def _model(self, sent: dict[str, Raw]) -> str:
        if "model" not in sent:
            raise InvalidRequest("`model` is missing.", "model", "missing_required_parameter")
        return caps.decode("model", sent["model"], caps.TEXT)

    def _require(self, sent: dict[str, Raw]) -> None:
        if self.required not in sent:
            raise InvalidRequest(
                f"`{self.required}` is missing.", self.required, "missing_required_parameter"
            )

    def _limit_output(self, passed: dict[str, Raw], allowed: Caps) -> int | None:
        """The most tokens one answer may have: of two limits the larger, as the engine may go by
        either. None for no limit.
        """
        cap = allowed.max_tokens.cap
        largest: int | None = None
        for name in self.output_limits:
            wanted = caps.output_tokens(name, passed[name]) if name in passed else None
            if wanted is None:
                continue
            if cap is not None and wanted > cap:
                if allowed.max_tokens.over == "refuse":
                    raise InvalidRequest(
                        f"`{name}`: {wanted} is over this gateway's cap of {cap}.", name
                    )
                wanted = cap
                passed[name] = Raw(msgspec.json.encode(cap))
            largest = max(largest or 0, wanted)
        if cap is not None and largest is None:
            passed[self.output_limits[0]] = Raw(msgspec.json.encode(cap))
            return cap
        return largest


def _decoded(body: bytes) -> dict[str, Raw]:
    try:
        sent = _object.decode(body)
    except msgspec.ValidationError:
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json") from None
    except msgspec.DecodeError as exc:
        raise InvalidRequest(f"The body is not valid JSON: {exc}.", code="invalid_json") from None
    except RecursionError:
        raise TooDeep from None
    return sent


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


_stream_options = msgspec.json.Decoder(_StreamOptions | None)


def _wants_usage(sent: dict[str, Raw]) -> bool:
    if "stream_options" not in sent:
        return False
    options = caps.decode("stream_options", sent["stream_options"], _stream_options)
    return bool(options and options.include_usage)

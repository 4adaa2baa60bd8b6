"""The answers of vLLM 0.32, without a model: same shapes, always the same words.

The shapes are those of tests/transcripts. Only what a gateway reads or edits is modelled: usage,
`n`, ids, errors; no tools, no logprobs, no sampling.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from struct import pack
from typing import Any

from tests.fakes.script import JSON, SERVER, Head, Received, Send, Step, plain, render, stream

WORDS = ("Hello", " from", " the", " engine", ",", " all", " is", " well")
CREATED = 1795229078
FINGERPRINT = "vllm-0.32.0-2264d1e3"
_CORS = (("vary", "Origin"),)
# What the engine sends as null unless asked for.
_CHAT_NULLS = dict.fromkeys(
    ("service_tier", "prompt_logprobs", "prompt_token_ids", "prompt_text")
    + ("kv_transfer_params", "ec_transfer_params", "metrics")
)
_TEXT_NULLS = dict.fromkeys(("service_tier", "kv_transfer_params", "ec_transfer_params", "metrics"))
_MESSAGE_NULLS = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
_CHOICE_NULLS = dict.fromkeys(("logprobs", "stop_reason", "token_ids", "routed_experts"))
_DONE = b"data: [DONE]\n\n"
_REQUESTS = {
    "/v1/chat/completions": "ChatCompletionRequest",
    "/v1/completions": "CompletionRequest",
    "/v1/messages": "AnthropicMessagesRequest",
    "/v1/messages/count_tokens": "AnthropicCountTokensRequest",
    "/v1/embeddings": "EmbeddingCompletionRequest",
}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


class Vllm:
    """One engine process: the names it serves, its key, and its gauges and counters."""

    def __init__(self, models: Sequence[str], api_key: str | None) -> None:
        self.models = models
        self.api_key = api_key
        # Mutable: a test may set any of them; the first and the last follow the script.
        self.metrics: dict[str, float] = {
            "vllm:num_requests_running": 0,
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0,
            "vllm:iteration_tokens_total_count": 0,
        }
        self._gets: dict[str, Callable[[], list[Step]]] = {
            "/v1/models": lambda: _json(200, {"object": "list", "data": self._cards()}),
            "/openapi.json": lambda: _json(200, _openapi()),
            "/version": lambda: _json(200, {"version": "0.32.0"}),
            "/health": lambda: [Send(render([Head(200, [*SERVER, ("content-length", "0")])]))],
            "/metrics": self._exposition,
        }
        self._posts: dict[str, Callable[[Received, dict[str, Any]], list[Step]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/v1/embeddings": self._embeddings,
            "/v1/messages": self._messages,
            "/v1/messages/count_tokens": _count_tokens,
        }

    def answer(self, request: Received) -> list[Step]:
        """What an untouched engine answers to this request."""
        path = request.path
        key = request.headers.get("authorization")
        if self.api_key and path.startswith("/v1") and key != f"Bearer {self.api_key}":
            return _json(401, {"error": "Unauthorized"})
        if path in self._gets and request.method == "GET":
            return self._gets[path]()
        if path in self._posts and request.method == "POST":
            try:
                body = _read(request)
                if body.get("model", self.models[0]) not in self.models:
                    message = f"The model `{body['model']}` does not exist."
                    raise Refusal(404, "NotFoundError", message, "model")
                return self._posts[path](request, body)
            except Refusal as refusal:
                return _refuse(refusal, anthropic="/messages" in path)
        known = path in self._gets or path in self._posts
        return _json(
            405 if known else 404, {"detail": "Method Not Allowed" if known else "Not Found"}
        )

    def _cards(self) -> list[dict[str, Any]]:
        card = {"object": "model", "created": CREATED, "owned_by": "vllm", "root": "/models/it"}
        return [{"id": name, **card, "parent": None, "max_model_len": 4096} for name in self.models]

    def _top(self, request: Received, prefix: str, kind: str) -> dict[str, Any]:
        # The first name served, whichever alias was asked for.
        named = {"created": CREATED, "model": self.models[0]}
        return {"id": _id(prefix, request), "object": kind, **named}

    def _exposition(self) -> list[Step]:
        labels = f'{{engine="0",model_name="{self.models[0]}"}}'
        text = "".join(f"{name}{labels} {float(v)}\n" for name, v in self.metrics.items())
        kind = ("content-type", "text/plain; version=1.0.0; charset=utf-8")
        length = ("content-length", str(len(text)))
        return [Send(render([Head(200, [*SERVER, length, kind, *_CORS])]) + text.encode())]

    def _chat(self, request: Received, body: dict[str, Any]) -> list[Step]:
        words, reason = _generated(body)
        top = self._top(request, "chatcmpl", "chat.completion")
        n = body.get("n") or 1
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(words), **_MESSAGE_NULLS}
            last = {"message": message, "finish_reason": reason, **_CHOICE_NULLS}
            choices = [{"index": i, **last} for i in range(n)]
            return _whole(top, choices, body, len(words) * n, _CHAT_NULLS)
        top["object"] = "chat.completion.chunk"
        role = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        first = [{"index": i, **role, "finish_reason": None} for i in range(n)]
        prompt = {"prompt_token_ids": None, "prompt_text": None}
        opening = [_event({**top, "choices": [choice], **prompt}) for choice in first]
        choices = [
            {"index": i, "delta": {"content": word}, "logprobs": None, **_finish(at, words, reason)}
            for at, word in enumerate(words)
            for i in range(n)
        ]
        return _openai_stream(opening, top, choices, body, len(words) * n)

    def _completions(self, request: Received, body: dict[str, Any]) -> list[Step]:
        words, reason = _generated(body)
        top = self._top(request, "cmpl", "text_completion")
        if not body.get("stream"):
            prompt = {"prompt_logprobs": None, "prompt_token_ids": None}
            whole = {"index": 0, "text": "".join(words), "finish_reason": reason}
            choices = [{**whole, **_CHOICE_NULLS, **prompt}]
            return _whole(top, choices, body, len(words), _TEXT_NULLS)
        nulls = dict.fromkeys(("logprobs", "stop_reason", "prompt_token_ids"))
        choices = [
            {"index": 0, "text": word, **nulls, **_finish(at, words, reason)}
            for at, word in enumerate(words)
        ]
        return _openai_stream([], top, choices, body, len(words))

    def _embeddings(self, request: Received, body: dict[str, Any]) -> list[Step]:
        given = body.get("input", "")
        texts = given if isinstance(given, list) and isinstance(given[0], str | list) else [given]
        data = []
        for index, text in enumerate(texts):
            digest = blake2b(json.dumps(text).encode(), digest_size=4).digest()
            vector: Any = [(byte - 128) / 128 for byte in digest]
            if body.get("encoding_format") == "base64":
                vector = b64encode(pack("<4f", *vector)).decode()
            data.append({"index": index, "object": "embedding", "embedding": vector})
        top = self._top(request, "embd", "list")
        nulls = {"prompt_tokens_details": None, "completion_tokens_details": None}
        usage = {**_usage(body, 0), **nulls}
        return _json(200, {**top, "data": data, "usage": usage})

    def _messages(self, request: Received, body: dict[str, Any]) -> list[Step]:
        words, reason = _generated(body)
        stop = "max_tokens" if reason == "length" else "end_turn"
        cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        start = {"input_tokens": prompt_tokens(body), "output_tokens": 0}
        usage = {**start, "output_tokens": len(words), **cache}
        top = {"id": _id("chatcmpl", request), "type": "message", "role": "assistant"}
        if not body.get("stream"):
            content = [{"type": "text", "text": "".join(words)}]
            tail = {"model": self.models[0], "stop_reason": stop, "usage": usage}
            return _json(200, {**top, "content": content, **tail})
        unfinished = {"stop_reason": None, "stop_sequence": None, "usage": start}
        message: dict[str, Any] = {**top, "content": [], "model": self.models[0], **unfinished}
        block: dict[str, Any] = {"content_block": {"type": "text", "text": ""}, "index": 0}
        deltas: list[dict[str, Any]] = [
            {"delta": {"type": "text_delta", "text": word}, "index": 0} for word in words
        ]
        ended = {"delta": {"stop_reason": stop, "stop_sequence": None}, "usage": usage}
        events = [
            _named("message_start", {"message": message}),
            _named("content_block_start", block),
            *(_named("content_block_delta", delta) for delta in deltas),
            _named("content_block_stop", {"index": 0}),
            _named("message_delta", ended),
            _named("message_stop", {}),
        ]
        return stream(events, headers=_CORS)


def prompt_tokens(body: dict[str, Any]) -> int:
    """The size of a prompt in this engine's tokens: words of the JSON that carries it."""
    asked = [body.get(name) for name in ("system", "messages", "prompt", "input", "tools")]
    return len(json.dumps([part for part in asked if part]).split())


def _generated(body: dict[str, Any]) -> tuple[Sequence[str], str]:
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(WORDS) + 1
    return WORDS[:limit], "length" if limit <= len(WORDS) else "stop"


def _usage(body: dict[str, Any], completion: int) -> dict[str, Any]:
    prompt = prompt_tokens(body)
    details = {"prompt_tokens_details": {"cached_tokens": 0, "created_cache_tokens": 0}}
    total = {"total_tokens": prompt + completion, "completion_tokens": completion}
    return {"prompt_tokens": prompt, **total, **details}


def _finish(at: int, words: Sequence[str], reason: str) -> dict[str, Any]:
    if at < len(words) - 1:
        return {"finish_reason": None, "token_ids": None}
    return {"finish_reason": reason, "stop_reason": None, "token_ids": None}


def _whole(
    top: dict[str, Any],
    choices: Sequence[dict[str, Any]],
    body: dict[str, Any],
    completion: int,
    nulls: dict[str, None],
) -> list[Step]:
    usage = {**_usage(body, completion), "completion_tokens_details": None}
    usage["prompt_tokens_details"]["multimodal_tokens"] = None
    tail = {"system_fingerprint": FINGERPRINT, "usage": usage, **nulls}
    return _json(200, {**top, "choices": choices, **tail})


def _openai_stream(
    opening: list[bytes],
    top: dict[str, Any],
    choices: Iterable[dict[str, Any]],
    body: dict[str, Any],
    completion: int,
) -> list[Step]:
    """The fingerprint is on the last event: the one with the usage, or each with a finish."""
    printed = {"system_fingerprint": FINGERPRINT}
    counted = (body.get("stream_options") or {}).get("include_usage")
    events = []
    for choice in choices:
        last = choice["finish_reason"] is not None and not counted
        events.append(_event({**top, "choices": [choice], **(printed if last else {})}))
    if counted:
        usage = {"usage": _usage(body, completion), **printed}
        events.append(_event({**top, "choices": [], **usage}))
    return stream([*opening, *events, _DONE], headers=_CORS)


def _count_tokens(request: Received, body: dict[str, Any]) -> list[Step]:
    count = prompt_tokens(body)
    context = {"original_input_tokens": count}
    return _json(200, {"input_tokens": count, "context_management": context})


def _read(request: Received) -> dict[str, Any]:
    if request.headers.get("content-type") != "application/json":
        message = (
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        )
        raise Refusal(400, "Bad Request", message)
    try:
        body = request.json()
    except ValueError as exc:
        raise Refusal(400, "Bad Request", f"1 validation error:\n  {exc}", "body.1") from exc
    if not isinstance(body, dict):
        raise Refusal(400, "Bad Request", "1 validation error:\n  not an object", "body")
    if body.get("stream_options") and not body.get("stream"):
        message = "Stream options can only be defined when `stream=True`."
        raise Refusal(400, "BadRequestError", message, "stream_options")
    return body


def _refuse(refusal: Refusal, *, anthropic: bool) -> list[Step]:
    error = {"message": str(refusal), "type": refusal.kind}
    # What fails validation has the OpenAI shape on every route.
    if anthropic and refusal.kind != "Bad Request":
        return _json(refusal.status, {"type": "error", "error": error})
    return _json(
        refusal.status, {"error": {**error, "param": refusal.param, "code": refusal.status}}
    )


def _openapi() -> dict[str, Any]:
    salt = {"anyOf": [{"type": "string", "maxLength": 1024, "minLength": 1}, {"type": "null"}]}
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for path, name in _REQUESTS.items():
        salted = {} if path.endswith("count_tokens") else {"cache_salt": salt}
        model = {"type": "string", "title": "Model"}
        schemas[name] = {"type": "object", "properties": {"model": model, **salted}}
        content = {JSON[1]: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        paths[path] = {"post": {"requestBody": {"content": content, "required": True}}}
    info = {"title": "FastAPI", "version": "0.1.0"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _id(prefix: str, request: Received) -> str:
    known = request.headers.get("x-request-id")
    return f"{prefix}-{known or blake2b(request.body, digest_size=8).hexdigest()}"


def _json(status: int, document: Any) -> list[Step]:
    return plain(status, _dumps(document), _CORS)


def _event(document: Any) -> bytes:
    return b"data: %b\n\n" % _dumps(document)


def _named(name: str, document: dict[str, Any]) -> bytes:
    return b"event: %b\n%b" % (name.encode(), _event({"type": name, **document}))


def _dumps(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

"""What a caller gets through the gateway is, byte for byte, what the engine says.

Left out of the comparison are ids, times and the model's name. Events are compared one by one.
"""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.e2e.conftest import CHAT, EMBEDDING, RunningGateway
from tests.e2e.engines import Engines, RealEngine
from tests.fakes.client import Answer, request

pytestmark = pytest.mark.e2e

TALK = "/v1/chat/completions"
COMPLETE = "/v1/completions"
EMBED = "/v1/embeddings"
MESSAGE = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
_TRIES = 8

_HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello to Zoë."}]}
_FIXED: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
_USAGE = {"stream_options": {"include_usage": True}}
_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
_TOOL: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "weather", "parameters": _CITY}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "max_tokens": 96,
}
_USE: dict[str, Any] = {
    "tools": [{"name": "weather", "input_schema": _CITY}],
    "tool_choice": {"type": "tool", "name": "weather"},
    "max_tokens": 96,
}
_CHOICE = {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY}}
_LOGPROBS = {"logprobs": True, "top_logprobs": 3}
# Greedy answers would all be one: several need chance, which the seed makes the same twice.
_SEVERAL = {"n": 3, "temperature": 1, "seed": 7}
_SENTENCES = {"input": ["A cat sleeps.", "Zoë naps.", "Rates rise."]}

PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (TALK, {**_HELLO, **_FIXED}),
    "chat: forced tool": (TALK, {**_HELLO, **_FIXED, **_TOOL}),
    "chat: json schema": (TALK, {**_HELLO, **_FIXED, "max_tokens": 96, "response_format": _CHOICE}),
    "chat: logprobs": (TALK, {**_HELLO, **_FIXED, **_LOGPROBS}),
    "chat: several": (TALK, {**_HELLO, **_FIXED, **_SEVERAL}),
    "completions": (COMPLETE, {"prompt": "Once upon", **_FIXED}),
    "completions: several prompts": (COMPLETE, {"prompt": ["One", "Two"], "echo": True, **_FIXED}),
    "completions: logprobs": (COMPLETE, {"prompt": "Once upon", "logprobs": 2, **_FIXED}),
    "embeddings": (EMBED, _SENTENCES),
    "embeddings: base64": (EMBED, {**_SENTENCES, "encoding_format": "base64"}),
    "messages": (MESSAGE, {**_HELLO, **_FIXED, "system": "Be brief."}),
    "messages: forced tool": (MESSAGE, {**_HELLO, **_FIXED, **_USE}),
    "count_tokens": (COUNT, _HELLO),
}
STREAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (TALK, {**_HELLO, **_FIXED}),
    "chat: usage": (TALK, {**_HELLO, **_FIXED, **_USAGE}),
    "chat: running usage": (
        TALK,
        {
            **_HELLO,
            **_FIXED,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ),
    "chat: forced tool": (TALK, {**_HELLO, **_FIXED, **_TOOL, **_USAGE}),
    "chat: json schema": (TALK, {**_HELLO, **_FIXED, "max_tokens": 96, "response_format": _CHOICE}),
    "chat: logprobs": (TALK, {**_HELLO, **_FIXED, **_LOGPROBS}),
    "chat: several": (TALK, {**_HELLO, **_FIXED, **_SEVERAL, **_USAGE}),
    "completions": (COMPLETE, {"prompt": "Once upon", **_FIXED}),
    "completions: usage": (COMPLETE, {"prompt": "Once upon", **_FIXED, **_USAGE}),
    "completions: logprobs": (COMPLETE, {"prompt": "Once upon", "logprobs": 2, **_FIXED}),
    "messages": (MESSAGE, {**_HELLO, **_FIXED, "system": "Be brief."}),
    "messages: forced tool": (MESSAGE, {**_HELLO, **_FIXED, **_USE}),
}


@pytest.mark.parametrize("case", PLAIN)
async def test_a_plain_answer_is_the_engine_s_own(
    case: str, gateway: RunningGateway, engines: Engines
) -> None:
    path, body = PLAIN[case]
    ours, theirs = await _both(gateway, engines, path, body)
    assert _blank(ours.body) == _blank(theirs.body)


@pytest.mark.parametrize("case", STREAMED)
async def test_a_stream_is_the_engine_s_own_event_by_event(
    case: str, gateway: RunningGateway, engines: Engines
) -> None:
    path, body = STREAMED[case]
    # Behind with its work, the engine joins tokens in one event: such a pair is asked for again.
    for _ in range(_TRIES):
        ours, theirs = await _both(gateway, engines, path, {**body, "stream": True})
        if _events(ours) == _events(theirs):
            break
    assert _events(ours) == _events(theirs)


async def _both(
    gateway: RunningGateway, engines: Engines, path: str, body: dict[str, Any]
) -> tuple[Answer, Answer]:
    """The same question through the gateway and past it, each with its prefix cache warm."""
    name, engine = (EMBEDDING, engines.embedding) if path == EMBED else (CHAT, engines.chat)
    for _ in range(2):
        ours = await _through(gateway, path, {**body, "model": name})
        theirs = await _past(engine, path, body)
    for answer in (ours, theirs):
        assert answer.status == 200, answer.body
        assert answer.complete
    assert json.dumps(name).encode() in ours.body or path == COUNT
    return ours, theirs


async def _through(gateway: RunningGateway, path: str, body: dict[str, Any]) -> Answer:
    sent = json.dumps(body).encode()
    return await request(gateway.port, "POST", path, gateway.headers, sent, patience=60)


async def _past(engine: RealEngine, path: str, body: dict[str, Any]) -> Answer:
    """The engine's own. The gateway always asks for usage, and keeps it to itself if the caller
    did not: the engine is asked the same way, since its fingerprint is then in that event.
    """
    if not body.get("stream") or path == MESSAGE or "stream_options" in body:
        return await engine.ask(path, body)
    answer = await engine.ask(path, {**body, **_USAGE})
    told = b"".join(re.findall(rb"data: [^\n]*\"choices\":\[\][^\n]*\n\n", answer.body))
    assert told
    return replace(answer, body=answer.body.replace(told, b""))


def _blank(body: bytes) -> bytes:
    return re.sub(rb'"(id|created|model)":\s*("[^"]*"|\d+)', rb'"\1":0', body)


def _events(answer: Answer) -> list[bytes]:
    """Blanked, and sorted by choice: which of several goes first is a matter of chance."""
    events = _blank(answer.body).split(b"\n\n")
    assert events.pop() == b""
    return sorted(events, key=lambda event: int((re.search(rb'"index":(\d+)', event) or b"00")[1]))

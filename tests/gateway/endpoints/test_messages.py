"""Messages: Anthropic's request as it is, and its stream without words of ours."""

from typing import Any

import orjson

from gateway.endpoints.messages import Messages
from gateway.settings import Caps, MaxTokens
from gateway.terms import Size
from tests.gateway.endpoints import sized, upstream

REQUEST: dict[str, Any] = {
    "model": "m",
    "max_tokens": 32000,
    "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "metadata": {"user_id": "u"},
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "stop_sequences": ["\n"],
    "stream": True,
}


def test_a_request_passes_as_it_is_but_for_the_model() -> None:
    assert upstream(Messages(), **REQUEST) == {**REQUEST, "model": "upstream"}


def test_the_output_is_clamped() -> None:
    body = upstream(Messages(), Caps(max_tokens=MaxTokens(cap=100)), **REQUEST)
    assert body["max_tokens"] == 100


def test_fields_of_other_dialects_are_left_out() -> None:
    body = upstream(Messages(), **REQUEST, n=3, stream_options={}, betas=["x"])
    assert body == {**REQUEST, "model": "upstream"}


def test_a_request_is_its_conversation_and_its_tools() -> None:
    prompted = (REQUEST[name] for name in ("messages", "system", "tools"))
    text = sum(len(orjson.dumps(value)) for value in prompted)
    assert sized(Messages(), **REQUEST) == Size(text, output_limit=32000)

"""What coding agents and the SDKs really put on the wire works as they send it."""

import json
from typing import Any

import pytest

from tests.e2e.conftest import CHAT, RunningGateway
from tests.fakes.client import Answer, request

pytestmark = pytest.mark.e2e

HEADERS = [
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("anthropic-dangerous-direct-browser-access", "true"),
    ("anthropic-version", "2023-06-01"),
    (
        "anthropic-beta",
        "claude-code-20250219,oauth-2025-04-20,interleaved-thinking-2025-05-14,"
        "fine-grained-tool-streaming-2025-05-14,context-management-2025-06-27,"
        "prompt-caching-scope-2026-01-05,effort-2025-11-24",
    ),
    ("content-type", "application/json"),
    ("user-agent", "claude-cli/2.1.0 (external, cli)"),
    ("x-app", "cli"),
    ("x-stainless-arch", "x64"),
    ("x-stainless-helper-method", "stream"),
    ("x-stainless-lang", "js"),
    ("x-stainless-os", "Linux"),
    ("x-stainless-package-version", "0.70.0"),
    ("x-stainless-retry-count", "0"),
    ("x-stainless-runtime", "node"),
    ("x-stainless-runtime-version", "v24.3.0"),
    ("x-stainless-timeout", "600"),
]
_CACHED = {"type": "ephemeral"}
_BILLING = "x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli;"


def _body(size: int) -> dict[str, Any]:
    """A turn of a coding agent: some blocks are cached, tools are many, nearly all is tools."""
    described = "Reads one file of the working tree and returns its lines with their numbers. "
    tool = {
        "description": described * 20,
        "input_schema": {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {
                "path": {"type": "string", "description": "An absolute path"},
                "limit": {"type": "number", "minimum": 1},
            },
            "required": ["path"],
            "additionalProperties": False,
        },
    }
    count = max(1, size // len(json.dumps(tool)))
    return {
        "model": CHAT,
        "max_tokens": 32,
        "stream": True,
        "temperature": 1,
        "metadata": {"user_id": "user_0123456789abcdef_account__session_01234567"},
        "system": [
            {"type": "text", "text": _BILLING},
            {"type": "text", "text": "You help with code.", "cache_control": _CACHED},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"},
                    {"type": "text", "text": "What is here?", "cache_control": _CACHED},
                ],
            },
            {"role": "system", "content": "The working tree has 7 files."},
        ],
        "tools": [{"name": f"read_{number}", **tool} for number in range(count)],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }


async def _ask(
    gateway: RunningGateway, method: str, path: str, body: dict[str, Any] | None = None
) -> Answer:
    headers = [*HEADERS, ("x-api-key", gateway.key), ("authorization", f"Bearer {gateway.key}")]
    sent = None if body is None else json.dumps(body).encode()
    return await request(gateway.port, method, path, headers, sent, patience=60)


async def test_the_first_question_whether_anyone_is_there(gateway: RunningGateway) -> None:
    answer = await _ask(gateway, "HEAD", "/")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("size", [0, 75_000], ids=["small", "75 kB of tools"])
async def test_a_turn_of_a_coding_agent_is_answered(gateway: RunningGateway, size: int) -> None:
    body = _body(size)
    assert len(json.dumps(body)) >= size
    answer = await _ask(gateway, "POST", "/v1/messages?beta=true", body)
    assert answer.status == 200, answer.body
    assert answer.headers.get("content-encoding") is None
    assert answer.headers.get("content-type") == "text/event-stream; charset=utf-8"
    events = answer.body.split(b"\n\n")
    kinds = [event.splitlines()[0].removeprefix(b"event: ").decode() for event in events if event]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert "error" not in kinds


async def test_the_tokens_of_such_a_turn_are_counted(gateway: RunningGateway) -> None:
    assert await _count(gateway, _body(75_000)) > 10_000


async def test_a_system_message_among_the_messages_is_read(gateway: RunningGateway) -> None:
    """The engine takes it for a turn of its own: it counts, wherever it stands."""
    with_it = _body(0)
    without = {**with_it, "messages": with_it["messages"][:1]}
    assert await _count(gateway, with_it) > await _count(gateway, without) + 4


async def _count(gateway: RunningGateway, turn: dict[str, Any]) -> int:
    body = {name: turn[name] for name in ("model", "system", "messages", "tools")}
    answer = await _ask(gateway, "POST", "/v1/messages/count_tokens?beta=true", body)
    assert answer.status == 200, answer.body
    tokens: int = answer.json()["input_tokens"]
    return tokens


async def test_models_are_listed_as_the_agent_asks(gateway: RunningGateway) -> None:
    answer = await _ask(gateway, "GET", "/v1/models?limit=1000")
    assert answer.status == 200
    assert {"type", "id", "display_name", "created_at"} <= set(answer.json()["data"][0])


async def test_the_sdks_own_headers_pass_harmlessly(gateway: RunningGateway) -> None:
    extra = [("x-stainless-read-timeout", "600"), ("x-stainless-async", "async:asyncio")]
    body = json.dumps(
        {"model": CHAT, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    ).encode()
    answer = await request(
        gateway.port, "POST", "/v1/chat/completions", [*gateway.headers, *extra], body
    )
    assert answer.status == 200

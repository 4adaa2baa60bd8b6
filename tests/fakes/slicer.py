"""Streams as dialects write them, and the slicer that cuts them without regard to what they say."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from tests.fakes.script import Send, Sleep, Step

#: Text that takes one to four bytes a character, or an escape.
SAID = (
    "a",
    " the",
    "\n\n",
    '"',
    "\\",
    "é",
    "ß",
    "日本語",
    "Привет",
    "🙂",
    "\u2028",
    "data: [DONE]",
)


def sliced(
    data: bytes, chance: random.Random, *, most: int = 16, gap: float = 0.005
) -> Iterator[Step]:
    """These bytes in writes of 1 to `most`; half of them up to `gap` seconds after the last one."""
    at = 0
    while at < len(data):
        size = chance.randint(1, most)
        if chance.random() < 0.5:
            yield Sleep(chance.uniform(0, gap))
        yield Send(data[at : at + size])
        at += size


def chat(chance: random.Random, count: int) -> list[bytes]:
    """`count` events of a chat: role, words, finish, usage, terminator."""
    top = {
        "id": f"chatcmpl-{chance.getrandbits(64):016x}",
        "object": "chat.completion.chunk",
        "created": 1795000000,
        "model": "tiny",
    }
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": _text(chance)}, None) for _ in range(count - 4)]
    deltas += [({"content": ""}, "stop")]
    said: list[dict[str, Any]] = [
        {**top, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    usage = {"prompt_tokens": 7, "total_tokens": 7 + count, "completion_tokens": count}
    said.append({**top, "choices": [], "usage": usage})
    return [*(b"data: %b\n\n" % _dumped(event) for event in said), b"data: [DONE]\n\n"]


def messages(chance: random.Random, count: int) -> list[bytes]:
    """`count` events of a message: start, block, words, stop."""
    usage = {"input_tokens": 7, "output_tokens": 0}
    message: dict[str, Any] = {
        "id": f"msg_{chance.getrandbits(64):016x}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "tiny",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    said: list[tuple[str, dict[str, Any]]] = [
        ("message_start", {"message": message}),
        ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
    ]
    for _ in range(count - 5):
        delta = {"type": "text_delta", "text": _text(chance)}
        said.append(("content_block_delta", {"index": 0, "delta": delta}))
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    said += [
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": ended, "usage": {**usage, "output_tokens": count}}),
        ("message_stop", {}),
    ]
    return [
        b"event: %b\ndata: %b\n\n" % (name.encode(), _dumped({"type": name, **more}))
        for name, more in said
    ]


def crlf(events: list[bytes]) -> list[bytes]:
    """The same events with the other line end."""
    return [event.replace(b"\n", b"\r\n") for event in events]


def _text(chance: random.Random) -> str:
    """A word, and one time in ten so much that a heartbeat comes due before it is whole."""
    words = 60 if chance.random() < 0.1 else chance.randint(1, 3)
    return "".join(chance.choice(SAID) for _ in range(words))


def _dumped(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

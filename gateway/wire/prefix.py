"""Which conversation a request goes on with, seen from what all its turns have in common.

The name the caller gives it, or a hash of what it began with: system prompt and tools, then message
by message up to the first one of the user. Each turn repeats these, so each has the same hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

import msgspec
from msgspec import Raw

#: How much of one text is hashed, in bytes, and how many messages before the first of the user:
#: conversations that are still the same there have a long prefix in common.
_LONGEST = 16 * 1024
_MOST = 16
#: How much of a prompt that is not messages. A shorter one may still grow at its end, and is not
#: worth a place in any cache.
_PROMPT = 1024
#: Claude Code's system prompt begins with a text that differs from turn to turn. vLLM leaves it out
#: of the prompt (`AnthropicServingMessages._convert_system_message`).
_BILLING = b'"x-anthropic-billing-header'
_QUOTE, _LIST = b'"['


class _Message(msgspec.Struct):
    role: str = ""
    content: Raw = Raw(b"null")


_items = msgspec.json.Decoder(list[Raw])
_message = msgspec.json.Decoder(_Message)
_parts = msgspec.json.Decoder(list[dict[str, Raw]])


def affinity(path: str, sent: Mapping[str, Raw]) -> bytes:
    """The same for all turns of a conversation; empty where a request belongs to none.

    `sent` is the top level of the body. Who the user is (`metadata.user_id`) is no conversation.
    What is wrong with a request is the engine's to say.
    """
    stable = _STABLE.get(path)
    if stable is None:
        return b""
    named = memoryview(sent.get("prompt_cache_key", _NONE))
    if len(named) > 2 and named[0] == _QUOTE:
        return blake2b(named, digest_size=16, person=b"named").digest()
    try:
        return stable(sent)
    except (msgspec.DecodeError, RecursionError):
        return b""


def _conversation(sent: Mapping[str, Raw]) -> bytes:
    chain = _Chain()
    chain.content(b"system", sent.get("system", _NONE))
    chain.add(b"tools", sent.get("tools", _NONE))
    for item in _items.decode(sent.get("messages", _EMPTY))[:_MOST]:
        message = _message.decode(item)
        chain.content(message.role.encode(), message.content)
        if message.role == "user":
            return chain.digest()
    return b""  # without one it is not known yet which conversation it will be


def _completion(sent: Mapping[str, Raw]) -> bytes:
    prompt = memoryview(sent.get("prompt", _NONE))
    if len(prompt) <= _PROMPT:
        return b""
    return blake2b(prompt[:_PROMPT], digest_size=16, person=b"prompt").digest()


class _Chain:
    """A hash over pieces, each with its name and its length. Mutable state: the hash."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=16, person=b"conversation")

    def content(self, role: bytes, content: Raw) -> None:
        """Of a message: a text, or a list of parts. A text alone is the same as a text.

        Without `cache_control`, which callers move along from message to message.
        """
        written = memoryview(content)
        if written[0] != _LIST:
            self._text(role, written)
            return
        for part in _parts.decode(content):
            for name, value in part.items():
                if name == "text":
                    self._text(role, memoryview(value))
                elif name not in ("cache_control", "type"):
                    self.add(role + b"." + name.encode(), value)

    def _text(self, role: bytes, text: memoryview) -> None:
        if text[: len(_BILLING)] != _BILLING:
            self.add(role, text)

    def add(self, name: bytes, value: Raw | memoryview) -> None:
        piece = memoryview(value)[:_LONGEST]
        self._hash.update(b"%b %d " % (name, len(piece)))
        self._hash.update(piece)

    def digest(self) -> bytes:
        return self._hash.digest()


_NONE, _EMPTY = Raw(b"null"), Raw(b"[]")
_STABLE: dict[str, Callable[[Mapping[str, Raw]], bytes]] = {
    "/v1/chat/completions": _conversation,
    "/v1/messages": _conversation,
    "/v1/completions": _completion,
}

"""Pictures, sound and files inside messages: only as `data:` URLs within the caps, unless allowed.

A media URL makes the engine fetch it, so that a caller could reach what the engine can reach
(vLLM CVE-2025-6242). One parser decides, and hosts are compared exactly.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw

from gateway.errors import InvalidRequest
from gateway.settings import Caps

#: Keys of a content part that hold media, in both dialects and in vLLM's own additions.
_KEYS = frozenset(
    """image_url audio_url video_url image input_image image_pil image_embeds audio_embeds
    video_embeds audio input_audio video file source""".split()
)
_URL_KEYS = ("url", "image_url", "audio_url", "video_url", "file_data", "data")
_DATA_URL = re.compile(r"data:[a-z]+/[a-z0-9.+-]+(?:;[a-z0-9=.+-]+)*;base64,")
#: What a payload is made of (RFC 4648 §4); in a URL also of the other alphabet (§5).
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_OF_URLS = _BASE64 + b"_-"
_BY_ITSELF = _BASE64 + string.whitespace.encode()
_HOST = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\Z")


#: A part of these keys and types alone is text or a tool's doing, and needs no closer look.
_PLAIN_KEYS = frozenset(
    "type text cache_control id name input tool_use_id is_error thinking signature".split()
)
_PLAIN_TYPES = frozenset({b'"text"', b'"tool_use"', b'"tool_result"', b'"thinking"'})


class _Message(msgspec.Struct, gc=False):
    content: Raw = Raw(b"null")


class Carried(NamedTuple):
    """What a field carries besides text: bytes of its JSON, and the prompt tokens they become."""

    bytes: int
    tokens: int


NOTHING = Carried(0, 0)
_EARLY = 4096

#: Prompt tokens of one part. An image of a megapixel: 1,024 of Qwen3-VL (32 x 32 pixels each),
#: about 1,330 of Claude (Anthropic, "Vision": width x height / 750). A video: the 32 frames that
#: vLLM samples (`VideoMediaIO`), 196 each (LLaVA-OneVision).
IMAGE_TOKENS = 1_000
VIDEO_TOKENS = 6_272
#: Sound is heard as 25 tokens a second (Qwen2-Audio), of 16,000 bytes each at 128 kbit/s.
AUDIO_BYTES_PER_TOKEN = 640

_messages = msgspec.json.Decoder(list[_Message] | None)
_content = msgspec.json.Decoder(list[dict[str, Raw]])
_anything = msgspec.json.Decoder()


def none_in(value: Raw, most: int) -> bool:
    """Whether these are messages, at most so many, of which none can hold media: nearly none does,
    and this is cheap to see. Where it is not so they need a closer look.
    """
    try:
        messages = _messages.decode(value) or ()
    except (msgspec.DecodeError, RecursionError):
        return False
    if len(messages) > most:
        return False
    return all(not possible_in(message.content) for message in messages)


def early_in(messages: Raw) -> bool:
    """Whether a payload begins so early that it is seen at once, and need not be looked for."""
    return b";base64," in bytes(memoryview(messages)[:_EARLY])


def possible_in(content: Raw) -> bool:
    """Whether what a message says may hold media."""
    if memoryview(content)[0] not in b"[{":
        return False
    try:
        parts = _content.decode(content)
    except (msgspec.DecodeError, RecursionError):
        return True
    return any(
        not part.keys() <= _PLAIN_KEYS or bytes(part.get("type", b"")) not in _PLAIN_TYPES
        for part in parts
    )


def check(name: str, messages: Raw, allowed: Caps) -> Carried:
    """The media of messages; raises InvalidRequest where the settings do not allow them.

    `messages` is a list of messages or, where vLLM embeds them in batches, a list of such lists.
    """
    listed = _decoded(name, messages)
    flat = [m for item in listed for m in (item if isinstance(item, list) else [item])]
    contents = [m.get("content") for m in flat if isinstance(m, dict)]
    return _unescaped(messages, _check_parts(name, contents, allowed))


def check_content(name: str, content: Raw, allowed: Caps) -> Carried:
    return _unescaped(content, _check_parts(name, [_decoded(name, content)], allowed))


def _unescaped(value: Raw, carried: Carried) -> Carried:
    """A payload's slashes and line ends may be escaped, by one backslash each: all of them go."""
    if carried is NOTHING:
        return NOTHING
    text = bytes(value)
    escapes = text.count(b"\\") if b"\\" in text else 0  # to look is quicker than to count
    return Carried(carried.bytes + escapes, carried.tokens)


def _decoded(name: str, value: Raw) -> Any:
    try:
        return _anything.decode(value)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"`{name}` is not valid JSON or nested too deeply.", name) from None


def _check_parts(name: str, contents: Sequence[Any], allowed: Caps) -> Carried:
    count, size, text, tokens = 0, 0, 0, 0
    for part in _parts(contents):
        if "prompt_embeds" in (part.get("type"), *part) and not allowed.privileged.get(
            "prompt_embeds"
        ):
            raise InvalidRequest(f"`{name}`: `prompt_embeds` is not allowed on this gateway.", name)
        keys = part.keys() & _KEYS
        if keys and part.get("uuid") is not None and not allowed.privileged.get("uuid"):
            raise InvalidRequest(f"`{name}`: a part's `uuid` is not allowed on this gateway.", name)
        for key in keys:
            for url in _texts(key, part[key]):
                decoded = _accepted(name, url, allowed)
                count += 1
                size += decoded
                text += len(url)
                tokens += _tokens(key, decoded)
    media = allowed.media
    if count > media.parts:
        raise InvalidRequest(
            f"`{name}`: {count} media parts are over this gateway's cap of {media.parts}.", name
        )
    if size > media.bytes:
        raise InvalidRequest(
            f"`{name}`: {size} bytes of media are over this gateway's cap of {media.bytes}.", name
        )
    return Carried(text, tokens) if count else NOTHING


def _tokens(key: str, decoded: int) -> int:
    """The prompt tokens of one part under this key; `decoded` bytes are 0 behind a URL."""
    if "audio" in key:
        return decoded // AUDIO_BYTES_PER_TOKEN or IMAGE_TOKENS
    return VIDEO_TOKENS if "video" in key else IMAGE_TOKENS


def _parts(contents: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every content part, those inside tool results included."""
    waiting = [content for content in contents if isinstance(content, list)]
    while waiting:
        for part in waiting.pop():
            if isinstance(part, dict):
                yield part
                if isinstance(part.get("content"), list):
                    waiting.append(part["content"])


def _texts(name: str, value: Any) -> Iterator[str]:
    """The URLs or payloads of one media value: itself, or what its known keys hold.

    Embeddings are several, under whatever keys the model has (vLLM on Qwen2-VL:
    `{"image_embeds": ..., "image_grid_thw": ...}`).
    """
    embedded = name.endswith("_embeds")
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key in value if embedded else _URL_KEYS:
            if key == "data" and not embedded and value.get("type") == "text":
                continue  # Anthropic's plain text document: no media
            if isinstance(value.get(key), str):
                yield value[key]
        if isinstance(value.get("content"), list):
            for part in _parts([value["content"]]):
                for key in part.keys() & _KEYS:
                    yield from _texts(key, part[key])
    elif isinstance(value, list):
        for item in value:
            yield from _texts(name, item)


def _accepted(name: str, text: str, allowed: Caps) -> int:
    """The decoded size in bytes of one payload; raises where it may not be used at all."""
    found = _DATA_URL.match(text)
    if found is not None and _only(_OF_URLS, text, found.end()):
        head = found.group()
        if "jpeg" in head and "video" in head:  # frames glued together (CVE-2026-5497)
            raise InvalidRequest(f"`{name}`: this media type is not allowed.", name)
        return (len(text) - found.end()) * 3 // 4
    if _only(_BY_ITSELF, text, 0):
        return len(text) * 3 // 4
    anywhere = allowed.media.urls == "allow" and not allowed.media.hosts
    if anywhere or _allowed_host(text, allowed.media.hosts):
        return 0
    raise InvalidRequest(
        f"`{name}`: media URLs are not allowed on this gateway; send a `data:` URL.", name
    )


def _only(letters: bytes, text: str, start: int) -> bool:
    """Whether a text has no other letters from `start` on. It may have 32 MiB: each step is at
    memory's speed, and to cut off what stands before would be one more.
    """
    if not text.isascii():
        return False
    written = text.encode()
    return written.translate(None, letters) == written[:start].translate(None, letters)


def _allowed_host(text: str, hosts: Sequence[str]) -> bool:
    if not hosts or not text.startswith("https://") or not text.isprintable():
        return False
    if "\\" in text or "#" in text:  # where parsers differ on what the host is
        return False
    try:
        parsed = urlsplit(text)
        port = parsed.port
    except ValueError:
        return False
    host = parsed.hostname or ""
    return (
        port in (None, 443)
        and "@" not in parsed.netloc
        and _HOST.match(host) is not None
        and host in hosts
    )

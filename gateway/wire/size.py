"""How large a request is, seen from its JSON: lengths and counts, no tokenizer.

A function for each shape of request takes its checked fields, the media they carry, and the
output limit that is left after the caps.
"""

from __future__ import annotations

from msgspec import Raw

from gateway.terms import Size
from gateway.wire.caps import LIST, NUMBER
from gateway.wire.media import Carried

#: What chat templates write into the prompt. A `response_format` is none of it: vLLM makes a
#: grammar of it (`structured_outputs_from_response_format`).
_PROMPTED = frozenset({"messages", "tools", "system", "documents"})


def conversation(fields: dict[str, Raw], carried: Carried, output_limit: int | None) -> Size:
    """Of chat and messages, and of the counting of their tokens."""
    text = _text(fields) - carried.bytes
    return Size(max(text, 0), carried.tokens, output_limit, _number(fields, "n"))


def completion(fields: dict[str, Raw], carried: Carried, output_limit: int | None) -> Size:
    """Each prompt is answered `n` times; `best_of` says how many are written for that."""
    text, ids, prompts = _prompts(fields["prompt"])
    choices = max(_number(fields, "n"), _number(fields, "best_of"))
    return Size(text, ids, output_limit, choices * prompts)


def embedding(fields: dict[str, Raw], carried: Carried, output_limit: int | None) -> Size:
    """All inputs together weigh one; vLLM embeds messages too."""
    text, ids, _ = _prompts(fields["input"]) if "input" in fields else (0, 0, 1)
    text += _text(fields) - carried.bytes
    return Size(max(text, 0), ids + carried.tokens, output_limit, 1)


def _text(fields: dict[str, Raw]) -> int:
    return sum([len(fields[name]) for name in _PROMPTED & fields.keys()])


def _number(fields: dict[str, Raw], name: str) -> int:
    return (NUMBER.decode(fields[name]) or 1) if name in fields else 1


def _prompts(value: Raw) -> tuple[int, int, int]:
    """Bytes of text, token ids, and how many prompts: a text, a list of ids, or a list of either.

    Ids are counted by the commas between them, and lists of them by their brackets: exact where
    no list is empty, which the engine refuses anyway.
    """
    if memoryview(value)[0] != _OPENS:
        return len(value), 0, 1
    written = bytes(value)
    if b'"' in written:
        return len(written), 0, len(LIST.decode(value) or ())
    ids = written.count(b",") + 1
    if written.find(b"[", 1) < 0:  # one list, and of 32 MiB every look costs
        return 0, ids - (written == b"[]"), 1
    return 0, ids - written.count(b"[]"), max(written.count(b"[") - 1, 1)


_OPENS = ord("[")

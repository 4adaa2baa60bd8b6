"""The checks behind the table of fields: each looks at one raw value and refuses it or not.

A check names the field and the cap it passes (`request:` in the configuration). Types that no
check needs to know are left to the engine, whose own 400 reaches the caller.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import TypeVar

import msgspec
from msgspec import Raw
from msgspec.json import Decoder

from gateway.errors import InvalidRequest
from gateway.settings import Caps
from gateway.wire import media

T = TypeVar("T")
#: What a check finds besides text is told, so that nobody looks for it again.
Check = Callable[[str, Raw, Caps], media.Carried | None]

#: How deep a schema may nest, and how much a list of words or token ids may hold.
SCHEMA_DEPTH = 32
LONGEST_LIST = 4096
LONGEST_WORDS = 64 * 1024
#: Of larger values it is known how many messages they are before anything is made of each.
_GLANCE = 256 * 1024
#: How much of a list tells what it is a list of.
_PEEK = 64

_FORBIDDEN_ARGUMENTS = frozenset(
    {"chat_template", "tokenize", "add_generation_prompt", "continue_final_message"}
)

#: A decoder is costly to make and cheap to use.
BOOL = Decoder(bool | None)
NUMBER = Decoder(int | None)
TEXT = Decoder(str)
_COUNT = Decoder(int | bool | None)
_WORD = Decoder(str | None)
_WORDS = Decoder(str | list[Raw] | None)
LIST = Decoder(list[Raw] | None)
_MAP = Decoder(dict[str, Raw] | None)
_NULL = Raw(b"null")


def decode(name: str, value: Raw, decoder: Decoder[T]) -> T:
    """What `value` holds; raises InvalidRequest, naming the field, where it is another type."""
    try:
        return decoder.decode(value)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"`{name}`: {str(exc).split(' - at')[0]}.", name) from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"`{name}` is not valid JSON or nested too deeply.", name) from None


def _at_most(name: str, given: int, cap: int, of: str = "") -> None:
    if given > cap:
        noun = f" {of}" if of else ""
        raise InvalidRequest(f"`{name}`: {given}{noun} is over this gateway's cap of {cap}.", name)


def _number(name: str, value: Raw, cap: int) -> None:
    number = int(decode(name, value, _COUNT) or 0)
    if number < 0:  # -1 asks for the whole vocabulary
        raise InvalidRequest(f"`{name}` must not be negative.", name)
    _at_most(name, number, cap)


def choices(name: str, value: Raw, allowed: Caps) -> None:
    number = decode(name, value, NUMBER)
    if number is not None and number < 1:
        raise InvalidRequest(f"`{name}` must be at least 1.", name)
    _at_most(name, number or 1, allowed.n)


def logprobs(name: str, value: Raw, allowed: Caps) -> None:
    _number(name, value, allowed.logprobs)


def prompt_logprobs(name: str, value: Raw, allowed: Caps) -> None:
    _number(name, value, allowed.prompt_logprobs)


def echoed(fields: Mapping[str, Raw], allowed: Caps) -> None:
    """With `echo`, vLLM takes `logprobs` for `prompt_logprobs` where that one is not given."""
    if "echo" not in fields or "logprobs" not in fields or not decode("echo", fields["echo"], BOOL):
        return
    if decode("prompt_logprobs", fields.get("prompt_logprobs", _NULL), _COUNT) is not None:
        return
    number = int(decode("logprobs", fields["logprobs"], _COUNT) or 0)
    _at_most("logprobs", number, allowed.prompt_logprobs, "with `echo` (`prompt_logprobs`)")


def beam_search(name: str, value: Raw, allowed: Caps) -> None:
    if decode(name, value, BOOL) and not allowed.beam_search:
        raise InvalidRequest(f"`{name}` is not allowed on this gateway.", name)


def tools(name: str, value: Raw, allowed: Caps) -> None:
    items = decode(name, value, LIST) or []
    _at_most(name, len(items), allowed.tools, "tools")
    for item in items:
        _schema_depth(name, item)


def schema(name: str, value: Raw, allowed: Caps) -> None:
    _at_most(name, len(memoryview(value)), allowed.schema, "bytes")
    _schema_depth(name, value)


def messages(name: str, value: Raw, allowed: Caps) -> media.Carried | None:
    if len(value) <= _GLANCE and media.none_in(value, allowed.messages):
        return None
    items = decode(name, value, LIST) or []
    _at_most(name, len(items), allowed.messages, "messages")
    hidden = len(value) > _GLANCE and not media.early_in(value)
    if hidden and media.none_in(value, allowed.messages):
        return None
    return media.check(name, value, allowed)


def system(name: str, value: Raw, allowed: Caps) -> media.Carried | None:
    if media.possible_in(value):
        return media.check_content(name, value, allowed)
    return None


def prompts(name: str, value: Raw, allowed: Caps) -> None:
    _at_most(name, _how_many(name, value), allowed.prompts, "prompts")


def inputs(name: str, value: Raw, allowed: Caps) -> media.Carried | None:
    _at_most(name, _how_many(name, value), allowed.inputs, "inputs")
    # vLLM takes messages for an input as well.
    if b"{" in bytes(value) and bytes(memoryview(value)[:1]) == b"[":
        return media.check(name, value, allowed)
    return None


def encoding(name: str, value: Raw, allowed: Caps) -> None:
    given = decode(name, value, _WORD)
    if given not in (None, "float", "base64"):
        raise InvalidRequest(f"`{name}` must be `float` or `base64`.", name)


def template_arguments(name: str, value: Raw, allowed: Caps) -> None:
    arguments = decode(name, value, _MAP) or {}
    for key, argument in arguments.items():
        if key in _FORBIDDEN_ARGUMENTS:
            raise InvalidRequest(f"`{name}.{key[:64]}` is not allowed on this gateway.", name)
        if bytes(memoryview(argument)[:1]) in (b"{", b"["):
            raise InvalidRequest(f"`{name}.{key[:64]}` must be a plain value.", name)


def word_list(name: str, value: Raw, allowed: Caps) -> None:
    _at_most(name, len(memoryview(value)), LONGEST_WORDS, "bytes")
    words = decode(name, value, _WORDS)
    if isinstance(words, list):
        _at_most(name, len(words), LONGEST_LIST, "words")


def token_list(name: str, value: Raw, allowed: Caps) -> None:
    items = decode(name, value, LIST) or []
    _at_most(name, len(items), LONGEST_LIST, "tokens")


def token_map(name: str, value: Raw, allowed: Caps) -> None:
    items = decode(name, value, _MAP) or {}
    _at_most(name, len(items), LONGEST_LIST, "tokens")


def output_tokens(name: str, value: Raw) -> int | None:
    """The number a caller gives as its output limit; None where it gives none."""
    number: int | None = decode(name, value, NUMBER)
    if number is not None and number < 0:
        raise InvalidRequest(f"`{name}` must not be negative.", name)
    return number


def _how_many(name: str, value: Raw) -> int:
    """One text or one list of token ids is one; a list of either is as many."""
    beginning = bytes(memoryview(value)[:_PEEK])
    if not beginning.startswith(b"["):
        return 1
    if beginning[1:].lstrip()[:1].isdigit():
        return 1  # ids, of which a list of 32 MiB has millions
    items = decode(name, value, LIST) or []
    return 1 if items and bytes(memoryview(items[0])[:1]).isdigit() else len(items)


def _schema_depth(name: str, value: Raw) -> None:
    if deeper_than(SCHEMA_DEPTH, bytes(value)):
        raise InvalidRequest(f"`{name}` nests deeper than {SCHEMA_DEPTH} levels.", name)


def deeper_than(limit: int, text: bytes) -> bool:
    """Whether valid JSON nests deeper than `limit` levels.

    How deep the decoder itself goes differs from one Python to the next, so it is not asked.
    """
    if few(limit, text):
        return False  # nearly always, and at the speed of memory
    nesting = Nesting()
    nesting.feed(text)
    return nesting.deepest > limit


class Nesting:
    """How deep JSON nests, told of it in pieces: of 32 MiB at once the event loop would wait.

    Mutable state: `deepest` level so far, and where the last piece ended: how deep, whether inside
    a string (0 or 1), and whether behind a backslash.
    """

    def __init__(self) -> None:
        self.deepest = 0
        self._deep = 0
        self._inside = 0
        self._escaping = False

    @property
    def at_top(self) -> bool:
        """Whether what comes next stands right inside the outermost object, in no string."""
        return self._deep == 1 and not self._inside

    def feed(self, piece: bytes) -> None:
        if not piece:
            return
        if self._escaping:
            piece = piece[1:]
        self._escaping = False
        if b"\\" in piece:
            self._escaping = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.translate(_ROUND, _NOT_STRUCTURE).split(b'"')
        structure = b"".join(parts[self._inside :: 2])
        self._inside ^= (len(parts) - 1) & 1
        began, self._deep = self._deep, self._deep + 2 * structure.count(b"(") - len(structure)
        steps = array("b", structure.translate(_STEPS))
        self.deepest = max(self.deepest, began + max(accumulate(steps), default=0))


def few(limit: int, text: bytes) -> bool:
    """Whether `text` has at most so many brackets: it cannot nest deeper."""
    left = limit
    for letter in _OPENING:
        at = text.find(letter)
        while at >= 0:
            left -= 1
            if left < 0:
                return False
            at = text.find(letter, at + 1)
    return True


_OPENING = b"[{"
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_ROUND = bytes.maketrans(b"[]{}", b"()()")
_STEPS = bytes.maketrans(b"()", b"\x01\xff")

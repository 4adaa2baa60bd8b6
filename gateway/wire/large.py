"""A plain answer that is too large to be held: the model's name exchanged as its pieces pass."""

from __future__ import annotations

import re

from gateway.wire.caps import Nesting

#: `"model": "..."`, which inside a string would have its quotes escaped.
MODEL = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.)*)"')
#: More than such a pair is long: where one begins so far from the end, all of it is there.
_LONGEST = 1024


class Renaming:
    """Puts `named`, a key and its value, in place of the model's name at the top of one answer.

    Servers write it anywhere: vLLM before what it says, the Anthropic dialect and OpenAI's
    embeddings after it, and what is said may name models of its own.

    Mutable state: `_nesting` of what has passed; `_held`, the end of it, where a name may have
    begun; whether it is `_done`.
    """

    def __init__(self, named: bytes) -> None:
        self._named = named
        self._nesting = Nesting()
        self._held = b""
        self._done = False

    def feed(self, piece: bytes) -> bytes:
        if self._done:
            return piece
        text = self._held + piece
        return self._passed(text, max(0, len(text) - _LONGEST))

    def rest(self) -> bytes:
        """What is still held when the answer ends."""
        return self._passed(self._held, len(self._held))

    def _passed(self, text: bytes, stop: int) -> bytes:
        """What passes of `text`: all that stands before `stop`, and a name that begins there."""
        at = 0
        for found in MODEL.finditer(text):
            if found.start() >= stop:
                break
            self._nesting.feed(text[at : found.start()])
            at = found.start()
            if self._nesting.at_top:
                self._done, self._held = True, b""
                return b"%b%b%b" % (text[:at], self._named, text[found.end() :])
        self._nesting.feed(text[at:stop])
        self._held = text[stop:]
        return text[:stop]

"""What a request will cost before the engine says so, and what it cost where the engine never did.

Everything is learned from the usage that engines report; nothing is tokenized here.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field

from gateway.terms import Size, Usage

#: Key x model pairs remembered, those that answered last.
PAIRS = 50_000

_BYTES_PER_TOKEN = 4.0
#: An odd answer moves an average by a little, and never out of these bounds.
_BYTES_BOUNDS = (1.0, 16.0)
#: Events of less than a token are a stream's first and last only.
_TOKENS_PER_EVENT_BOUNDS = (1.0, 16.0)
_WEIGHT = 0.1

#: Of shorter prompts the chat template is too large a part, ...
_LEAST_TEXT = 256
#: ... and of prompts with more than a tenth known otherwise, the rest of that estimate's error.
_KNOWN_SHARE = 10

_UNSEEN_OUTPUT = 512
_LEAST_OUTPUT = 64
_LEAST_SAMPLES = 20
_RING = 64
_EVERY = 8
_MOST_TOKENS = 2**31


@dataclass(slots=True)
class _Model:
    """Mutable state: averages over the model's latest answers."""

    bytes_per_token: float = _BYTES_PER_TOKEN
    tokens_per_event: float = 1.0


@dataclass(slots=True)
class _Outputs:
    """Mutable state: a ring of the latest answers' tokens, and how high nine in ten of them stay.

    The ring is sorted once in `_EVERY` answers.
    """

    ring: array[int] = field(default_factory=lambda: array("I"))
    seen: int = 0
    high: int = _UNSEEN_OUTPUT

    def add(self, tokens: int) -> None:
        seen = self.seen
        if seen < _RING:
            self.ring.append(tokens)
        else:
            self.ring[seen % _RING] = tokens
        self.seen = seen = seen + 1
        if seen == _LEAST_SAMPLES or (seen % _EVERY == 0 and seen > _LEAST_SAMPLES):
            ordered = sorted(self.ring)
            self.high = max(_LEAST_OUTPUT, ordered[(len(ordered) * 9 - 1) // 10])


class Estimates:
    """What was learned of each model, and of each key on it.

    Mutable state: `_models`, one entry for each model that was configured or discovered;
    `_outputs`, by key and model, at most `pairs` of them, the longest unused forgotten first.
    """

    def __init__(self, pairs: int = PAIRS) -> None:
        self._pairs = pairs
        self._models: defaultdict[str, _Model] = defaultdict(_Model)
        self._outputs: OrderedDict[tuple[str, str], _Outputs] = OrderedDict()

    def prompt(self, model: str, size: Size) -> int:
        """Prompt tokens, at least 1: a request with nothing in it is no way past a limit."""
        per_token = self._models[model].bytes_per_token
        return math.ceil(size.text_bytes / per_token) + size.tokens or 1

    def output(self, key: str, model: str, size: Size) -> int:
        """Tokens of all its answers: what this key's answers usually have, not the limit it
        sends, which most clients set far too high.
        """
        outputs = self._outputs.get((key, model))
        expected = _UNSEEN_OUTPUT if outputs is None else outputs.high
        limit = size.output_limit
        if limit is not None and limit < expected:
            expected = limit
        return expected * size.answers

    def learn(self, key: str, model: str, size: Size, usage: Usage, events: int) -> None:
        """Take in what the engine said of a whole answer; `events` is 0 where it was no stream."""
        if not usage.exact or usage.prompt <= 0:
            return
        of_model = self._models[model]
        if size.text_bytes >= _LEAST_TEXT and size.tokens * _KNOWN_SHARE <= usage.prompt:
            per_token = size.text_bytes / (usage.prompt - size.tokens)
            of_model.bytes_per_token = _moved(of_model.bytes_per_token, per_token, _BYTES_BOUNDS)
        completion = usage.completion
        if size.output_limit == 0 or completion < 0:
            return
        if completion > _MOST_TOKENS:
            completion = _MOST_TOKENS
        if events > 0:
            of_model.tokens_per_event = _moved(
                of_model.tokens_per_event, completion / events, _TOKENS_PER_EVENT_BOUNDS
            )
        self._outputs_of(key, model).add(-(-completion // size.answers))

    def counted(self, model: str, size: Size, events: int, usage: Usage) -> Usage:
        """What an answer that was cut short has used: what the engine told so far, else the
        prompt's estimate, and the events relayed at the model's tokens per event.
        """
        if usage.exact:
            return usage
        completion = round(events * self._models[model].tokens_per_event)
        if size.output_limit is not None:
            completion = min(completion, size.output_limit * size.answers)
        return Usage(usage.prompt or self.prompt(model, size), usage.cached, completion)

    def _outputs_of(self, key: str, model: str) -> _Outputs:
        pair = key, model
        outputs = self._outputs.get(pair)
        if outputs is None:
            outputs = self._outputs[pair] = _Outputs()
            if len(self._outputs) > self._pairs:
                self._outputs.popitem(last=False)
        else:
            self._outputs.move_to_end(pair)
        return outputs


def weighed(usage: Usage, cached_weight: float) -> int:
    """The tokens that are charged; those of the prompt found in the cache count `cached_weight`."""
    cached = usage.cached if usage.cached < usage.prompt else usage.prompt
    tokens = usage.prompt + usage.completion
    if cached:
        # Rounded up, but not for the error of a product like 100 x 0.07.
        tokens += math.ceil(cached * cached_weight - 1e-9) - cached
    # An engine's nonsense must not be more than a store can count, nor give tokens back.
    if tokens < 0:
        return 0
    return tokens if tokens < _MOST_TOKENS else _MOST_TOKENS


def _moved(average: float, sample: float, bounds: tuple[float, float]) -> float:
    least, most = bounds
    if sample < least:
        sample = least
    elif sample > most:
        sample = most
    return average + _WEIGHT * (sample - average)

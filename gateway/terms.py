"""The nouns that every step of a request shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from msgspec import Raw, Struct

#: Fields of a request that reach into the server or across its callers: refused unless allowed.
#: With `stream_interval` one event has as many tokens as the caller likes, and what it pays for a
#: stream it leaves is counted by events. A `uuid` stands beside a picture in a message: vLLM takes
#: it for the picture itself, whoever sent that.
PRIVILEGED = frozenset(
    """cache_salt chat_template documents ec_transfer_params kv_transfer_params media_io_kwargs
    mm_payload mm_processor_kwargs priority prompt_embeds request_id return_mm_kwargs
    routed_experts_prompt_start session_id stream_interval uuid vllm_xargs watermarking""".split()
)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. `models` are the names this key may ask for; None: all.

    `key` and `team` are the names of the configuration, stable and safe to log.
    """

    key: str
    team: str
    models: frozenset[str] | None = None
    expires: float | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


class Head(Struct, gc=False):
    """A request's head, as far as it is used: names in lower case, values as they came.

    Mutable state: `key_digest`, of the key in it, once that was looked for.
    """

    method: str
    path: str
    fields: dict[bytes, bytes]
    repeated: frozenset[bytes] = frozenset()
    key_digest: bytes = b""

    def get(self, name: bytes) -> str:
        return self.fields.get(name, b"").decode("latin-1")


def fields_of(
    listed: Sequence[tuple[bytes, bytes]],
) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    """Header fields by name, and the names that were sent more than once."""
    fields = dict(listed)
    if len(fields) == len(listed):
        return fields, _NONE
    counts = Counter(name for name, _ in listed)
    return fields, frozenset(name for name, count in counts.items() if count > 1)


_NONE: frozenset[bytes] = frozenset()


class Usage(Struct, gc=False):
    """Tokens used so far. `exact` once the engine itself said so, else counted from the events."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    exact: bool = False


class Ask(Struct, frozen=True, gc=False):
    """What a caller asks for: the checked request, before a model server is chosen.

    `fields` is the top level of the body as sent, nested values as raw JSON; `wants_usage` says
    whether the caller asked for usage in the stream.
    """

    model: str
    stream: bool
    fields: dict[str, Raw]
    wants_usage: bool = False


class Size(Struct, frozen=True):
    """How large a request is, as far as that can be seen without a tokenizer.

    `text_bytes` are those of its JSON that become the prompt, `tokens` the prompt tokens known
    otherwise: token ids, counted, and media by a table. `output_limit` is the most tokens one
    answer may have, None for no limit; `answers` is how many there will be.
    """

    text_bytes: int = 0
    tokens: int = 0
    output_limit: int | None = None
    answers: int = 1


class Standing(Struct, frozen=True):
    """How a caller stands with one limit: the most at once, what is left of it now, and in how
    many milliseconds all of it is there again; `at` is when, in seconds since the epoch. Both are
    rounded up.
    """

    limit: int
    remaining: int
    reset: int
    at: int


#: Of the limit on requests and of that on tokens that leaves least; None where there is none.
Standings = tuple[Standing | None, Standing | None]
UNLIMITED: Standings = (None, None)


class Record(Struct, kw_only=True, gc=False):
    """What is told of one request when it is over. It is encoded as its line of the log: users rely
    on the fields and on their order. The metrics are counted from it, too.

    Times are milliseconds since the request's head, 0 for a step that was not reached.
    `endpoint` is a path of our table or `other`; `limited_by` the rule that refused it, if one did.
    """

    time: str = ""
    request_id: str
    client_request_id: str = ""
    trace_id: str = ""
    key: str = ""
    team: str = ""
    endpoint: str
    model: str = ""
    pool: str = ""
    replica: str = ""
    stream: bool = False
    status: int = 0
    outcome: str = "ok"
    attempts: int = 0
    admit_ms: float = 0.0
    first_event_ms: float = 0.0
    total_ms: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    tokens_are: str = "counted"
    limited_by: str = ""

    def used(self, usage: Usage) -> None:
        """Note the tokens, and whose count they are."""
        self.prompt_tokens = usage.prompt
        self.cached_tokens = usage.cached
        self.completion_tokens = usage.completion
        self.tokens_are = "exact" if usage.exact else "counted"


def milliseconds(seconds: float) -> float:
    """As a record tells them: to the microsecond."""
    return floor(seconds * 1e6 + 0.5) / 1000  # a fifth of the work of `round` with digits

"""What of a request's head passes on: the ids it travels under, and a few named fields.

Everything else a caller sends stays here. vLLM reads scheduling and routing from headers
(`X-Vllm-Priority`, `X-data-parallel-rank`, `X-Session-ID`), so it is a list of what passes.
"""

from __future__ import annotations

import random
import re
import secrets

from gateway.settings import Timeouts
from gateway.terms import Head, Record

#: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}\Z")
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}\Z")
_VISIBLE = re.compile(rb"[\x20-\x7e]{1,1024}\Z")
_PASSING = (b"anthropic-version", b"anthropic-beta")
_NOTHING = "0" * 32

#: Answer this long before the caller's own time is over, or it pays for an answer nobody reads.
_MARGIN = 5.0
_SHORTEST = 1.0

_random = random.Random(secrets.randbits(256))


def request_id() -> str:
    """An id of our own: the caller's could repeat, and vLLM breaks on a repeated live one."""
    return f"req_{_random.getrandbits(96):024x}"


def trace(head: Head, record: Record) -> tuple[tuple[bytes, bytes], ...]:
    """Note the caller's ids on the record; return the header fields that go to the engine."""
    sent = head.fields
    given = _TRACEPARENT.match(head.get(b"traceparent")) if b"traceparent" in sent else None
    trace_id = given.group(1) if given else _NOTHING
    if trace_id == _NOTHING:
        trace_id = f"{_random.getrandbits(128):032x}"
    record.trace_id = trace_id
    span = _random.getrandbits(64) or 1
    fields = [(b"traceparent", f"00-{trace_id}-{span:016x}-01".encode())]
    for name in _PASSING:
        if name in sent and _VISIBLE.match(sent[name]):
            fields.append((name, sent[name]))
    return tuple(fields)


def client_request_id(head: Head) -> str:
    """The caller's own id, for the log; nothing where it has odd characters."""
    if b"x-request-id" not in head.fields:
        return ""
    sent = head.get(b"x-request-id")
    return sent if _CLIENT_ID.match(sent) else ""


def again(head: Head) -> bool:
    """Whether it is a caller's own retry: the official SDKs number their tries."""
    return head.fields.get(b"x-stainless-retry-count", b"0") not in (b"0", b"")


def deadline(head: Head, began: float, times: Timeouts, stream: bool) -> float:
    """When the answer must have begun (streams) or be whole, on the event loop's clock.

    The official SDKs send their read timeout; it can only shorten ours.
    """
    longest = times.first_event * 2 if stream else times.total
    if b"x-stainless-read-timeout" in head.fields:
        try:
            told = float(head.get(b"x-stainless-read-timeout"))
        except ValueError:
            told = 0.0
        if told > _MARGIN + _SHORTEST:
            longest = min(longest, told - _MARGIN)
    return began + longest

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
    return "req_" + _random.getrandbits(96).to_bytes(12).hex()


def trace(head: Head, record: Record) -> str:
    """Note the caller's ids on the record; return the header lines that go to the engine."""
    sent = head.fields
    made = (_random.getrandbits(192) | 1).to_bytes(24).hex()  # a span of zeros would be none
    trace_id, span = made[:32], made[32:]
    if b"traceparent" in sent:
        given = _TRACEPARENT.match(head.get(b"traceparent"))
        if given and given[1] != _NOTHING:
            trace_id = given[1]
    record.trace_id = trace_id
    lines = f"traceparent: 00-{trace_id}-{span}-01\r\n"
    for name in _PASSING:
        if name in sent and _VISIBLE.match(sent[name]):
            lines += f"{name.decode()}: {head.get(name)}\r\n"
    return lines


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
    sent = head.fields.get(b"x-stainless-read-timeout")
    if sent is not None:
        try:
            told = float(sent) - _MARGIN
        except ValueError:
            return began + longest
        if _SHORTEST < told < longest:
            longest = told
    return began + longest

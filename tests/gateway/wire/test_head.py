"""Which heads are refused before a body is read (RFC 9112 §3.2, §6)."""

from __future__ import annotations

import pytest

from gateway.terms import fields_of
from gateway.wire.head import wrong_in

HOST = (b"host", b"gateway:8080")
GOOD = (b"POST", "1.1", b"/v1/messages?beta=true")


def refused(method: bytes, version: str, target: bytes, *fields: tuple[bytes, bytes]) -> int | None:
    fault = wrong_in(method, version, target, *fields_of(fields))
    return fault.status if fault is not None else None


@pytest.mark.parametrize(
    "host",
    [b"a", b"a:1", b"[::1]:8080", b"10.0.0.1:65535", b"a_b-c.example", b"", b"a:", b"a:1 \t"],
)
def test_one_well_formed_host_passes(host: bytes) -> None:
    assert refused(*GOOD, (b"host", host)) is None


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (HOST, HOST),
        ((b"host", b"x/health?"),),
        ((b"host", b"x#"),),
        ((b"host", b"a b"),),
        ((b"host", b"a:123456"),),
        ((b"host", b"[::1"),),
        (HOST, (b"transfer-encoding", b"gzip, chunked")),
        (HOST, (b"transfer-encoding", b"identity")),
        (HOST, (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")),
        (HOST, (b"transfer-encoding", b"chunked"), (b"content-length", b"3")),
        (HOST, (b"content-length", b"3"), (b"content-length", b"3")),
    ],
)
def test_what_two_servers_could_read_differently_is_refused(
    fields: tuple[tuple[bytes, bytes], ...],
) -> None:
    assert refused(*GOOD, *fields) == 400


def test_exactly_chunked_passes_in_any_case() -> None:
    assert refused(*GOOD, HOST, (b"transfer-encoding", b" Chunked ")) is None


def test_chunked_is_not_of_http_1_0() -> None:
    chunked = (b"transfer-encoding", b"chunked")
    assert refused(b"POST", "1.0", b"/v1/messages", HOST, chunked) == 400


@pytest.mark.parametrize("version", ["0.9", "2.0", "1.2"])
def test_only_http_1_is_spoken(version: str) -> None:
    assert refused(b"GET", version, b"/", HOST) == 400


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT"])
def test_methods_that_are_never_served(method: bytes) -> None:
    assert refused(method, "1.1", b"/", HOST) == 405


@pytest.mark.parametrize("target", [b"http://a/v1", b"*", b"a:443", b"/v1#x", b""])
def test_a_target_is_a_path(target: bytes) -> None:
    assert refused(b"GET", "1.1", target, HOST) == 400


def test_old_health_checks_need_no_host_and_nothing_else_does_without() -> None:
    assert refused(b"GET", "1.0", b"/healthz") is None
    assert refused(b"GET", "1.0", b"/readyz") is None
    assert refused(b"GET", "1.1", b"/healthz") == 400
    assert refused(b"GET", "1.0", b"/v1/models") == 400

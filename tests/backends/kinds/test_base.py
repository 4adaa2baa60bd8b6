"""What a model server is sent, to the byte, and how its refusals are read."""

from __future__ import annotations

import ssl
from importlib.metadata import version

import pytest

from backends.base import Call, Origin, Replica
from backends.kinds import KINDS
from backends.kinds.base import probe

AGENT = f"user-agent: fairgate/{version('fairgate')}\r\n".encode()
TLS = ssl.create_default_context()


def prepared(call: Call, replica: Replica, kind: str = "vllm") -> bytes:
    return b"".join(KINDS[kind].prepare(call, replica))


def test_a_request_is_exactly_this() -> None:
    replica = Replica("http://gpu-1:8000", Origin("gpu-1", 8000), credential="sk-engine")
    traced = f"traceparent: 00-{'a' * 32}-{'b' * 16}-01\r\n"
    call = Call("/v1/chat/completions", b'{"model":"m"}', True, "req_1", traced)
    expected = (
        b"POST /v1/chat/completions HTTP/1.1\r\n"
        b"host: gpu-1:8000\r\n" + AGENT + b"accept-encoding: identity\r\n"
        b"content-type: application/json\r\n"
        b"authorization: Bearer sk-engine\r\n"
        b"accept: text/event-stream\r\n"
        b"content-length: 13\r\n"
        b"x-request-id: req_1\r\n" + traced.encode() + b"\r\n"
        b'{"model":"m"}'
    )
    assert prepared(call, replica) == expected
    assert prepared(call, replica) == expected, "the second time the head is remembered"


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_answer_is_asked_for_as_json(kind: str) -> None:
    replica = Replica("http://h", Origin("h", 80))
    sent = prepared(Call("/v1/embeddings", b"", False, "req_2"), replica, kind)
    assert b"\r\naccept: application/json\r\n" in sent
    assert b"\r\ncontent-length: 0\r\n" in sent
    assert b"authorization" not in sent


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (Origin("h", 80), b"h"),
        (Origin("h", 443), b"h:443"),
        (Origin("h", 443, TLS), b"h"),
        (Origin("h", 80, TLS), b"h:80"),
        (Origin("::1", 8000), b"[::1]:8000"),
        (Origin("::1", 80), b"[::1]"),
        (Origin("10.0.0.1", 8000), b"10.0.0.1:8000"),
    ],
)
def test_the_host_names_the_port_where_it_is_not_the_usual_one(origin: Origin, host: bytes) -> None:
    sent = prepared(Call("/v1/completions", b"", False, "r"), Replica("u", origin))
    assert b"\r\nhost: " + host + b"\r\n" in sent


@pytest.mark.parametrize(
    ("base", "path", "target"),
    [
        ("/v1", "/v1/chat/completions", b"/v1/chat/completions"),
        ("/openai/v1", "/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("", "/v1/completions", b"/completions"),
        ("/openai/v1", "/openapi.json", b"/openapi.json"),
    ],
)
def test_the_base_path_stands_for_v1(base: str, path: str, target: bytes) -> None:
    replica = Replica("u", Origin("h", 80), base=base)
    sent = prepared(Call(path, b"", False, "r"), replica)
    assert sent.startswith(b"POST " + target + b" HTTP/1.1\r\n")


def test_each_path_of_a_replica_has_its_own_head() -> None:
    replica = Replica("u", Origin("h", 80))
    for path in (*sorted(KINDS["vllm"].paths), *sorted(KINDS["vllm"].paths)):
        sent = prepared(Call(path, b"", False, "r"), replica)
        assert sent.startswith(b"POST " + path.encode() + b" HTTP/1.1\r\n")


def test_a_probe_is_a_get_with_the_credential() -> None:
    replica = Replica("u", Origin("::1", 8000), credential="sk-engine")
    assert probe("/v1/models", replica) == (
        b"GET /v1/models HTTP/1.1\r\n"
        b"host: [::1]:8000\r\n" + AGENT + b"accept-encoding: identity\r\n"
        b"authorization: Bearer sk-engine\r\n"
        b"accept: application/json\r\n\r\n"
    )


def test_the_credential_is_in_no_representation() -> None:
    replica = Replica("u", Origin("h", 80), credential="sk-engine")
    prepared(Call("/v1/embeddings", b"", False, "r"), replica)
    assert "sk-engine" not in repr(replica)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "body", "message", "param"),
    [
        (400, b'{"error":{"message":"no","param":"n","code":400}}', "no", "n"),
        (422, b'{"error":{"message":"no"}}', "no", None),
        (413, b'{"type":"error","error":{"type":"x","message":"big"}}', "big", None),
        (400, b'{"object":"error","message":"long","param":"n","code":400}', "long", "n"),
        (400, b'{"message":"Unauthorized"}', "", None),
        (400, b'{"error":"Unauthorized"}', "", None),
        (400, b'{"error":{"message":["a"],"param":{"b":1}}}', "", None),
        (400, b'{"detail":[{"msg":"x"}]}', "", None),
        (400, b"[]", "", None),
        (400, b"<html>", "", None),
        (400, b"", "", None),
        (401, b'{"error":{"message":"no"}}', "", None),
        (404, b'{"error":{"message":"no"}}', "", None),
        (500, b'{"error":{"message":"at /srv/secret"}}', "", None),
    ],
)
def test_the_sentence_of_a_refusal_is_kept_where_it_is_about_the_request(
    kind: str, status: int, body: bytes, message: str, param: str | None
) -> None:
    refused = KINDS[kind].read_error(status, body)
    assert (refused.status, refused.message, refused.param) == (status, message, param)
    assert refused.elsewhere is (status >= 500)


def test_a_sentence_has_a_longest() -> None:
    body = b'{"error":{"message":"' + b"x" * 9_000 + b'"}}'
    assert len(KINDS["vllm"].read_error(400, body).message) == 2_000

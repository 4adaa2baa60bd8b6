"""The data port from outside: its paths and methods, browsers, and every kind of listener."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import config as configuration
from gateway.admin import admin
from gateway.worker import Worker
from tests.fakes.certificates import self_signed
from tests.fakes.client import Answer, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, SECRET, Serving, configured, serving

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
PATHS = [CHAT, "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens"]
ORIGIN = "https://chat.example"
CORS = f"cors: {{origins: ['{ORIGIN}']}}"


@contextlib.asynccontextmanager
async def port(more: str = "") -> AsyncIterator[tuple[Serving, Engine]]:
    async with Engine() as engine, serving(configured(engine.url, more=more)) as gateway:
        yield gateway, engine


def error_of(answer: Answer) -> str:
    """Its code or type; both dialects have an `error`, and it names the request."""
    told = answer.json()
    assert answer.headers.get("x-request-id") == answer.headers.get("request-id")
    assert str(answer.headers.get("x-request-id")) in json.dumps(told)
    return str(told["error"].get("code") or told["error"]["type"])


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_another_method_is_a_405_that_says_which_is_taken(method: str) -> None:
    async with port() as (gateway, engine):
        for path in PATHS:
            answer = await request(gateway.port, method, path, HEADERS)
            assert (answer.status, answer.headers.get("allow")) == (405, "POST"), path
            if method != "HEAD":
                assert error_of(answer) in ("method_not_allowed", "invalid_request_error")
        for path in ("/v1/models", "/v1/models/tiny", "/healthz"):
            answer = await request(gateway.port, method, path, HEADERS)
            assert answer.status == (200 if method in ("GET", "HEAD") else 405), path
        assert not [seen for seen in engine.requests if seen.method == "POST"]


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
async def test_methods_that_no_one_needs_end_the_connection(method: str) -> None:
    async with port() as (gateway, _):
        for path in (*PATHS, "/", "/healthz"):
            answer = await request(gateway.port, method, path, HEADERS)
            assert (answer.status, answer.headers.get("connection")) == (405, "close")
            assert answer.headers.get("allow") == "GET, HEAD, POST, OPTIONS"


async def test_what_claude_code_asks_first_works() -> None:
    async with port() as (gateway, engine):
        answer = await request(gateway.port, "HEAD", "/")
        assert (answer.status, answer.body) == (200, b"")
        answer = await request(gateway.port, "GET", "/v1/models?limit=1000", HEADERS)
        assert [model["id"] for model in answer.json()["data"]] == ["tiny"]
        body = json.dumps(json.loads(BODY) | {"max_tokens": 4}).encode()
        answer = await request(gateway.port, "POST", "/v1/messages?beta=true", HEADERS, body)
        assert (answer.status, answer.json()["type"]) == (200, "message")
        assert engine.requests[-1].target == "/v1/messages"


async def test_health_has_no_body_and_asks_for_no_key() -> None:
    async with port() as (gateway, _):
        for path in ("/healthz", "/readyz"):
            for method in ("GET", "HEAD"):
                answer = await request(gateway.port, method, path)
                assert (answer.status, answer.body) == (200, b"")
        gateway.worker.state.ready = False
        assert (await request(gateway.port, "GET", "/readyz")).status == 503
        assert (await request(gateway.port, "GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "must end in /v1"),
        ("/v1/v1/messages", "ends before /v1"),
        ("/v1/v1/messages/count_tokens", "ends before /v1"),
        ("/v1/messages/v1/messages", "ends before /v1"),
        ("/v1/v1/chat/completions", "must end in /v1 once"),
        (f"{CHAT}/chat/completions", "must end in /v1, with nothing after it"),
        (f"{CHAT}/models", "must end in /v1, with nothing after it"),
        ("/v1/embeddings/embeddings", "must end in /v1, with nothing after it"),
        (f"{CHAT}/", f"a slash too many: it is {CHAT}."),
        ("/v1//messages", "a slash too many: it is /v1/messages."),
        ("/metrics", "the admin port (`admin_listen`)"),
        ("/status", "the admin port (`admin_listen`)"),
        ("/limits/reset", "the admin port (`admin_listen`)"),
        ("/messages", "without a path"),
        ("/v1", "with /v1 (OpenAI)"),
        ("/v2/x", "The API is under /v1"),
    ],
)
async def test_a_wrong_base_url_is_told_the_right_one(path: str, hint: str) -> None:
    async with port() as (gateway, _):
        answer = await request(gateway.port, "POST", path, HEADERS, BODY)
        assert answer.status == 404
        assert error_of(answer) == ("not_found_error" if "messages" in path else "not_found")
        assert hint in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses",
        "/v1/rerank",
        "/v1/messages/batches",
        f"{CHAT}/x",
        "/v1/x%0a",
        "/v1/v1",
        "/x",
    ],
)
async def test_a_path_that_is_not_there_is_told_those_that_are(path: str) -> None:
    async with port() as (gateway, _):
        answer = await request(gateway.port, "POST", path, HEADERS, BODY)
        assert answer.status == 404
        told = answer.json()["error"]["message"]
        assert all(f"POST {known}" in told for known in PATHS)
        assert "GET /v1/models" in told


async def test_every_page_of_the_admin_port_is_told_to_be_there() -> None:
    async with port() as (gateway, _):
        application: Any = admin(gateway.worker, None)
        pages = {route.path for route in application.routes} - {"/healthz", "/readyz"}
        assert "/metrics" in pages
        for page in pages:
            answer = await request(gateway.port, "GET", page, HEADERS)
            assert "the admin port" in answer.json()["error"]["message"], page


async def test_models_are_listed_in_the_dialect_of_who_asks() -> None:
    async with port() as (gateway, _):
        anthropic = [*HEADERS, ("anthropic-version", "2023-06-01")]
        answer = await request(gateway.port, "GET", "/v1/models", HEADERS)
        assert (answer.json()["object"], answer.json()["data"][0]["object"]) == ("list", "model")
        answer = await request(gateway.port, "GET", "/v1/models", anthropic)
        assert (answer.json()["has_more"], answer.json()["data"][0]["type"]) == (False, "model")
        for fields, code in ((HEADERS, "model_not_found"), (anthropic, "not_found_error")):
            for name in ("tiny", "t%69ny"):
                one = await request(gateway.port, "GET", f"/v1/models/{name}", fields)
                assert (one.status, one.json()["id"]) == (200, "tiny")
            for name in ("other", "..%2fx", "%00", "a%0ab", "x" * 5000):
                answer = await request(gateway.port, "GET", f"/v1/models/{name}", fields)
                assert (answer.status, error_of(answer)) == (404, code)
        answer = await request(gateway.port, "GET", "/v1/models")
        assert (answer.status, error_of(answer)) == (401, "invalid_api_key")


async def test_browsers_are_refused_unless_they_are_asked_in() -> None:
    async with port() as (gateway, _):
        for path in PATHS:
            answer = await request(gateway.port, "OPTIONS", path, _preflight())
            assert (answer.status, answer.headers.get("allow")) == (405, "POST")
        answer = await request(gateway.port, "POST", CHAT, [*HEADERS, ("origin", ORIGIN)], BODY)
        assert not [name for name, _ in answer.headers if name.startswith(b"access-control")]


@pytest.mark.parametrize("path", [*PATHS, "/v1/models"])
async def test_a_page_of_an_allowed_origin_gets_its_preflight(path: str) -> None:
    async with port(CORS) as (gateway, _):
        answer = await request(gateway.port, "OPTIONS", path, _preflight())
        assert answer.status == 200
        assert answer.headers.get("access-control-allow-origin") == ORIGIN
        allowed = (answer.headers.get("access-control-allow-headers") or "").lower()
        assert {"authorization", "content-type"} <= set(allowed.replace(",", " ").split())
        assert "POST" in (answer.headers.get("access-control-allow-methods") or "")
        answer = await request(gateway.port, "OPTIONS", path, _preflight("https://evil.example"))
        assert answer.status == 400
        assert answer.headers.get("access-control-allow-origin") is None


async def test_a_page_reads_good_and_refused_answers_and_their_headers() -> None:
    async with port(CORS) as (gateway, _):
        asked = [("origin", ORIGIN)]
        for method, path, fields, body, status in (
            ("POST", CHAT, HEADERS, BODY, 200),
            ("POST", CHAT, HEADERS, b"{", 400),
            ("POST", CHAT, (), BODY, 401),
            ("GET", "/v1/models", HEADERS, None, 200),
            ("GET", "/v1/models", (), None, 401),
            ("GET", "/nowhere", HEADERS, None, 404),
            ("GET", CHAT, HEADERS, None, 405),
        ):
            answer = await request(gateway.port, method, path, [*fields, *asked], body)
            assert answer.status == status
            assert answer.headers.all("access-control-allow-origin") == [ORIGIN], (method, path)
            exposed = ",".join(answer.headers.all("access-control-expose-headers"))
            assert "x-request-id" in exposed
            assert "retry-after" in exposed
            assert "origin" in ",".join(answer.headers.all("vary")).lower()
        evil = [*HEADERS, ("origin", "https://evil.example")]
        answer = await request(gateway.port, "POST", CHAT, evil, BODY)
        assert answer.headers.get("access-control-allow-origin") is None


def _preflight(origin: str = ORIGIN) -> list[tuple[str, str]]:
    asked = ("access-control-request-headers", "authorization, content-type")
    return [("origin", origin), ("access-control-request-method", "POST"), asked]


# Listeners


async def asks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[int]:
    """The statuses of a good, a refused and a malformed request, which ends the connection."""
    good = "".join(f"{name}: {value}\r\n" for name, value in HEADERS)
    lines = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\n{good}content-length: {len(BODY)}\r\n\r\n"
    writer.write(lines.encode() + BODY)
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return [int(line[:3]) for line in answer.decode().split("HTTP/1.1 ")[1:]]


@contextlib.asynccontextmanager
async def listening(addresses: str, log: Path, more: str = "") -> AsyncIterator[list[str]]:
    async with Engine() as engine:
        text = configured(engine.url, more=more)
        text = text.replace("listen: 127.0.0.1:0", f"listen: {addresses}", 1)
        with open(log, "wb") as file:
            worker = Worker(configuration.load("test.yaml", text, {}), SECRET, file.fileno())
            async with worker.serving() as addressed:
                yield addressed


Run = Callable[[Coroutine[Any, Any, None]], None]
RUNS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


@RUNS
def test_unix_sockets_and_ipv6_are_served_like_any_other(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"

    async def check() -> None:
        where = f"['unix:{path}', '[::1]:0', '127.0.0.1:0']"
        async with listening(where, tmp_path / "log") as addresses:
            assert addresses[0] == f"unix:{path}"
            assert await asks(*await asyncio.open_unix_connection(path)) == [200, 401, 400]
            for address in addresses[1:]:
                host, _, number = address.rpartition(":")
                opened = await asyncio.open_connection(host.strip("[]"), int(number))
                assert await asks(*opened) == [200, 401, 400]
        assert not path.exists()

    run(check())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@RUNS
def test_a_listener_with_a_certificate_speaks_tls(
    run: Run, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate

    async def check() -> None:
        more = f"tls: {{cert_file: {cert}, key_file: {key}}}"
        async with listening("127.0.0.1:0", tmp_path / "log", more) as addresses:
            number = int(addresses[0].rpartition(":")[2])
            context = ssl.create_default_context(cafile=str(cert))
            opened = await asyncio.open_connection("127.0.0.1", number, ssl=context)
            assert await asks(*opened) == [200, 401, 400]
            reader, writer = await asyncio.open_connection("127.0.0.1", number)
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")
            assert b"200" not in await asyncio.wait_for(reader.read(), 5)
            writer.close()

    run(check())

"""What `check --probe` finds of each server, in front of servers that are well and that are not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway import config as configuration
from gateway.probing import Finding, probed
from tests.fakes.certificates import self_signed
from tests.fakes.engine import Engine
from tests.fakes.gateway import FAIRGATE
from tests.fakes.script import Hang, Received, Step, plain

OPENAPI = "/openapi.json"
NAME = "gpu1.test"
SECRET = "sk-a-secret-credential"


async def found(text: str, **more: Any) -> list[Finding]:
    config = configuration.load("fairgate.yaml", text, {"TOKEN": SECRET})
    return await probed(config, **more)


def pool(*replicas: str, model: str = "") -> str:
    return f"models: {{tiny: {{replicas: [{', '.join(replicas)}]{model}}}}}"


def saying(pages: dict[str, Any]) -> Callable[[Received], list[Step] | None]:
    """A server whose pages say this; a number is a status."""

    def answer(request: Received) -> list[Step] | None:
        said = pages.get(request.path)
        if said is None:
            return None
        if isinstance(said, int):
            return plain(said, b"{}")
        return plain(200, said if isinstance(said, bytes) else orjson.dumps(said))

    return answer


async def one(engine: Engine, pages: dict[str, Any] | None = None, **more: str) -> Finding:
    """The finding of one server that says this."""
    engine.script = saying(pages or {})
    (finding,) = await found(pool(engine.url, **more))
    return finding


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine() as running:
        yield running


async def test_a_server_that_is_well_is_told_with_what_it_is(engine: Engine) -> None:
    finding = await one(engine)
    assert (finding.problems, finding.warnings) == ([], [])
    assert finding.line() == f"OK       {engine.url} [tiny]: version 0.32.0; max_model_len 4096"
    assert {request.method for request in engine.requests} == {"GET"}


async def test_a_server_that_is_away_is_a_problem(engine: Engine) -> None:
    await engine.stop()
    finding = await one(engine)
    assert finding.problems == ["no connection (refused)"]
    assert finding.line().startswith(f"problem  {engine.url} [tiny]: no connection")


async def test_a_server_that_hangs_is_given_up_beside_one_that_is_well(engine: Engine) -> None:
    async with Engine(lambda request: [Hang()]) as hanging:
        stuck, well = await found(pool(hanging.url, engine.url), patience=0.3)
    assert stuck.problems == ["no answer within 0.3 s"]
    assert well.problems == []


@pytest.mark.parametrize(
    ("pages", "model", "problem"),
    [
        ({"/v1/models": 404}, "", "answers 404 to /v1/models: is the path in its URL right?"),
        ({"/v1/models": b"<html>"}, "", "no list of models: /v1/models is not JSON"),
        ({}, ", upstream_model: big", "does not serve big, it serves tiny: set upstream_model"),
        ({"/v1/models": {"data": []}}, "", "does not serve tiny, it serves nothing"),
    ],
)
async def test_what_keeps_a_server_from_serving_is_a_problem(
    engine: Engine, pages: dict[str, Any], model: str, problem: str
) -> None:
    finding = await one(engine, pages, model=model)
    assert finding.problems[0].startswith(problem)


def lacking(*paths: str, fields: Sequence[str] = ("model", "cache_salt")) -> dict[str, Any]:
    """A schema with these paths only."""
    properties: dict[str, Any] = {"properties": {name: {} for name in fields}}
    content = {"content": {"application/json": {"schema": properties}}}
    return {"paths": {path: {"post": {"requestBody": content}} for path in paths}}


CHAT, MESSAGES, EMBEDDINGS = "/v1/chat/completions", "/v1/messages", "/v1/embeddings"


@pytest.mark.parametrize(
    ("pages", "warnings"),
    [
        ({OPENAPI: 404}, ["no /openapi.json: which routes and fields it has is not known"]),
        ({OPENAPI: lacking(CHAT)}, [f"no {MESSAGES}: Anthropic clients are refused"]),
        ({OPENAPI: lacking(EMBEDDINGS)}, []),
        ({OPENAPI: lacking("/v1/rerank")}, [f"neither {CHAT} nor {EMBEDDINGS}"]),
        (
            {OPENAPI: lacking(CHAT, MESSAGES, fields=("model",))},
            ["no cache_salt: its prefix cache is shared by all teams"],
        ),
        ({"/metrics": 404}, ["/metrics cannot be read: it answers 404"]),
        ({"/metrics": b"up 1\n"}, ["/metrics holds none of vLLM's figures"]),
    ],
)
async def test_what_a_server_lacks_is_a_warning(
    engine: Engine, pages: dict[str, Any], warnings: list[str]
) -> None:
    finding = await one(engine, pages)
    assert (finding.problems, finding.warnings) == ([], warnings)
    assert finding.line().startswith("warning" if warnings else "OK")


@pytest.mark.parametrize("model", [", kind: openai", ", request: {isolate_prefix_cache: off}"])
async def test_no_one_is_warned_of_what_is_not_used(engine: Engine, model: str) -> None:
    pages = {OPENAPI: lacking(CHAT, MESSAGES, fields=("model",))}
    if "openai" in model:
        pages = {OPENAPI: 404, "/metrics": 404}  # type: ignore[dict-item]
    assert (await one(engine, pages, model=model)).warnings == []


async def test_lengths_that_differ_within_a_pool_are_told(engine: Engine) -> None:
    async with Engine() as other:
        card = {"data": [{"id": "tiny", "max_model_len": 2048}]}
        other.script = saying({"/v1/models": card})
        one, two = await found(pool(engine.url, other.url))
    told = "max_model_len of tiny is {}, the shortest of its pool 2048"
    assert (one.warnings, two.warnings) == ([told.format(4096)], [told.format(2048)])


async def test_a_server_of_two_models_is_asked_once(engine: Engine) -> None:
    text = f"models: {{tiny: {{replicas: [{engine.url}]}}, big: {{replicas: [{engine.url}]}}}}"
    (finding,) = await found(text)
    assert list(finding.models) == ["tiny", "big"]
    assert [p[:18] for p in finding.problems] == ["does not serve big"]
    assert sum(request.path == "/v1/models" for request in engine.requests) == 1


async def test_without_models_the_servers_tell_theirs(engine: Engine) -> None:
    (finding,) = await probed(configuration.discovered((engine.url,)))
    assert finding.line() == f"OK       {engine.url}: serves tiny; version 0.32.0"


@pytest.mark.parametrize("key", ["right", "wrong", "none"])
async def test_a_credential_is_tried_and_never_told(key: str) -> None:
    async with Engine(api_key=SECRET if key == "right" else "another") as engine:
        given = ", api_key_env: TOKEN" if key != "none" else ""
        (finding,) = await found(pool(f"{{url: '{engine.url}'{given}}}"))
    assert SECRET not in finding.line() + repr(finding)
    assert (
        finding.problems
        == {
            "right": [],
            "wrong": ["answers 401: it does not take the credential in TOKEN"],
            "none": ["answers 401: it wants a credential; name its variable with api_key_env"],
        }[key]
    )


# Entries that stand for several


async def test_each_address_of_a_name_is_asked_by_that_name(engine: Engine) -> None:
    async def lookup(host: str) -> Sequence[str]:
        assert host == NAME
        return ["127.0.0.1", "127.0.0.2"]

    text = pool(f"{{dns: 'http://{NAME}:{engine.port}'}}")
    well, away = await found(text, lookup=lookup)
    assert well.line().startswith(f"OK       {engine.url} ({NAME}) [tiny]: ")
    assert away.problems == ["no connection (refused)"]
    assert engine.requests[0].headers.get("host") == f"{NAME}:{engine.port}"


@pytest.mark.parametrize("form", ["dns", "url"])
async def test_a_name_that_leads_nowhere_is_a_problem(form: str) -> None:
    async def lookup(host: str) -> Sequence[str]:
        raise OSError("no such name")

    (finding,) = await found(pool(f"{{{form}: 'http://{NAME}:8000'}}"), lookup=lookup)
    assert finding.problems == [f"no connection (no address is known of {NAME})"]


async def test_each_server_of_a_file_is_asked(engine: Engine, tmp_path: Path) -> None:
    async with Engine() as other:
        path = tmp_path / "replicas"
        path.write_text(f"{engine.url}\n{other.url}\n")
        findings = await found(pool(f"{{file: {path}}}"))
        assert [f.server.url for f in findings] == [engine.url, other.url]
        assert [f.problems for f in findings] == [[], []]


# TLS


@contextlib.asynccontextmanager
async def secured(folder: Path, subject: str) -> AsyncIterator[int]:
    """The port of a server over TLS that answers nothing; its certificate is folder/cert.pem."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*self_signed(folder, subject))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_a_certificate_nobody_vouches_for_is_told_with_what_to_do(tmp_path: Path) -> None:
    async with secured(tmp_path, "IP:127.0.0.1") as port:
        (finding,) = await found(pool(f"https://127.0.0.1:{port}"))
    (problem,) = finding.problems
    assert problem.startswith("no connection (its certificate is not trusted: self")
    assert "name its authority with ca_file" in problem


async def test_tls_with_a_server_that_has_none_is_told() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    (finding,) = await found(pool(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    server.close()
    assert finding.problems == ["no connection (TLS failed): does it speak TLS? else write http://"]


async def test_a_file_without_certificates_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    (finding,) = await found(
        pool(f"{{url: 'https://127.0.0.1:9', ca_file: {tmp_path / 'ca.pem'}}}")
    )
    assert "holds no certificates of use" in finding.problems[0]


# The command


async def checked(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        FAIRGATE,
        *("check", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TOKEN": SECRET},
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("healthy", [True, False])
async def test_the_command_tells_a_line_for_each_and_ends_with_what_it_found(
    engine: Engine, tmp_path: Path, healthy: bool
) -> None:
    async with Engine(api_key=SECRET if healthy else "another") as other:
        file = tmp_path / "fairgate.yaml"
        file.write_text(pool(engine.url, f"{{url: '{other.url}', api_key_env: TOKEN}}"))
        status, out, err = await checked("--config", str(file), "--probe")
        lines = out.splitlines()
        assert lines[0].startswith(f"{file}: good. 1 models on 2 replicas")
        assert lines[1].startswith(f"OK       {engine.url} ")
        assert lines[2].startswith(f"{'OK' if healthy else 'problem':<8} {other.url} ")
        assert (status, len(lines), err) == (0 if healthy else 1, 3, "")
        assert SECRET not in out
        count = len(engine.requests)
        assert (await checked("--config", str(file)))[0] == 0
        assert len(engine.requests) == count


async def test_a_bad_configuration_is_told_before_anybody_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "fairgate.yaml"
    file.write_text(pool("ftp://x"))
    status, out, err = await checked("--config", str(file), "--probe")
    assert (status, out) == (2, "")
    assert "models.tiny.replicas[0]" in err

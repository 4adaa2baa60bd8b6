"""Bad input is refused with one clear answer, changes nothing, and never reaches the engine."""

import asyncio
import json
import logging
import re
from contextlib import suppress
from itertools import groupby
from typing import Any

import orjson
import pytest

from tests.fakes.client import Answer, Client, head, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving, until
from tests.fakes.script import Received
from tests.faults.bad_input import ROWS
from tests.faults.cases import BEARER, BODIES, CHAT, CONFIGS, JSON, Case, call

_ID = re.compile(r"req_[0-9a-f]{24}\Z")
_ALWAYS = {
    "host", "user-agent", "accept-encoding", "content-type", "content-length", "x-request-id",
    "accept", "traceparent",
}  # fmt: skip
_LONGEST_ERROR = 4096


@pytest.mark.parametrize("row", ROWS)
async def test_bad_input_is_answered_clearly_and_changes_nothing(
    row: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    cases = sorted(ROWS[row](), key=lambda case: case.config)
    assert len(cases) >= 5
    wrong: list[str] = []
    for config, group in groupby(cases, key=lambda case: case.config):
        model, more = CONFIGS[config]
        async with Engine() as engine:
            async with serving(configured(engine.url, model=model, more=more)) as gateway:
                known: dict[str, str] = {}
                for case in group:
                    try:
                        known[await _judge(case, gateway, engine)] = case.client_id
                    except (AssertionError, EOFError, ConnectionError, TimeoutError) as exc:
                        wrong.append(f"{case.name}: {exc!s:.300}")
                assert (await _call(gateway.port, call())).status == 200
                await _nothing_is_left(gateway)
                await _logged(gateway, known)
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong[:20])
    assert not [record.getMessage() for record in caplog.records if _is_a_fault(record)]


async def _judge(case: Case, gateway: Serving, engine: Engine) -> str:
    """Send it and assert all that is to be; the request's id if it passed, else nothing."""
    before = len(engine.requests)
    answer = await _call(gateway.port, case.raw)
    reached = engine.requests[before:]
    assert answer.status == case.status, f"{answer.status} {answer.body[:200]!r}"
    assert answer.closed != "rst", "the connection was reset"
    ids = answer.headers.all("x-request-id") + answer.headers.all("request-id")
    assert len(ids) == 2
    assert ids[0] == ids[1]
    assert _ID.match(ids[0])
    if case.upstream is None:
        assert not reached, f"the engine saw {reached}"
        _one_clear_error(case, answer, ids[0])
        return ""
    assert len(reached) == 1, reached
    _exactly_what_is_allowed(case, reached[0], ids[0])
    if "model" in answer.json():
        assert answer.json()["model"] == case.upstream["model"]
    return ids[0]


def _one_clear_error(case: Case, answer: Answer, request_id: str) -> None:
    assert answer.headers.get("content-type") == "application/json"
    assert 0 < len(answer.body) < _LONGEST_ERROR
    told = orjson.loads(answer.body)
    if case.anthropic:
        assert told.keys() == {"type", "error", "request_id"}, told
        assert (told["type"], told["request_id"]) == ("error", request_id), told
        assert (told["error"].keys(), told["error"]["type"]) == ({"type", "message"}, case.said), (
            told
        )
    else:
        assert told.keys() == {"error"}, told
        assert told["error"].keys() == {"message", "type", "param", "code"}, told
        assert (told["error"]["code"], told["error"]["type"]) == (
            case.said,
            "invalid_request_error",
        )
        assert request_id in told["error"]["message"]
    assert "Traceback" not in told["error"]["message"]


def _exactly_what_is_allowed(case: Case, seen: Received, request_id: str) -> None:
    names = [name.decode() for name, _ in seen.headers]
    asked = {name for name in ("anthropic-version", "anthropic-beta") if _is_clean(case, name)}
    assert sorted(names) == sorted(_ALWAYS | asked), names
    fields = {name.decode(): value.decode("latin-1") for name, value in seen.headers}
    assert (seen.method, seen.target) == ("POST", case.path)
    assert fields["x-request-id"] == request_id
    assert fields["user-agent"].startswith("fairgate/")
    assert fields["accept"] == "application/json"
    assert fields["accept-encoding"] == "identity"
    assert fields["content-type"] == "application/json"
    assert re.match(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01\Z", fields["traceparent"])
    body = json.loads(seen.body, object_pairs_hook=_no_key_twice)
    if case.path != "/v1/messages/count_tokens":
        assert body.pop("cache_salt") != "of-another-team"
    assert body == case.upstream, f"{str(body):.200}"


def _is_clean(case: Case, name: str) -> bool:
    found = re.search(rb"\r\n%b: ([^\r]*)\r\n" % name.encode(), case.raw)
    return found is not None and re.match(rb"[\x20-\x7e]{1,1024}\Z", found[1]) is not None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a key came twice"
    return dict(pairs)


async def _call(port: int, raw: bytes) -> Answer:
    """Send it, read one answer, and see that nothing follows one that closes."""
    async with await Client.open(port) as client:
        with suppress(ConnectionError):
            await client.send(raw)
        status, headers = await client.read_head(raw.partition(b" ")[0].decode("latin-1"))
        body = await client.read_body()
        if headers.get("connection") == "close":
            assert await client.read_until_close() == b"", "something followed the answer"
        return Answer(status, headers, body, True, client.ended)


async def _logged(gateway: Serving, known: dict[str, str]) -> None:
    """Wait until the log has the callers' own ids, by ours."""

    def found() -> dict[str, str]:
        ids = {line["request_id"]: line["client_request_id"] for line in gateway.lines()}
        return {"": "", **ids}

    await until(lambda: found().items() >= known.items())


async def _nothing_is_left(gateway: Serving) -> None:
    composition = gateway.worker.composition
    await gateway.until_quiet()
    assert composition.gateway.bodies.held == 0
    assert gateway.in_flight == 0


def _is_a_fault(record: logging.LogRecord) -> bool:
    return record.exc_info is not None or record.levelno >= logging.ERROR


async def test_many_calls_with_one_id_travel_under_ids_of_their_own() -> None:
    fields = [*HEADERS, ("x-request-id", "the-same")]
    body = json.dumps(BODIES[CHAT]).encode()
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        calls = [request(gateway.port, "POST", CHAT, fields, body) for _ in range(50)]
        answers = await asyncio.gather(*calls)
        assert {answer.status for answer in answers} == {200}
        posts = [seen for seen in engine.requests if seen.method == "POST"]
        ids = {seen.headers.get("x-request-id") for seen in posts}
        assert len(ids) == 50
        assert ids == {answer.headers.get("x-request-id") for answer in answers}


async def test_a_body_without_a_length_is_taken_in_no_further_than_its_cap() -> None:
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    fields = [BEARER, JSON, ("transfer-encoding", "chunked")]
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        async with await Client.open(gateway.port) as client:
            await client.send(head("POST", CHAT, fields))
            sent = 0
            with suppress(ConnectionError):
                for _ in range(40):
                    await client.send(piece)
                    sent += 1
            status, headers = await client.read_head()
            assert (status, headers.get("connection")) == (413, "close")
            assert orjson.loads(await client.read_body())["error"]["code"] == "request_too_large"
        assert 32 <= sent < 40
        assert gateway.worker.composition.gateway.bodies.held == 0
        assert (await _call(gateway.port, call())).status == 200
        assert [seen.method for seen in engine.requests].count("POST") == 1

"""What is learnt of a server, and that no answer of it does more than not be learnt from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from backends import discovery
from backends.discovery import Served
from backends.errors import BackendError, BadAnswer, ConnectFailed, Refused
from backends.transport import Transport
from tests.backends.sinks import replica
from tests.fakes.engine import Engine
from tests.fakes.script import plain


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport()
    yield made
    await made.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(models=("tiny", "alias")) as running:
        yield running


def says(engine: Engine, document: Any, status: int = 200) -> None:
    """From now on it answers everything so."""
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    engine.script = lambda request: plain(status, body)


async def test_the_models_of_a_server_are_listed(transport: Transport, engine: Engine) -> None:
    there = replica(engine.port)
    assert await discovery.models(transport, there) == [Served("tiny", 4096), Served("alias", 4096)]
    assert engine.requests[0].method == "GET"
    assert engine.requests[0].target == "/v1/models"


async def test_a_base_path_is_asked_below_it(transport: Transport, engine: Engine) -> None:
    there = replica(engine.port)
    there.base = "/openai/v1"
    says(engine, {"data": []})
    assert await discovery.models(transport, there) == []
    assert engine.requests[0].target == "/openai/v1/models"


async def test_what_is_no_model_is_left_out(transport: Transport, engine: Engine) -> None:
    odd = [
        1,
        None,
        {},
        {"id": 5},
        {"id": "a\r\nb"},
        {"id": "x" * 129},
        {"id": "a", "max_model_len": "x"},
        {"id": "b"},
    ]
    says(engine, {"data": odd})
    listed = await discovery.models(transport, replica(engine.port))
    assert listed == [Served("a", None), Served("b", None)]


@pytest.mark.parametrize("document", [b"", b"<html>", [], {}, {"data": {}}, {"data": None}, 5])
async def test_a_list_that_is_none_is_a_bad_answer(
    transport: Transport, engine: Engine, document: Any
) -> None:
    says(engine, document)
    with pytest.raises(BadAnswer):
        await discovery.models(transport, replica(engine.port))


async def test_a_server_that_refuses_is_told_apart_from_one_that_is_away(
    transport: Transport, engine: Engine
) -> None:
    says(engine, {}, 401)
    with pytest.raises(Refused) as refused:
        await discovery.models(transport, replica(engine.port))
    assert refused.value.status == 401
    await engine.stop()
    with pytest.raises(ConnectFailed):
        await discovery.models(transport, replica(engine.port))


async def test_the_fields_of_each_path_are_known(transport: Transport, engine: Engine) -> None:
    known = await discovery.fields(transport, replica(engine.port))
    assert known["/v1/chat/completions"] == {"model", "cache_salt"}
    assert known["/v1/messages/count_tokens"] == {"model"}


async def test_fields_of_joined_schemas_are_found(transport: Transport, engine: Engine) -> None:
    body = {"anyOf": [{"$ref": "#/components/schemas/A"}, {"properties": {"b": {}}}]}
    says(engine, _schema(body, {"A": {"allOf": [{"properties": {"a": {}}}]}}))
    known = await discovery.fields(transport, replica(engine.port))
    assert known == {"/v1/x": {"a", "b"}}


async def test_a_schema_that_holds_itself_ends(transport: Transport, engine: Engine) -> None:
    loop = {"properties": {"a": {}}, "allOf": [{"$ref": "#/components/schemas/A"}]}
    says(engine, _schema({"$ref": "#/components/schemas/A"}, {"A": loop}))
    assert await discovery.fields(transport, replica(engine.port)) == {"/v1/x": {"a"}}


@pytest.mark.parametrize(
    "document",
    [
        {"paths": []},
        {"paths": {"/v1/x": []}},
        {"paths": {"/v1/x": {"post": 5}}},
        {"paths": {"/v1/x": {"post": {"requestBody": None}}}},
        {"components": None},
        {"paths": {"/v1/x": {"post": {"requestBody": {"content": {"application/json": 1}}}}}},
    ],
)
async def test_a_schema_of_another_shape_is_a_bad_answer(
    transport: Transport, engine: Engine, document: Any
) -> None:
    says(engine, document)
    with pytest.raises(BackendError):
        await discovery.fields(transport, replica(engine.port))


@pytest.mark.parametrize("joined", [5, [5], {"a": 1}])
async def test_a_field_list_of_another_shape_is_a_bad_answer(
    transport: Transport, engine: Engine, joined: Any
) -> None:
    says(engine, _schema({"anyOf": joined}, {}))
    with pytest.raises(BackendError):
        await discovery.fields(transport, replica(engine.port))


def _schema(body: Any, schemas: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": body}}
    return {
        "paths": {"/v1/x": {"post": {"requestBody": {"content": content}}, "get": {}}},
        "components": {"schemas": schemas},
    }

"""What is learnt of a server, and that no answer of it does more than not be learnt from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from backends import discovery
from backends.base import Replica
from backends.capability import Served
from backends.errors import BadAnswer, ConnectFailed, ConnectionBroken, Refused
from backends.transport import Transport
from tests.backends.sinks import replica
from tests.fakes.engine import Engine
from tests.fakes.script import Received, Step, plain

CHAT = "/v1/chat/completions"


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(models=("tiny", "alias")) as running:
        yield running


def says(engine: Engine, document: Any, status: int = 200, at: str = "") -> None:
    """From now on it answers so: everything, or the one page `at`."""
    body = document if isinstance(document, bytes) else orjson.dumps(document)

    def answer(request: Received) -> list[Step] | None:
        return plain(status, body) if not at or request.path == at else None

    engine.script = answer


def asked(engine: Engine) -> list[str]:
    """The pages asked for since the last time."""
    pages = [request.path for request in engine.requests]
    engine.requests.clear()
    return pages


async def learn(transport: Transport, there: Replica) -> None:
    there.capability = await discovery.capability(transport, there)


async def test_a_server_tells_its_models_routes_fields_and_version(
    transport: Transport, engine: Engine
) -> None:
    there = replica(engine.port)
    await learn(transport, there)
    known = there.capability
    assert known.models == (Served("tiny", 4096), Served("alias", 4096))
    assert known.version == "0.32.0"
    assert {CHAT, "/v1/messages/count_tokens"} <= known.routes
    assert known.fields[CHAT] == {"model", "cache_salt"}
    assert known.fields["/v1/messages/count_tokens"] == {"model"}
    assert {request.method for request in engine.requests} == {"GET"}
    assert asked(engine) == ["/v1/models", "/version", "/openapi.json"]


async def test_the_schema_is_asked_for_again_only_by_another_server(
    transport: Transport, engine: Engine
) -> None:
    there = replica(engine.port)
    await learn(transport, there)
    asked(engine)
    before = there.capability
    await learn(transport, there)
    assert asked(engine) == ["/v1/models", "/version"]
    assert there.capability == before
    says(engine, {"version": "0.33.0"}, at="/version")
    await learn(transport, there)
    assert "/openapi.json" in asked(engine)
    assert there.capability == replace(before, version="0.33.0")


@pytest.mark.parametrize("told", [404, 200])
async def test_without_a_schema_nothing_is_known_and_the_models_are(
    transport: Transport, engine: Engine, told: int
) -> None:
    there = replica(engine.port)
    await learn(transport, there)
    engine.vllm.models = ("other",)
    says(engine, {"paths": []}, told, at="/openapi.json")
    await learn(transport, there)
    assert there.capability.models == (Served("other", 4096),)
    assert (there.capability.routes, dict(there.capability.fields)) == (frozenset(), {})
    assert there.capability.speaks("/v1/anything")
    asked(engine)
    await learn(transport, there)
    assert "/openapi.json" in asked(engine)


async def test_a_server_without_a_version_is_asked_for_its_schema_each_time(
    transport: Transport, engine: Engine
) -> None:
    says(engine, {}, 404, at="/version")
    there = replica(engine.port)
    for _ in range(2):
        await learn(transport, there)
        assert "/openapi.json" in asked(engine)
    assert there.capability.version == ""
    assert there.capability.routes


async def test_a_base_path_is_asked_below_it(transport: Transport, engine: Engine) -> None:
    there = replica(engine.port)
    there.base = "/openai/v1"
    says(engine, {"data": []})
    assert await discovery.models(transport, there) == ()
    assert engine.requests[0].target == "/openai/v1/models"


@pytest.mark.parametrize("document", [b"", b"<html>", [], {}, {"data": {}}, {"data": None}, 5])
async def test_a_list_that_is_none_is_a_bad_answer(
    transport: Transport, engine: Engine, document: Any
) -> None:
    says(engine, document)
    with pytest.raises(BadAnswer):
        await discovery.capability(transport, replica(engine.port))


async def test_a_server_that_refuses_is_told_apart_from_one_that_is_away(
    transport: Transport, engine: Engine
) -> None:
    says(engine, {}, 401)
    with pytest.raises(Refused) as refused:
        await discovery.capability(transport, replica(engine.port))
    assert refused.value.status == 401
    await engine.stop()
    with pytest.raises(ConnectionBroken):  # the connection that was kept
        await discovery.capability(transport, replica(engine.port))
    with pytest.raises(ConnectFailed):
        await discovery.capability(transport, replica(engine.port))


@pytest.mark.parametrize(
    "document",
    [
        {"paths": []},
        {"paths": {"/v1/x": 5}},
        {"paths": {"/v1/x": []}},
        {"paths": {"/v1/x": {"post": 5}}},
        {"paths": {"/v1/x": {"post": {"requestBody": None}}}},
        {"components": None},
        {"paths": {"/v1/x": {"post": {"requestBody": {"content": {"application/json": 1}}}}}},
        *(
            {
                "paths": {
                    "/v1/x": {
                        "post": {
                            "requestBody": {
                                "content": {"application/json": {"schema": {"anyOf": joined}}}
                            }
                        }
                    }
                }
            }
            for joined in (5, [5], {"a": 1})
        ),
    ],
)
async def test_a_schema_of_another_shape_is_not_known(
    transport: Transport, engine: Engine, document: Any
) -> None:
    says(engine, document, at="/openapi.json")
    known = await discovery.capability(transport, replica(engine.port))
    assert known.models
    assert (known.routes, dict(known.fields)) == (frozenset(), {})


# When it is asked again


class Naps:
    """A sleep that takes no time. `at` says what happens after so many seconds of it."""

    def __init__(self, at: dict[float, Any] | None = None) -> None:
        self.slept = 0.0
        self._at = at or {}

    async def __call__(self, seconds: float) -> None:
        self.slept += seconds
        self._at.get(self.slept, lambda: None)()


async def test_one_that_does_not_answer_is_asked_again_soon() -> None:
    naps = Naps()
    await discovery.pause(replica(1), answered=False, sleep=naps)
    assert naps.slept == 2


async def test_one_that_answered_is_asked_again_after_a_minute() -> None:
    naps = Naps()
    await discovery.pause(replica(1), answered=True, sleep=naps)
    assert naps.slept == 60


async def test_one_that_was_out_of_service_is_asked_when_it_is_back() -> None:
    there = replica(1)
    down = {4.0: lambda: there.health.told(0.0, "gone")}
    back = {20.0: lambda: there.health.told(0.0, ""), 30.0: lambda: there.health.served(1e9)}
    naps = Naps(down | back)
    await discovery.pause(there, answered=True, sleep=naps)
    assert naps.slept == 30

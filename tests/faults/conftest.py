"""For faults: the product's own event loop, and a check that no exception went uncaught."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from tests.fakes.redis import RedisServer


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def no_traceback(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    caught: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
    yield
    told = [record.getMessage() for record in caplog.get_records("call")]
    assert not caught
    assert not [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR], told


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest, redis_server: RedisServer) -> str:
    """Where counts are, as lines of the configuration. Nobody passes that Redis did not admit."""
    if request.param == "memory":
        return ""
    return f"secret: sixteen-letters-\nredis: {redis_server.url!r}\nwhen_redis_is_down: closed\n"

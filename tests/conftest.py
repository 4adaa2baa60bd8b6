"""Settings of every test, and the Redis they share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import settings

from tests.fakes.redis import RedisServer

# How long an example takes says more about the machine than about the code.
settings.register_profile("fairgate", deadline=None)
settings.load_profile("fairgate")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_redis() -> AsyncIterator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A real redis-server with nothing in it. Who stops, kills or configures one takes his own."""
    await shared_redis.clear()
    return shared_redis

"""A real Redis that is counted in, a client that looks into it, and couriers in a hurry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis as Client

from gateway.limits import courier
from gateway.limits.redis import Redis
from tests.fakes.redis import RedisServer
from tests.gateway.limits.counting import PREFIX


@pytest_asyncio.fixture
async def stores(redis_server: RedisServer) -> AsyncIterator[list[Redis]]:
    """Five workers."""
    async with AsyncExitStack() as stack:
        made = [Redis(redis_server.url, PREFIX) for _ in range(5)]
        for store in made:
            stack.push_async_callback(store.close)
        yield made


@pytest.fixture
def store(stores: list[Redis]) -> Redis:
    return stores[0]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Couriers look for a store that is away every 10 ms."""
    monkeypatch.setattr(courier, "_PROBE_EVERY", 0.01)


@pytest_asyncio.fixture
async def inside(redis_server: RedisServer) -> AsyncIterator[Any]:
    """A client that looks at what is kept."""
    async with Client.from_url(redis_server.url) as client:
        yield client

"""The event loops of these tests, and what most of them stand between: a transport, an engine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import uvloop

from backends.transport import Transport
from tests.backends.sinks import OK
from tests.fakes.engine import Engine
from tests.fakes.script import Send

_BOTH = (
    "test_transport.py",
    "test_transport_names.py",
    "test_connection.py",
    "test_precedence.py",
)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The transport must hold on both, the rest runs on asyncio's."""
    if item.path.name in (
        "test_transport.py",
        "test_transport_names.py",
        "test_connection.py",
        "test_precedence.py",
    ):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport()
    yield made
    await made.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """One that answers everything with `ok`."""
    async with Engine([Send(OK)]) as running:
        yield running

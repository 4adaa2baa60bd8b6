"""The scripted engine without a script."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.engine import Engine


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine() as running:
        yield running

"""A gateway in this process whose key has limits, its engine, and what is left of each limit."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from gateway.limits.courier import Courier
from gateway.limits.rulebook import Rulebook
from gateway.terms import Principal
from tests.fakes.engine import Engine
from tests.fakes.gateway import TIMEOUTS, Serving, configured, serving, until
from tests.fakes.script import Script

#: Windows that hardly ever end: what is left of them is exact.
LIMITS = "{requests_per_month: 1000, tokens_per_month: 100000, concurrency: 4}"
FULL = (1000, 100_000, 4)
#: Of what `body` asks: its messages have 35 bytes, its answer at most 8 tokens.
PROMPT, ESTIMATE = 9, 17


@dataclass
class Limited:
    """A gateway whose key has limits, and its engine.

    Mutable state: what there `was` of each rule, and how many `lines` the log had, when last asked.
    """

    gateway: Serving
    engine: Engine
    was: tuple[int, ...] = FULL
    lines: int = 0

    @property
    def port(self) -> int:
        return self.gateway.port

    @property
    def posts(self) -> int:
        return sum(seen.method == "POST" for seen in self.engine.requests)

    async def left(self) -> tuple[int, ...]:
        """Of each rule, once no request is under way and all settlements have arrived."""
        await self.gateway.until_quiet()
        counter = self.gateway.worker.composition.gateway.admission.counter
        if isinstance(counter, Courier):
            await until(lambda: not (counter._settlements or counter._waiting or counter.live))
        return await self.left_now()

    async def left_now(self) -> tuple[int, ...]:
        counter = self.gateway.worker.composition.gateway.admission.counter
        rules = Rulebook(self.gateway.worker.config).of(Principal("ann", "search"), "tiny")
        return tuple(left for left, _ in await counter.levels(rules))

    async def cost(self) -> tuple[int, int]:
        """Requests and tokens that were charged since the last call; all slots are free again."""
        now = await self.left()
        requests, tokens = (was - is_ for was, is_ in zip(self.was[:2], now[:2], strict=True))
        self.was = now
        assert now[2:] == FULL[2:]
        return requests, tokens

    async def line(self) -> dict[str, Any]:
        """The log line of the one request since the last call."""
        await self.gateway.until_quiet()
        lines = await self.gateway.logged(self.lines + 1)
        self.lines += 1
        assert len(lines) == self.lines
        return lines[-1]

    async def charged(self, tokens_are: str) -> int:
        """The completion tokens of the one request since the last call, charged as logged."""
        line = await self.line()
        assert (line["tokens_are"], line["attempts"]) == (tokens_are, 1)
        assert line["prompt_tokens"] > 0
        assert await self.cost() == (1, line["prompt_tokens"] + line["completion_tokens"])
        return int(line["completion_tokens"])


@contextlib.asynccontextmanager
async def limited(
    store: str,
    script: Script | None = None,
    *,
    key: str = LIMITS,
    team: str = "{}",
    model: str = "{}",
    timeouts: str = TIMEOUTS,
    url: str = "",
) -> AsyncIterator[Limited]:
    async with Engine(script) as engine:
        text = configured(
            url or engine.url, more=store, model=f"limits: {model}", timeouts=timeouts
        )
        old = "}]\nteams: {search: {}}"
        assert old in text
        text = text.replace(old, f", limits: {key}}}]\nteams: {{search: {{limits: {team}}}}}")
        async with serving(text) as gateway:
            yield Limited(gateway, engine)

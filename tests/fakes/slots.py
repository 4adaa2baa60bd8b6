"""Engines that have so many slots and so many tokens a second, in a process of their own.

`python -m tests.fakes.slots ENGINES SLOTS RATE TOKENS` prints the ports as a JSON line and runs
until standard input closes. Who finds no slot is answered with a 500: it is the sender's to count.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from typing import Self

import uvloop

from tests.fakes.engine import Engine
from tests.fakes.http1 import readable
from tests.fakes.process import Program
from tests.fakes.script import Chunk, EndChunks, Received, Sleep, Step, plain, stream
from tests.fakes.vllm import Vllm


class Slots:
    """The script of one engine. Mutable state: `busy`, how many slots are taken."""

    def __init__(self, slots: int, rate: float, tokens: int) -> None:
        self._slots = slots
        self._rate = rate
        self._tokens = tokens
        self.busy = 0

    def answer(self, got: Received) -> Iterable[Step] | None:
        if got.method != "POST":
            return None
        if self.busy >= self._slots:
            return plain(500, b'{"error":{"message":"no slot","type":"full","code":500}}')
        usual = [step for step in Vllm(("tiny",), None).answer(got) if isinstance(step, Chunk)]
        return self._stream(usual)

    def _stream(self, usual: list[Chunk]) -> Iterator[Step]:
        opening, token, closing = usual[:2], usual[2], usual[-3:]
        clock = asyncio.get_running_loop().time
        began = clock()
        self.busy += 1
        try:
            yield from stream([], end=False)
            yield from opening
            for number in range(self._tokens):
                yield Sleep(max(0.0, began + (number + 1) / self._rate - clock()))
                yield token
        finally:
            # Before the last words: whoever reads them may send the next request at once.
            self.busy -= 1
        yield from closing
        yield EndChunks()


class SlotsProcess(Program):
    """That process. `urls` are where its engines listen."""

    def __init__(self, engines: int, slots: int, rate: float, tokens: int) -> None:
        super().__init__()
        self._given = (engines, slots, rate, tokens)
        self.urls: list[str] = []

    async def __aenter__(self) -> Self:
        ports = json.loads(await self._start_ours("tests.fakes.slots", *map(str, self._given)))
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        return self


async def _run(engines: int, slots: int, rate: float, tokens: int) -> None:
    async with AsyncExitStack() as stack:
        made = [Engine(Slots(slots, rate, tokens).answer) for _ in range(engines)]
        for engine in made:
            await stack.enter_async_context(engine)
        print(json.dumps([engine.port for engine in made]), flush=True)
        await readable(sys.stdin.fileno())  # the parent is gone


if __name__ == "__main__":
    _engines, _slots, _rate, _tokens = sys.argv[1:]
    uvloop.run(_run(int(_engines), int(_slots), float(_rate), int(_tokens)))

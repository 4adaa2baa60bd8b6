"""`python -m tests.speed.counting SWITCH`, below callgrind: the path's work, a dump for each kind.

A dump is named `KIND TIMES`. The first rounds of each kind are not counted: the interpreter adapts
itself to code that it runs again and again.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable

import uvloop

from gateway.worker import settle_collector
from tests.speed import path
from tests.speed.path import MESSAGES, Path, request

_WARM = 1.5
#: What is counted: its name, the request, the answer in the engine's writes, and how often. The
#: first one's head comes again with the others of its path but for the one that says so.
KINDS = (
    ("plain", request(1_000, stream=False), path.plain_answer(), 40),
    ("plain of 8 KB", request(8_000, stream=False), path.plain_answer(), 40),
    (
        "plain, another head",
        request(1_000, stream=False, accept="text/html"),
        path.plain_answer(),
        40,
    ),
    ("stream", request(1_000, stream=True), path.streamed_answer(100), 4),
    ("longer stream", request(1_000, stream=True), path.streamed_answer(400), 2),
    ("messages", request(1_000, stream=True, path=MESSAGES), path.message_answer(100), 4),
    ("longer messages", request(1_000, stream=True, path=MESSAGES), path.message_answer(400), 2),
)
CALIBRATION = 20_000


def calibrate(times: int) -> int:
    """Work of the interpreter that never changes: calls, objects, look-ups, bytes."""
    seen: dict[bytes, tuple[int, str]] = {}
    for number in range(times):
        seen[b"%d" % (number & 63)] = number, str(number)
    return len(seen)


async def count(on: Callable[[], None], off: Callable[[bytes], None]) -> None:
    through = Path(os.open(os.devnull, os.O_WRONLY))
    for name, sent, answer, times in KINDS:
        through.engines.answer = answer
        for _ in range(round(times * _WARM)):
            await through.ask(sent)
        settle_collector()
        on()
        for _ in range(times):
            await through.ask(sent)
        off(b"%b %d" % (name.encode(), times))
    through.close()
    calibrate(1000)
    on()
    calibrate(CALIBRATION)
    off(b"calibration %d" % CALIBRATION)


def main() -> None:
    switch = ctypes.CDLL(sys.argv[1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(count(lambda: switch.on(), lambda name: switch.off(name)))


if __name__ == "__main__":
    main()

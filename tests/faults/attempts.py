"""One of several processes that ask the same Redis for the same rule.

    python -m tests.faults.attempts REDIS_URL WINDOW LIMIT COUNT SECONDS

It prints `ready`, waits for a line, makes COUNT attempts at one request each spread over SECONDS,
and prints them as JSON: [when it was decided by Redis' clock, whether it was granted], ...
Redis' clock is set forward by the microseconds under the key `shift`. What was granted on the first
day is given back on the second.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from hashlib import sha1
from typing import cast

from gateway.limits import courier
from gateway.limits.base import WIDTH, Claim, Rule, Window
from gateway.limits.courier import Courier
from gateway.limits.memory import microseconds
from gateway.limits.redis import Redis, Script

#: How many attempts are made in one turn of the event loop.
TOGETHER = 50
_CLOCK = "local now = clock[1] * 1000000 + clock[2]"


def shifted(*names: str) -> Script:
    script = Script(*names)
    assert _CLOCK in script.text
    script.text = script.text.replace(_CLOCK, f"{_CLOCK} + (redis.call('GET', 'shift') or 0)")
    script.sha = sha1(script.text.encode(), usedforsecurity=False).hexdigest()
    return script


class Shifted(Redis):
    """A store whose clock is not the server's own."""

    turning = shifted("rules", "settle", "decide")
    renewing = shifted("rules", "renew")


class Attempts:
    """Mutable state: what was `made`, and the granted claims of today that were not given back."""

    def __init__(self, asked: Courier, rule: Rule) -> None:
        self.made: list[tuple[int, bool]] = []
        self._asked = asked
        self._rule = rule
        self._held: list[Claim] = []
        self._day = 0

    async def spread(self, count: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for first in range(0, count, TOGETHER):
            await asyncio.sleep(began + seconds * first / count - loop.time())
            await asyncio.gather(*(self._one(first + n) for n in range(TOGETHER)))

    async def _one(self, number: int) -> None:
        claim = Claim(f"{os.getpid()}-{number}", ((self._rule, 1),))
        decision = await self._asked.decide(claim)
        granted = decision.refused is None
        self.made.append((decision.at, granted))
        day = decision.at // WIDTH["day"]
        if self._rule.window == "day" and self._day < day:
            self._day = day
            for held in self._held:
                self._asked.settle(held, [(self._rule, 1, 0)], decision.at)
            self._held.clear()
        if granted:
            self._held.append(claim)


async def main(url: str, window: Window, limit: int, count: int, seconds: float) -> None:
    courier._CALL = 5.0  # how long a busy machine takes is not what this is about
    asked = Courier(Shifted(url, "{fairgate}"), "closed", microseconds())
    await asked.start()
    running = asyncio.create_task(asked.run())
    attempts = Attempts(asked, Rule("gateway", (), "requests", window, limit))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    await attempts.spread(count, seconds)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await asked.close(5)
    assert not asked.decided_here
    print(json.dumps(attempts.made), flush=True)


if __name__ == "__main__":
    _, url, window, limit, count, seconds = sys.argv
    asyncio.run(main(url, cast(Window, window), int(limit), int(count), float(seconds)))

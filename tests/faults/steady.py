"""Requests at a steady rate, whatever the answers do, from a process of its own.

`python -m tests.faults.steady PORT RATE SECONDS` sends RATE small chat requests a second over
connections that stay open, and prints a JSON line of each: when it was due and how long its answer
took (seconds of `time.monotonic`), its status, whether it says that limits are degraded.
"""

import asyncio
import json
import os
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

from tests.fakes.client import Client
from tests.fakes.gateway import HEADERS
from tests.faults.asking import CHAT, body

#: The most requests that are under way at once; one that finds no room is told with status 0.
MOST = 100


async def _one(port: int, idle: deque[Client], due: float, told: list[dict[str, Any]]) -> None:
    client = idle.pop() if idle else await Client.open(port)
    status, degraded = 0, False
    with suppress(OSError, EOFError):
        await client.post(CHAT, body(CHAT, stream=False), HEADERS)
        status, headers = await client.read_head("POST")
        await client.read_body()
        degraded = headers.get("x-fairgate-limits") == "degraded"
        idle.append(client)
    took = time.monotonic() - due
    told.append({"due": due, "took": took, "status": status, "degraded": degraded})


async def _run(port: int, rate: float, seconds: float) -> None:
    idle: deque[Client] = deque()
    told: list[dict[str, Any]] = []
    live: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(due - time.monotonic())
        if len(live) >= MOST:
            told.append({"due": due, "took": 0, "status": 0, "degraded": False})
            continue
        task = asyncio.create_task(_one(port, idle, due, told))
        live.add(task)
        task.add_done_callback(live.discard)
    await asyncio.gather(*live)
    for client in idle:
        client.close()
    sys.stdout.write("".join(f"{json.dumps(line)}\n" for line in told))


if __name__ == "__main__":
    os.nice(5)  # what is measured comes first
    asyncio.run(_run(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))

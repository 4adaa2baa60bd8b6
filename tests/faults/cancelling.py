"""Requests without a connection, watched at every turn of the event loop and cancelled anywhere.

A point is where a request waits, by file and line of its innermost frame, and what it waits for
there has come to. Points are found by looking, not listed: those that uncancelled requests pass are
the ones at which others are cancelled.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Coroutine, Generator, MutableMapping
from pathlib import Path
from types import FrameType
from typing import Any

import orjson

from gateway.endpoints import ENDPOINTS
from gateway.errors import Draining
from gateway.exchange import Exchange
from gateway.limits.courier import Courier
from gateway.relay import Relay
from gateway.reply import State
from gateway.terms import Head
from tests.fakes.caller import FakeCaller
from tests.fakes.gateway import Serving
from tests.fakes.script import Chunk, Received, Rst, Send, Sleep, Step
from tests.fakes.script import Head as Begun
from tests.fakes.vllm import Vllm
from tests.faults.asking import CHAT, MESSAGES

NONCE = re.compile(rb"nonce-[0-9a-f]{12}")
_BY_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}
_ROOT = Path(__file__).parents[2]
_PRODUCT = (f"{_ROOT}/gateway/", f"{_ROOT}/backends/")
_PAUSE = Sleep(0.0005)


class Echo:
    """The script of engines that answer with what they were sent: its nonce, first and last.

    Mutable state: the nonces whose first answer was broken off.
    """

    def __init__(self) -> None:
        self._vllm = Vllm(("tiny",), None)
        self._broken: set[bytes] = set()

    def __call__(self, request: Received) -> list[Step] | None:
        if request.method != "POST":
            return None
        (nonce,) = set(NONCE.findall(request.body))
        steps = self._vllm.answer(request)
        if b"breaks" in request.body and nonce not in self._broken:
            self._broken.add(nonce)
            return [steps[0], _PAUSE, Rst()] if isinstance(steps[0], Begun) else [Rst()]
        paced: list[Step] = []
        for step in steps:
            paced.append(_PAUSE)
            if isinstance(step, Send):  # a plain answer: its head is out before its body
                head, end, body = _marked(step.data, nonce).partition(b"\r\n\r\n")
                paced += [Send(_sized(head, body) + end), _PAUSE, Send(body)]
            elif isinstance(step, Chunk):
                paced.append(Chunk(_marked(step.data, nonce)))
            else:
                paced.append(step)
        return paced


def _marked(said: bytes, nonce: bytes) -> bytes:
    return said.replace(b"Hello", nonce).replace(b" well", nonce)


def _sized(head: bytes, body: bytes) -> bytes:
    return re.sub(rb"content-length: \d+", b"content-length: %d" % len(body), head)


class Watched(Coroutine[Any, Any, None]):
    """A coroutine that tells `waits` of each future it waits for, before its task hears of it."""

    def __init__(self, inner: Coroutine[Any, Any, None], waits: Any) -> None:
        self._inner: Any = inner
        self._waits = waits

    def send(self, value: Any) -> Any:
        future = self._inner.send(value)
        if future is not None:
            self._waits(future)
        return future

    def throw(self, *raised: Any) -> Any:
        return self._inner.throw(*raised)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise AssertionError("a task sends to it")

    def innermost(self) -> FrameType | None:
        """Where in the product it waits."""
        found, at = None, self._inner
        while (frame := getattr(at, "cr_frame", None)) is not None:
            if frame.f_code.co_filename.startswith(_PRODUCT):
                found = frame
            at = at.cr_await
        return found


class Asked:
    """One request. `kind` is what points it can pass.

    Mutable state: `aim`, the point at which it is to be cancelled, after it was seen there
    `sightings` times more; `hit`, where it was; `attempts` as far as they were seen.
    """

    def __init__(self, serving: Serving, chance: random.Random) -> None:
        self.aim: str | None = None
        self.sightings = 0
        self.hit: str | None = None
        self.caller = FakeCaller()
        self.nonce = b"nonce-%012x" % chance.getrandbits(48)
        path, stream = chance.choice((CHAT, MESSAGES)), chance.random() < 0.6
        breaks, double = chance.random() < 0.2, path == CHAT and chance.random() < 0.1
        self.kind = (stream, breaks)
        content = (
            f"{self.nonce.decode()} {'breaks' if breaks else ''} {'word ' * chance.randrange(80)}"
        )
        said: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
        said |= {"model": "tiny", "max_tokens": 50, "stream": stream}
        self._body = orjson.dumps(said | ({"n": 2} if double else {}))
        self._pieces = chance.choice((1, 2))
        self._way = chance.random()
        self._composition = serving.worker.composition
        self._flight: object = None
        self._attempts = 0
        self.waiting: asyncio.Future[Any] | None = None
        fields = {b"authorization": b"Bearer fg-test-key-of-team-search"}
        head = Head("POST", path, fields | {b"content-type": b"application/json"})
        now = asyncio.get_running_loop().time()
        gateway = self._composition.gateway
        self._exchange = Exchange(gateway, _BY_PATH[path], head, self.caller, now)

    def begin(self, on_answer: Any) -> asyncio.Task[None]:
        def waits(future: asyncio.Future[Any]) -> None:
            self.waiting = future
            future.add_done_callback(lambda _: on_answer(self))

        self.running = Watched(self._exchange.run(self._receive), waits)
        self.caller.task = asyncio.get_running_loop().create_task(self.running)
        return self.caller.task

    async def _receive(self) -> MutableMapping[str, Any]:
        self._pieces -= 1
        await asyncio.sleep(0.0005)
        cut = len(self._body) // 2 if self._pieces else len(self._body)
        piece, self._body = self._body[:cut], self._body[cut:]
        return {"type": "http.request", "body": piece, "more_body": bool(self._body)}

    def leave(self) -> None:
        """End it in one of the three ways there are."""
        self.hit = self.point()
        if self._way < 0.8:
            self.caller.gone = True
            watcher, self.caller.watcher = self.caller.watcher, None
            if watcher is not None:
                watcher.gone()
        elif self._way < 0.9:
            self._exchange.end(Draining("Stopping."))
        else:
            self.caller.task.cancel()

    def point(self) -> str | None:
        frame = self.running.innermost() if not self.caller.task.done() else None
        if frame is None or self.waiting is None:
            return None
        code = frame.f_code
        where = f"{Path(code.co_filename).relative_to(_ROOT)}:{frame.f_lineno} {code.co_name}"
        return f"{where}: {self._phase(frame)}"

    def _phase(self, frame: FrameType) -> str:
        assert self.waiting is not None
        if self.waiting.done():
            return "answered, not resumed" + self._again()
        if frame.f_code is Courier.decide.__code__:
            courier = self._composition.courier
            assert courier is not None
            gathered = any(waiting is self.waiting for _, waiting in courier._waiting)
            return "gathered" if gathered else "in flight"
        relay = self.caller.watcher
        if not isinstance(relay, Relay):
            return "waiting"
        if relay._flight is not self._flight:
            self._flight = relay._flight
            self._attempts += 1
        return self._progress(relay) + self._again()

    def _again(self) -> str:
        return ", at a second replica" if self._attempts > 1 else ""

    def _progress(self, relay: Relay) -> str:
        flight: Any = relay._flight
        if relay._reply.state is State.ENDED:
            return "all is relayed, the engine's end is missing"
        if relay._reply.state is not State.NONE:
            return "relaying"
        if relay._status:
            return "the engine's head is here"
        return "connecting" if flight._connection is None else "asked"

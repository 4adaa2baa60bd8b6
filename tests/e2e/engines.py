"""The real model servers under test: found by their addresses, or started; and what they tell."""

import asyncio
import contextlib
import http.client
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from anyio.from_thread import BlockingPortal

from backends import install, launch
from tests.fakes.client import Answer, request

JSON = ("content-type", "application/json")
CHAT_URL, EMBEDDING_URL = "FAIRGATE_TEST_CHAT_URL", "FAIRGATE_TEST_EMBEDDING_URL"
_RUNNING, _GENERATED = "vllm:num_requests_running", "vllm:generation_tokens_total"


@dataclass(frozen=True, slots=True)
class RealEngine:
    """One vLLM on loopback and the name it serves its model under."""

    port: int
    model: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ask(self, path: str, body: dict[str, Any]) -> Answer:
        """What the engine itself answers."""
        sent = json.dumps({**body, "model": self.model}).encode()
        return await request(self.port, "POST", path, [JSON], sent, patience=60)

    async def openapi(self) -> dict[str, Any]:
        document: dict[str, Any] = (await request(self.port, "GET", "/openapi.json")).json()
        return document

    async def metric(self, name: str) -> float:
        """The sum of one metric over its labels."""
        text = (await request(self.port, "GET", "/metrics")).body.decode()
        samples = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert samples, f"the engine has no metric {name}"
        return sum(map(float, samples))

    async def running(self) -> int:
        """How many requests are being generated now."""
        return int(await self.metric(_RUNNING))

    async def generated(self) -> int:
        """How many tokens it has generated since it started."""
        return int(await self.metric(_GENERATED))

    async def until_running(self, least: int, timeout: float = 20) -> None:
        """Until at least so many requests are being generated."""
        async with asyncio.timeout(timeout):
            while await self.running() < least:
                await asyncio.sleep(0.02)

    async def until_idle(self, timeout: float) -> None:
        """Until nothing is being generated. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while await self.running():
                await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Engines:
    """The two that the gateway stands in front of."""

    chat: RealEngine
    embedding: RealEngine


@contextlib.contextmanager
def real_engines(portal: BlockingPortal, state: Path) -> Iterator[Engines]:
    """Those whose addresses are in the environment, else two started the way `fairgate up` does.

    Fails the test run, never skips it, where there is no engine to start.
    """
    chat, embedding = os.environ.get(CHAT_URL), os.environ.get(EMBEDDING_URL)
    if chat and embedding:
        yield Engines(_served(chat), _served(embedding))
        return
    python = install.found(os.environ)
    if python is None:
        pytest.fail("no engine is installed; `make engine` prepares it", pytrace=False)
    environ = {**os.environ, "XDG_STATE_HOME": str(state)}
    with pytest.MonkeyPatch.context() as patch:
        # The random model, whatever hub answers: its answers are quick and their lengths known.
        patch.setenv("HF_HUB_OFFLINE", "1")
        started = launch.choose(None, None, python, lambda line: None, environ=environ)
    urls = {engine.role: engine.url for engine in started}
    if "embedding" not in urls:
        pytest.fail("the engine has no embedding model; `make engine` installs it", pytrace=False)
    launched = launch.Launched(started, lambda progress: None, environ=environ)
    with portal.wrap_async_context_manager(launched):
        yield Engines(_served(urls["chat"]), _served(urls["embedding"]))


def _served(url: str) -> RealEngine:
    place = urlsplit(url)
    assert place.hostname == "127.0.0.1", f"{url}: the tests ask engines on 127.0.0.1 only"
    assert place.port is not None, f"{url} names no port"
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", place.port)) as connection:
        connection.request("GET", "/v1/models")
        listed = json.load(connection.getresponse())
    return RealEngine(place.port, listed["data"][0]["id"])

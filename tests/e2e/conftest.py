"""The whole product once for all tests here: real engines, the installed command, the SDKs.

Engines that already run are used where FAIRGATE_TEST_CHAT_URL and FAIRGATE_TEST_EMBEDDING_URL
name them; else they are started, which takes a minute or two.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic import Anthropic, AsyncAnthropic
from anyio.from_thread import BlockingPortal, start_blocking_portal
from openai import AsyncOpenAI, OpenAI

from backends.launch import free_ports
from tests.e2e.engines import Engines, RealEngine, real_engines
from tests.fakes.gateway import Command, until

KEY = "fg-e2e-search-0123456789abcdef"
OTHER_KEY = "fg-e2e-adverts-0123456789abcdef"
CHAT, EMBEDDING = "house-chat", "house-embedding"
# The last of each is what README's examples ask for.
CHAT_ALIASES = ("gpt-4o", "claude-sonnet-5", "tiny-random")
EMBEDDING_ALIASES = ("text-embedding-3-small", "all-minilm-l6-v2")
LARGEST_BODY = 1 << 20
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """The installed command as it serves. `key` may use every model, `other_key` one of them."""

    command: Command
    port: int
    admin_port: int
    key: str = KEY
    other_key: str = OTHER_KEY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> list[dict[str, Any]]:
        """The lines of its log so far."""
        whole, _, _ = bytes(self.command.out).rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    async def logged(self, count: int) -> list[dict[str, Any]]:
        """The log once it has `count` lines."""
        await until(lambda: len(self.log()) >= count)
        return self.log()

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.key}"), ("content-type", "application/json")]


def configuration(chat_url: str, engines: Engines, admin_port: int) -> str:
    """Two keys in two teams, a model under another name and with aliases, and embeddings."""
    digest, other = (hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER_KEY))
    return f"""
listen: 127.0.0.1:0
admin_listen: 127.0.0.1:{admin_port}
secret: a secret of the tests
request: {{body: {LARGEST_BODY}B}}
models:
  {CHAT}:
    replicas: [{chat_url}]
    upstream_model: {engines.chat.model}
    aliases: [{", ".join(CHAT_ALIASES)}]
  {EMBEDDING}:
    replicas: [{engines.embedding.url}]
    upstream_model: {engines.embedding.model}
    aliases: [{", ".join(EMBEDDING_ALIASES)}]
teams:
  search: {{}}
  adverts: {{models: [{EMBEDDING}]}}
keys:
  - {{name: ann, team: search, sha256: {digest}}}
  - {{name: bob, team: adverts, sha256: {other}}}
"""


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """An event loop in a thread, for what outlives the loop of one test."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="session")
def engines(portal: BlockingPortal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    with real_engines(portal, tmp_path_factory.mktemp("state")) as engines:
        yield engines


@pytest.fixture(scope="session")
def chat_engine(engines: Engines) -> RealEngine:
    return engines.chat


@pytest.fixture(scope="session")
def gateway(
    portal: BlockingPortal, engines: Engines, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    file: Path = tmp_path_factory.mktemp("gateway") / "fairgate.yaml"
    admin_port = next(free_ports(1))
    file.write_text(configuration(engines.chat.url, engines, admin_port))
    command = Command("serve", "--config", str(file))
    with portal.wrap_async_context_manager(command):
        yield RunningGateway(command, portal.call(command.listening), admin_port)


@pytest.fixture
def openai_client(gateway: RunningGateway) -> Iterator[OpenAI]:
    base = f"{gateway.url}/v1"
    with OpenAI(base_url=base, api_key=gateway.key, max_retries=0, timeout=_PATIENCE) as client:
        yield client


@pytest.fixture
async def async_openai(gateway: RunningGateway) -> AsyncIterator[AsyncOpenAI]:
    base = f"{gateway.url}/v1"
    async with AsyncOpenAI(
        base_url=base, api_key=gateway.key, max_retries=0, timeout=_PATIENCE
    ) as client:
        yield client


@pytest.fixture
def anthropic_client(gateway: RunningGateway) -> Iterator[Anthropic]:
    with Anthropic(
        base_url=gateway.url, api_key=gateway.key, max_retries=0, timeout=_PATIENCE
    ) as client:
        yield client


@pytest.fixture
async def async_anthropic(gateway: RunningGateway) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(
        base_url=gateway.url, api_key=gateway.key, max_retries=0, timeout=_PATIENCE
    ) as client:
        yield client

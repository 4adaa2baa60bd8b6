"""Servers that come, go, move and change, in front of callers who see none of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from backends import discovery
from gateway.membership import Membership
from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving, until
from tests.fakes.script import Chunk, EndChunks, Received, Step, Wait, plain, stream

CHAT = "/v1/chat/completions"
NAME = "vllm.test"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
STREAM = BODY[:-1] + b',"stream":true}'


class At(Engine):
    """An engine at another address of this machine."""

    def __init__(self, address: str, port: int) -> None:
        super().__init__(port=port)
        self.address = address

    def start(self) -> None:
        self._listener = socket.create_server((self.address, self.port), backlog=1024)
        self._listener.setblocking(False)
        self._spawn(self._accept(self._listener))


class Names:
    """What the system says of the name: `said` may be changed; `asked`, how often it was asked."""

    def __init__(self, *said: str) -> None:
        self.said: Sequence[str] = said
        self.asked = 0


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names("127.0.0.1")

    async def answer(host: str) -> Sequence[str]:
        assert host == NAME
        made.asked += 1
        if not made.said:
            raise OSError("away")
        return made.said

    defaults: Any = Membership.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "lookup", answer)
    return made


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine() as running:
        yield running


def here(engine: Engine) -> str:
    return f"'http://{NAME}:{engine.port}'"


async def resolved_again(gateway: Serving, names: Names) -> None:
    """Until the name was asked for once more, and its answer taken."""
    resolver = gateway.worker.composition.membership._resolver
    before = names.asked
    resolver._wake.set()
    await until(lambda: names.asked > before and not resolver._asking)


def members(gateway: Serving) -> list[str]:
    pool = gateway.worker.composition.routes.table["tiny"].pool
    return [replica.url for replica in pool.replicas]


async def served(gateway: Serving, times: int = 1) -> set[int]:
    return {(await request(gateway.port, "POST", CHAT, HEADERS, BODY)).status for _ in range(times)}


# A name


async def test_a_resolver_that_is_away_is_not_noticed(engine: Engine, names: Names) -> None:
    async with serving(configured(here(engine))) as gateway:
        assert await served(gateway, 2) == {200}
        names.said = ()
        await resolved_again(gateway, names)
        asked = names.asked
        engine.requests.clear()
        gateway.worker.composition.transport._idle.clear()
        assert await served(gateway, 3) == {200}
        assert engine.requests[0].headers.get("host") == f"{NAME}:{engine.port}"
        assert names.asked == asked  # never on the way of a request


async def test_a_name_that_was_never_resolved_is_a_502_and_served_once_it_is(
    engine: Engine, names: Names
) -> None:
    names.said = ()
    async with serving(configured(here(engine))) as gateway:
        assert await served(gateway) == {502}
        names.said = ["127.0.0.1"]
        await resolved_again(gateway, names)
        assert await served(gateway) == {200}


async def test_a_server_that_moved_is_found_at_its_new_address(
    engine: Engine, names: Names
) -> None:
    async with serving(configured(here(engine))) as gateway, At("127.0.0.2", engine.port) as moved:
        assert await served(gateway) == {200}
        names.said = ["127.0.0.2"]
        await resolved_again(gateway, names)
        await engine.stop()
        assert await served(gateway, 3) == {200}
        assert len([r for r in moved.requests if r.path == CHAT]) == 3


# A name with several addresses


async def test_addresses_of_a_name_join_and_leave_and_what_runs_there_ends_well(
    engine: Engine, names: Names
) -> None:
    wait = Wait()
    text = configured(f"{{dns: {here(engine)}}}", model="policy: round_robin")
    async with At("127.0.0.2", engine.port) as other, serving(text) as gateway:
        first, second = f"http://127.0.0.1:{engine.port}", f"http://127.0.0.2:{engine.port}"
        assert members(gateway) == [first]
        names.said = ["127.0.0.1", "127.0.0.2"]
        await resolved_again(gateway, names)
        assert members(gateway) == [first, second]
        assert await served(gateway, 4) == {200}
        for each in (engine, other):
            posts = [r for r in each.requests if r.path == CHAT]
            assert len(posts) == 2
            assert {r.headers.get("host") for r in posts} == {f"{NAME}:{engine.port}"}

        running = stream(
            [b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'], end=False
        )
        rest: list[Step] = [wait, Chunk(b"data: [DONE]\n\n"), EndChunks()]
        engine.script = other.script = [*running, *rest]
        async with await Client.open(gateway.port) as client:
            await client.post(CHAT, orjson.loads(STREAM), HEADERS)
            await until(lambda: engine.sent + other.sent > 0 and gateway.in_flight == 2)
            stays, url = (other, second) if busy(engine) else (engine, first)
            names.said = [url.rpartition("/")[2].partition(":")[0]]
            await resolved_again(gateway, names)
            assert members(gateway) == [url]
            wait.event.set()
            await client.read_head()
            events = [event async for event in client.read_events()]
            assert events[-1] == b"data: [DONE]\n\n"
        engine.script = other.script = None
        stays.requests.clear()
        assert await served(gateway, 3) == {200}
        assert len([r for r in stays.requests if r.path == CHAT]) == 3
        await gateway.until_quiet()


def busy(engine: Engine) -> bool:
    return engine.vllm.metrics["vllm:num_requests_running"] > 0


async def test_a_name_of_several_that_leads_nowhere_yet_is_a_502(
    engine: Engine, names: Names
) -> None:
    names.said = ()
    async with serving(configured(f"{{dns: {here(engine)}}}")) as gateway:
        assert await served(gateway) == {502}
        names.said = ["127.0.0.1"]
        await resolved_again(gateway, names)
        assert await served(gateway) == {200}
        names.said = ()
        await resolved_again(gateway, names)
        assert members(gateway) == [f"http://127.0.0.1:{engine.port}"]
        assert await served(gateway) == {200}


# A file


async def test_the_servers_of_a_file_are_those_it_names_last(
    engine: Engine, tmp_path: Path
) -> None:
    file, draft = tmp_path / "replicas", tmp_path / "draft"
    file.write_text(f"{engine.url}\n")
    async with Engine() as other, serving(configured(f"{{file: {file}}}")) as gateway:
        assert await served(gateway) == {200}
        draft.write_text(f"{other.url}\n")
        draft.replace(file)
        await until(lambda: members(gateway) == [other.url], timeout=20)
        assert await served(gateway, 2) == {200}
        assert len([r for r in other.requests if r.path == CHAT]) == 2
        file.write_text("nonsense\n")
        await asyncio.sleep(2.5)  # longer than it takes to be read
        assert members(gateway) == [other.url]
        assert await served(gateway) == {200}


# What servers say of themselves


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_SOON", 0.02)
    monkeypatch.setattr(discovery, "_LATER", 0.02)


def listing(models: dict[str, int]) -> Callable[[Received], list[Step] | None]:
    def answer(asked: Received) -> list[Step] | None:
        cards = [{"id": name, "max_model_len": length} for name, length in models.items()]
        listed = orjson.dumps({"data": cards})
        return plain(200, listed) if asked.path == "/v1/models" else None

    return answer


@pytest.mark.usefixtures("soon")
async def test_another_length_of_a_model_is_noticed(engine: Engine) -> None:
    models = {"tiny": 100}
    engine.script = listing(models)
    async with serving(configured(engine.url)) as gateway:
        table = gateway.worker.composition.routes.table
        await until(lambda: table["tiny"].max_model_len == 100)
        models["tiny"] = 200
        await until(lambda: table["tiny"].max_model_len == 200)


# A route that not every server has


def without(path: str) -> Callable[[Received], list[Step] | None]:
    """A server whose schema has not this path, and which answers 404 to it."""
    content: dict[str, Any] = {
        "content": {"application/json": {"schema": {"properties": {"model": {}}}}}
    }
    paths = {
        at: {"post": {"requestBody": content}} for at in (CHAT, "/v1/completions") if at != path
    }

    def answer(asked: Received) -> list[Step] | None:
        if asked.path == "/openapi.json":
            return plain(200, orjson.dumps({"paths": paths}))
        return plain(404, b'{"detail":"Not Found"}') if asked.path == path else None

    return answer


MESSAGE = b'{"model":"tiny","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}'


async def test_only_servers_that_have_a_route_are_asked_for_it(engine: Engine) -> None:
    async with Engine(without("/v1/messages")) as old:
        async with serving(configured(old.url, engine.url)) as gateway:
            for _ in range(4):
                answer = await request(gateway.port, "POST", "/v1/messages", HEADERS, MESSAGE)
                assert answer.status == 200
        assert not [r for r in old.requests if r.path == "/v1/messages"]


async def test_a_route_that_no_server_has_is_refused_with_its_name() -> None:
    async with Engine(without("/v1/messages")) as old, serving(configured(old.url)) as gateway:
        answer = await request(gateway.port, "POST", "/v1/messages", HEADERS, MESSAGE)
        assert answer.status == 400
        assert "No server of the model `tiny` has /v1/messages" in answer.body.decode()
        assert not [r for r in old.requests if r.path == "/v1/messages"]
        assert await served(gateway) == {200}

"""The admin port: what it shows, to whom, and that the data port shows none of it."""

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway import admin, config, feed, worker
from gateway.limits.report import Told
from gateway.listeners import Server, admin_server, bound, cut
from gateway.units import Address
from gateway.wire import sse
from tests.fakes.client import Client, head, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving, until

ADMIN = "admin-key-of-the-tests"
#: What needs the key, and a word of each answer.
PAGES = (
    *(("GET", "/metrics"), ("GET", "/status"), ("GET", "/limits"), ("HEAD", "/events")),
    *(("POST", "/limits/reset?all=true"), ("GET", "/drain?url=http://gpu9")),
    *(("POST", "/drain?url=http://gpu9"), ("POST", "/undrain?url=http://gpu9")),
)
LOCKED = f"admin_key_sha256: {hashlib.sha256(ADMIN.encode()).hexdigest()}"


async def test_counts_and_status_are_shown_and_health_has_no_body() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        metrics = await request(gateway.admin_port, "GET", "/metrics")
        assert metrics.status == 200
        assert metrics.headers.get("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        status = await request(gateway.admin_port, "GET", "/status")
        told = status.json()
        assert (told["ready"], told["live_requests"], told["models"]) == (True, 0, {"tiny": "tiny"})
        (replica,) = told["pools"]["tiny"]["replicas"]
        assert (replica["url"], replica["last_error"]) == (engine.url, None)
        (worker,) = told["workers"]
        assert (worker["pid"], worker["ready"], worker["restarts"]) == (os.getpid(), True, 0)
        for path in ("/healthz", "/readyz"):
            answer = await request(gateway.admin_port, "GET", path)
            assert (answer.status, answer.body) == (200, b"")


async def test_only_readiness_tells_that_the_process_is_not_ready() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        gateway.worker.state.ready = False
        assert (await request(gateway.admin_port, "GET", "/readyz")).status == 503
        assert (await request(gateway.admin_port, "GET", "/healthz")).status == 200
        assert (await request(gateway.admin_port, "GET", "/status")).json()["ready"] is False


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("127.0.0.1:9464", "localhost:9464", "[::1]:1", "x", "")),
        *((host, 403) for host in ("rebound.example", "rebound.example:9464", "127.0.0.1.nip.io")),
    ],
)
async def test_without_a_key_no_page_can_ask_by_a_name_bound_to_loopback(
    host: str, status: int
) -> None:
    """DNS rebinding: to the browser such a page and the admin port are one origin."""
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        for path in ("/status", "/limits", "/metrics"):
            async with await Client.open(gateway.admin_port) as client:
                await client.send(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                assert (await client.read_head())[0] == status
    async with Engine() as engine, serving(configured(engine.url, more=LOCKED)) as gateway:
        headers = [("authorization", f"Bearer {ADMIN}"), ("host", "metrics.example")]
        assert (await request(gateway.admin_port, "GET", "/status", headers)).status == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (f"Bearer {ADMIN}", 200),
        (f"bearer  {ADMIN}", 200),
        (f"Basic {ADMIN}", 403),
        (ADMIN, 403),
        (f"Bearer {ADMIN}x", 403),
        ("Bearer ", 403),
        ("Bearer caf\u00e9", 403),
        (None, 403),
    ],
)
async def test_with_a_key_only_health_is_open(sent: str | None, status: int) -> None:
    headers = [] if sent is None else [("authorization", sent)]
    async with Engine() as engine, serving(configured(engine.url, more=LOCKED)) as gateway:
        for method, path in PAGES:
            answer = await request(gateway.admin_port, method, path, headers)
            there = 404 if "gpu9" in path else 200
            assert answer.status == (there if status == 200 else status)
            if status == 403 and method != "HEAD":
                assert answer.body == b"the admin key is missing or wrong\n"
        for path in ("/healthz", "/readyz"):
            assert (await request(gateway.admin_port, "GET", path)).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/status", "/limits", "/events"])
async def test_the_data_port_shows_none_of_it(path: str) -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        assert (await request(gateway.port, "GET", path, HEADERS)).status == 404
        assert (await request(gateway.admin_port, "POST", path)).status == 405
        assert (await request(gateway.admin_port, "GET", "/v1/models", HEADERS)).status == 404


RULES = "limits: {requests_per_day: 2, concurrency: 3}\n"
MODELS = "/v1/models"


async def test_limits_are_shown_and_reset() -> None:
    async with Engine() as engine, serving(configured(engine.url, more=RULES)) as gateway:
        for status in (200, 200, 429):
            assert (await request(gateway.port, "GET", MODELS, HEADERS)).status == status
        for query in ("", "?key=ann", "?team=search"):
            told = (await request(gateway.admin_port, "GET", f"/limits{query}")).json()
            assert (told["degraded"], told["mode"]) == (False, None)
            requests, slots = told["rules"]
            assert 0 < requests.pop("reset") <= 86_400
            assert requests.pop("reset_at").endswith("T00:00:00Z")
            assert requests == {
                **{"scope": "gateway", "owner": [], "name": "requests_per_day"},
                **{"limit": 2, "burst": 2, "used": 2, "left": 0},
            }
            assert (slots["name"], slots["used"], slots["left"]) == ("concurrency", 0, 3)
        answer = await request(gateway.admin_port, "POST", "/limits/reset?key=ann")
        assert answer.json() == {"reset": []}  # the gateway's rules are not the key's
        assert (await request(gateway.port, "GET", MODELS, HEADERS)).status == 429
        answer = await request(gateway.admin_port, "POST", "/limits/reset?all=true")
        assert [rule["name"] for rule in answer.json()["reset"]] == ["requests_per_day"]
        assert (await request(gateway.port, "GET", MODELS, HEADERS)).status == 200


@pytest.mark.parametrize(
    ("method", "target", "status", "error"),
    [
        ("POST", "/limits/reset", 400, "wanted key=NAME, team=NAME or all=true"),
        ("POST", "/limits/reset?all=1", 400, "wanted key=NAME, team=NAME or all=true"),
        ("POST", "/limits/reset?key=ann&all=true", 400, "wanted key=NAME, team=NAME or all=true"),
        (
            "POST",
            "/limits/reset?key=ann&team=search",
            400,
            "wanted key=NAME, team=NAME or all=true",
        ),
        ("GET", "/limits?key=ann&team=search", 400, "one of key and team, not both"),
        ("GET", "/limits?key=bob", 404, "no key 'bob'; known: ann"),
        ("POST", "/limits/reset?team=ads", 404, "no team 'ads'; known: search"),
    ],
)
async def test_what_cannot_be_shown_or_reset_is_said(
    method: str, target: str, status: int, error: str
) -> None:
    async with Engine() as engine, serving(configured(engine.url, more=RULES)) as gateway:
        answer = await request(gateway.admin_port, method, target)
        assert (answer.status, answer.json()) == (status, {"error": error})


async def test_nothing_is_reset_by_looking_nor_by_a_page_in_a_browser() -> None:
    target, page = "/limits/reset?all=true", [("origin", "https://elsewhere.example")]
    async with Engine() as engine, serving(configured(engine.url, more=RULES)) as gateway:
        await request(gateway.port, "GET", MODELS, HEADERS)
        assert (await request(gateway.admin_port, "GET", target)).status == 405
        assert (await request(gateway.admin_port, "POST", target, page)).status == 403
        told = (await request(gateway.admin_port, "GET", "/limits")).json()
        assert told["rules"][0]["used"] == 1


# Drains

TARGETS = [*(("POST", f"/{name}?url=") for name in ("drain", "undrain")), ("GET", "/drain?url=")]


def standing(told: dict[str, Any]) -> str:
    (replica,) = told["pools"]["tiny"]["replicas"]
    return str(replica["standing"])


@pytest.mark.parametrize("written", ["{}", "{}/", "{}/v1", "{}/v1/"])
async def test_a_replica_is_taken_out_and_in_again_however_its_url_is_written(written: str) -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        query = f"?url={written.format(engine.url)}"
        for method, path, drained in (
            *(("GET", "/drain", False), ("POST", "/drain", True), ("GET", "/drain", True)),
            *(("POST", "/undrain", False), ("GET", "/drain", False)),
        ):
            answer = await request(gateway.admin_port, method, path + query)
            assert (answer.status, answer.json()["drained"]) == (200, drained)
            assert answer.json()["url"] == engine.url
            assert answer.json()["pools"] == ["tiny"]
            status = (await request(gateway.admin_port, "GET", "/status")).json()
            assert standing(status) == ("drained" if drained else "up")


async def test_a_drain_and_its_end_are_in_the_diagnostics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        port = gateway.admin_port
        caplog.clear()
        for method, target in (*TARGETS, ("POST", "/drain?url=http://gpu9:1&of=")):
            await request(port, method, f"{target}{engine.url}")
        told = [r.getMessage() for r in caplog.records if "operator" in r.getMessage()]
    assert told == [
        f"{engine.url} is drained: nothing more is sent there, says the operator",
        f"{engine.url} is not drained any more, says the operator",
    ]


@pytest.mark.parametrize(("method", "target"), TARGETS)
async def test_what_is_no_replica_is_said(method: str, target: str) -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        answer = await request(gateway.admin_port, method, f"{target}http://gpu9:1")
        error = f"no replica 'http://gpu9:1'; known: {engine.url}"
        assert (answer.status, answer.json()) == (404, {"error": error})
        for wrong in ("", "gpu9"):
            answer = await request(gateway.admin_port, method, f"{target}{wrong}")
            assert answer.status == 400
            assert answer.json()["error"].startswith("url: wanted a URL such as http://gpu1:8000")


async def test_nothing_is_taken_out_by_looking_nor_by_a_page_in_a_browser() -> None:
    page = [("origin", "https://elsewhere.example")]
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        port, query = gateway.admin_port, f"?url={engine.url}"
        assert (await request(port, "GET", f"/undrain{query}")).status == 405
        assert (await request(port, "POST", f"/drain{query}", page)).status == 403
        assert standing((await request(port, "GET", "/status")).json()) == "up"
        assert (await request(port, "POST", f"/drain{query}")).status == 200
        assert (await request(port, "POST", f"/undrain{query}", page)).status == 403
        assert standing((await request(port, "GET", "/status")).json()) == "drained"


# Events


@contextlib.asynccontextmanager
async def listening(port: int, rcvbuf: int | None = None) -> AsyncIterator[Client]:
    """A listener, its head read."""
    async with await Client.open(port, rcvbuf=rcvbuf) as client:
        await client.send(head("GET", "/events"))
        status, headers = await client.read_head()
        assert (status, headers.get("content-type")) == (200, "text/event-stream; charset=utf-8")
        assert headers.get("cache-control") == "no-store"
        yield client


async def told(client: Client, standing_: str) -> dict[str, Any]:
    """The first status it hears in which the replica stands so."""
    async for event in client.read_events():
        if event.startswith(b"event: status\n"):
            document: dict[str, Any] = orjson.loads(sse.payload(event))
            if standing(document) == standing_:
                return document
    raise AssertionError("the events ended")


def watchers() -> list[str]:
    """The tasks of the events' library that end with the loop, or never."""
    names = (str(task.get_coro()) for task in asyncio.all_tasks())
    return [name for name in names if "_shutdown_watcher" in name]


async def test_listeners_are_told_the_status_at_once_and_when_it_changes() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        port = gateway.admin_port
        async with listening(port) as one, listening(port) as other:
            first = await asyncio.gather(told(one, "up"), told(other, "up"))
            status = (await request(port, "GET", "/status")).json()
            assert set(first[0]) == set(first[1]) == set(status)
            await request(port, "POST", f"/drain?url={engine.url}")
            await asyncio.gather(told(one, "drained"), told(other, "drained"))
            assert not watchers()


async def test_there_are_so_many_listeners_and_no_more() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        port = gateway.admin_port
        async with contextlib.AsyncExitStack() as held:
            for _ in range(feed.MOST_LISTENERS):
                last = await held.enter_async_context(listening(port))
            answer = await request(port, "GET", "/events")
            assert answer.status == 503
            assert answer.json() == {"error": "16 listen already; ask /status instead"}
            last.close()
            for _ in range(500):
                if (await request(port, "HEAD", "/events")).status == 200:
                    break
                await asyncio.sleep(0.01)
            async with listening(port) as client:
                await told(client, "up")


class Slow:
    """`Workers` whose status is `load` and a number that is always another one.

    Only `/events` is asked for here: nothing may reach what counts, changes limits or drains.
    """

    ready = True

    def __init__(self, load: bytes) -> None:
        self.load = load.decode()
        self.asked = 0

    async def status(self) -> dict[str, Any]:
        self.asked += 1
        return {"load": self.load, "number": self.asked}

    async def metrics(self) -> bytes:
        return b""

    async def limits(self, key: str | None, team: str | None) -> Told:
        raise AssertionError("/events asked for limits")

    async def reset_limits(self, key: str | None, team: str | None) -> Told:
        raise AssertionError("/events reset limits")

    async def drain(self, url: str, out: bool | None) -> Told:
        raise AssertionError("/events drained a replica")


@contextlib.asynccontextmanager
async def alone(workers: Slow) -> AsyncIterator[tuple[int, Server]]:
    """The admin port of these, with nothing else: its number and its server."""
    server = admin_server(workers, config.load("test.yaml", "admin_listen: 127.0.0.1:0", {}))
    with contextlib.ExitStack() as held:
        sock = bound(Address("127.0.0.1", 0), held)
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        try:
            yield sock.getsockname()[1], server
        finally:
            server.should_exit = True
            cut([server])
            await serving


async def test_a_listener_that_does_not_read_is_dropped_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin, "_READS_WITHIN", 1.0)
    workers = Slow(b"x" * (8 << 20))  # more than the sockets hold
    async with alone(workers) as (port, server):
        async with listening(port, rcvbuf=4096) as silent, listening(port) as reading:
            reads = asyncio.create_task(everything(reading))
            await until(lambda: len(server.server_state.connections) == 2)
            await until(lambda: len(server.server_state.connections) == 1, timeout=20)
            asked = workers.asked
            await until(lambda: workers.asked > asked + 1, timeout=10)
            assert not reads.done()
            with pytest.raises((ConnectionResetError, EOFError)):
                await silent.read_body()
            reads.cancel()
            await asyncio.wait([reads])
        await until(lambda: not server.server_state.tasks)
    assert not caplog.records


async def everything(client: Client) -> None:
    async for _ in client.read_pieces():
        pass


async def test_events_end_with_the_gateway_and_do_not_hold_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_FAREWELL", 60.0)  # what it waits for those who do not end
    async with contextlib.AsyncExitStack() as held:
        engine = await held.enter_async_context(Engine())
        async with asyncio.timeout(20), serving(configured(engine.url)) as gateway:
            listeners = [
                await held.enter_async_context(listening(gateway.admin_port)) for _ in range(2)
            ]
            for client in listeners:
                await told(client, "up")
        for client in listeners:
            with contextlib.suppress(ConnectionResetError, EOFError):
                await everything(client)

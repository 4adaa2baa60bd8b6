"""The admin port: what it shows, to whom, and that the data port shows none of it."""

import hashlib

import pytest

from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving

ADMIN = "admin-key-of-the-tests"
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
        for path in ("/metrics", "/status"):
            answer = await request(gateway.admin_port, "GET", path, headers)
            assert answer.status == status
            assert (b"fairgate" in answer.body or b"ready" in answer.body) is (status == 200)
        for path in ("/healthz", "/readyz"):
            assert (await request(gateway.admin_port, "GET", path)).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/status"])
async def test_the_data_port_shows_none_of_it(path: str) -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        assert (await request(gateway.port, "GET", path, HEADERS)).status == 404
        assert (await request(gateway.admin_port, "POST", path)).status == 405
        assert (await request(gateway.admin_port, "GET", "/v1/models", HEADERS)).status == 404

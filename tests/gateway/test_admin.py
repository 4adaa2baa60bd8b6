"""The admin port: what it shows, to whom, and that the data port shows none of it."""

import hashlib
import os

import pytest

from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving

ADMIN = "admin-key-of-the-tests"
#: What needs the key, and a word of each answer.
PAGES = (
    *(("GET", "/metrics"), ("GET", "/status"), ("GET", "/limits")),
    ("POST", "/limits/reset?all=true"),
)
TOLD = (b"fairgate", b"ready", b"degraded", b"reset")
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
            assert answer.status == status
            assert any(word in answer.body for word in TOLD) is (status == 200)
        for path in ("/healthz", "/readyz"):
            assert (await request(gateway.admin_port, "GET", path)).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/status", "/limits"])
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

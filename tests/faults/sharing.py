"""A gateway whose teams have limits in a real Redis, and what Redis says of them."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from tests.fakes.client import request
from tests.fakes.gateway import Command
from tests.fakes.redis import RedisServer

PREFIX = "{fairgate}:"
MINUTE = 60_000_000


def headers(team: str) -> tuple[tuple[str, str], ...]:
    """Those of a request by the one key of a team."""
    return (
        ("authorization", f"Bearer fg-test-key-of-team-{team}"),
        ("content-type", "application/json"),
    )


def limited(
    engines: str, redis: str | None, teams: Mapping[str, str], model: str = "{}", more: str = ""
) -> str:
    """A configuration of one model, `tiny`. `teams` have one key each, of the same name, and their
    limits in `{}` style, as the model has; without `redis` they are counted in memory. A call of
    Redis that takes too long on a busy machine admits nobody.
    """
    digests = {
        team: hashlib.sha256(f"fg-test-key-of-team-{team}".encode()).hexdigest() for team in teams
    }
    keys = ", ".join(f"{{name: {t}, team: {t}, sha256: {d}}}" for t, d in digests.items())
    limits = ", ".join(f"{team}: {{limits: {rules}}}" for team, rules in teams.items())
    return (
        "listen: 127.0.0.1:0\n"
        "secret: sixteen-letters-\n"
        f"keys: [{keys}]\n"
        f"teams: {{{limits}}}\n"
        f"models: {{tiny: {{replicas: [{engines}], limits: {model}}}}}\n"
        f"{f'redis: {redis}' if redis else ''}\n"
        "when_redis_is_down: closed\n"
        f"{more}"
    )


@contextlib.asynccontextmanager
async def gateway(folder: Path, text: str, workers: int) -> AsyncIterator[tuple[Command, int, int]]:
    """The command with so many workers: it, its port and its admin port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin = taken.getsockname()[1]
    file = folder / "fairgate.yaml"
    file.write_text(f"{text}\nworkers: {workers}\nadmin_listen: 127.0.0.1:{admin}\n")
    async with Command("serve", "--config", str(file)) as command:
        yield command, await command.listening(), admin
        assert b"Traceback" not in command.err, command.err.decode()
        assert b"Redis is away" not in command.err, command.err.decode()


async def worker_pids(admin: int) -> list[int]:
    told = (await request(admin, "GET", "/status")).json()
    return [worker["pid"] for worker in told["workers"]]


async def redis_time(server: RedisServer) -> int:
    """Microseconds since the epoch by Redis' clock."""
    seconds, rest = await server.command("TIME")
    return int(seconds) * 1_000_000 + int(rest)


async def counted(server: RedisServer, rule: str) -> int:
    """What a window has counted, or a bucket's level in its own unit; `rule` as in its key."""
    kept = await server.command("GET", PREFIX + rule)
    return int(kept.partition(":")[0]) if kept else 0


async def slots(server: RedisServer, rule: str) -> int:
    """How many leases of a rule there are."""
    return int(await server.command("ZCARD", PREFIX + rule))


async def reserved(server: RedisServer) -> list[str]:
    """The reservations that wait for their settlement. A mark that none may be made is none."""
    keys = await server.command("KEYS", PREFIX + "r:*")
    kept = await server.command("MGET", *keys) if keys else ()
    return [key for key, value in zip(keys, kept, strict=True) if value not in (None, "-")]

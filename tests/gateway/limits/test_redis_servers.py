"""Redis as operators run it: a user of few rights, TLS, replicas, sentinels, a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from redis.asyncio import Redis as Client
from redis.exceptions import NoPermissionError

from gateway.limits.base import Claim, Close, Rule, Settlement, Unavailable
from gateway.limits.redis import Redis, clients
from tests.fakes.redis import RedisServer, free_port
from tests.fakes.redis_many import RedisCluster, RedisSentinels
from tests.gateway.limits.counting import PREFIX, ids

#: All that the gateway's user may have to do, as an ACL names it.
COMMANDS = frozenset(
    "del eval evalsha mget pexpire ping set time zadd zcard zrem zremrangebyscore".split()
)
#: What its user may have to do in a cluster besides.
CLUSTER_COMMANDS = frozenset({"cluster|slots", "cluster|shards", "command"})

RULES = (
    Rule("key", ["k"], "requests", "minute", 600),
    Rule("team", ["{t}"], "tokens", "second", 1000),
    Rule("team_model", ["{t}", "m"], "tokens", "month", 10**9),
    Rule("gateway", (), "concurrency", None, 100),
)


@asynccontextmanager
async def opened(url: str, prefix: str = PREFIX) -> AsyncIterator[Redis]:
    store = Redis(url, prefix)
    try:
        yield store
    finally:
        await store.close()


async def granted(store: Redis) -> bool:
    [decision] = await store.turn([], [Claim(next(ids), tuple((rule, 1) for rule in RULES))])
    return decision.refused is None


async def everything(store: Redis) -> None:
    """Whatever a store does."""
    claims = [Claim(next(ids), tuple((rule, 5) for rule in RULES)) for _ in range(3)]
    assert [d.refused for d in await store.turn([], claims)] == [None] * 3
    await store.renew(claims)
    ended = [
        Settlement(claim.id, [(rule, 5, 3) for rule in RULES], close)
        for claim, close in zip(claims, (Close.SETTLE, Close.UNDO, Close.CHARGE), strict=True)
    ]
    await store.turn(ended, [])
    await store.reset(RULES)
    assert (await store.levels(RULES))[2][0] == 10**9
    await store.probe()


# Rights


def user(commands: frozenset[str]) -> str:
    allowed = " ".join(f"+{command}" for command in sorted(commands))
    return f"user gate on >secret resetchannels ~{PREFIX}:* -@all {allowed}"


async def test_a_user_needs_its_prefix_and_these_commands_only() -> None:
    async with RedisServer(user(COMMANDS)) as server:
        async with opened(server.url_for("gate", "secret")) as store:
            await everything(store)
        assert (await server.commands_used()).keys() == COMMANDS
        async with Client.from_url(server.url_for("gate", "secret")) as client:
            ask: Any = client.execute_command
            for words in ("GET {fairgate}:x", "FLUSHALL", "CONFIG GET *", "KEYS *"):
                with pytest.raises(NoPermissionError):
                    await ask(*words.split())
        async with opened(server.url_for("gate", "secret"), "other") as store:
            with pytest.raises(Unavailable, match="Permission"):
                await granted(store)


@pytest.mark.parametrize("command", sorted(COMMANDS))
async def test_without_any_of_these_commands_redis_is_unavailable(command: str) -> None:
    async with RedisServer(user(COMMANDS - {command})) as server:
        async with opened(server.url_for("gate", "secret")) as store:
            with pytest.raises(Unavailable, match="permission|can't run this command"):
                await everything(store)


async def test_a_wrong_password_is_unavailable() -> None:
    async with RedisServer(user(COMMANDS)) as server:
        async with opened(server.url_for("gate", "wrong")) as store:
            with pytest.raises(Unavailable):
                await store.probe()


async def test_redis_is_reached_by_tls() -> None:
    async with RedisServer(tls=True) as server:
        trusted = f"{server.url}?ssl_ca_certs={quote(str(server.ca_file), safe='')}"
        async with opened(trusted) as store:
            await everything(store)
        async with opened(server.url) as store:
            with pytest.raises(Unavailable, match="(?i)certificate"):
                await store.probe()


# Servers that answer, but cannot count


async def test_a_replica_is_unavailable() -> None:
    async with RedisServer(f"replicaof 127.0.0.1 {free_port()}") as server:
        async with opened(server.url) as store:
            with pytest.raises(Unavailable, match="(?i)read.?only"):
                await granted(store)
            with pytest.raises(Unavailable, match="(?i)read.?only"):
                await store.probe()


async def test_a_server_that_loads_is_unavailable_until_it_has_loaded() -> None:
    slowly = (
        "key-load-delay 20000",
        "rdbcompression no",
        "loading-process-events-interval-bytes 1024",
    )
    async with RedisServer(*slowly, "rdbcompression no") as server:
        fill = "for i = 1, 60 do redis.call('SET', i, string.rep('x', 1024)) end"
        await server.command("EVAL", fill, 0)
        await server.command("SAVE")
        await server.kill()
        await server.start()
        async with opened(server.url) as store:
            with pytest.raises(Unavailable, match="(?i)loading"):
                await granted(store)
            with pytest.raises(Unavailable, match="(?i)loading"):
                await store.probe()
            assert await until_granted(store) < 10


async def test_a_server_without_memory_changes_nothing() -> None:
    async with RedisServer() as server, opened(server.url) as store:
        rates = tuple((rule, 1) for rule in RULES[:3])
        await store.turn([], [Claim(next(ids), rates)])
        await server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="memory"):
            await store.turn([], [Claim(next(ids), rates)])
        await server.command("CONFIG", "SET", "maxmemory", "0")
        assert (await store.levels(RULES))[2][0] == 10**9 - 1


async def until_granted(store: Redis) -> float:
    """Seconds until a claim is granted again, each call having the time that requests have."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(30):
        while True:
            try:
                async with asyncio.timeout(0.05):
                    if await granted(store):
                        return loop.time() - began
            except (Unavailable, TimeoutError):
                await asyncio.sleep(0.02)


# Several servers


@pytest.mark.slow
async def test_after_a_failover_the_new_primary_counts() -> None:
    async with RedisSentinels() as servers, opened(servers.url) as store:
        await everything(store)
        before = await servers.primary_port()
        await servers.kill_primary()
        with pytest.raises(Unavailable):
            await granted(store)
        took = await until_granted(store)
        print(f"a failover took {took:.1f} s, of which 0.5 s are the sentinels' patience")
        assert await servers.primary_port() != before
        assert took < 15
        await everything(store)


@pytest.mark.slow
async def test_a_cluster_takes_every_call() -> None:
    async with RedisCluster() as servers, opened(servers.url) as store:
        await everything(store)
        keys = [await server.command("KEYS", "*") for server in servers.servers]
        used = {name for server in servers.servers for name in await server.commands_used()}
        assert [bool(of_server) for of_server in keys].count(True) == 1
        assert used <= COMMANDS | CLUSTER_COMMANDS
        async with opened(servers.url, "no-tag") as untagged:
            with pytest.raises(Unavailable, match="slot"):
                await granted(untagged)


@pytest.mark.parametrize(
    ("told", "connect"), [("", 0.15), ("?socket_connect_timeout=0.4", 0.4)], ids=["ours", "told"]
)
async def test_a_clusters_node_has_its_time_and_a_url_may_give_it_more(
    told: str, connect: float
) -> None:
    (cluster,) = clients(f"redis+cluster://127.0.0.1:1,127.0.0.1:2{told}")
    given = cluster.connection_kwargs
    assert (given["socket_connect_timeout"], given["socket_timeout"]) == (connect, 0.15)

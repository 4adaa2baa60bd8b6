"""The same through every kind of Redis: sentinels, a cluster, TLS, and a user who may do little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, serving
from tests.fakes.redis import RedisServer
from tests.fakes.redis import until as until_told
from tests.fakes.redis_many import RedisCluster, RedisSentinels
from tests.faults.outage import (
    MODEL_SLOTS,
    TEAM_SLOTS,
    back,
    check,
    courier_of,
    each_dialect,
    frozen,
    given_up,
    killed,
    ruled,
    settled,
    told,
)
from tests.faults.sharing import PREFIX, slots

pytestmark = pytest.mark.usefixtures("no_traceback")

AWAY, BACK = "limits: Redis is away", "limits: Redis is back"
#: All that a user of the gateway must be allowed.
MAY = (
    "~{fairgate}:* -@all +ping +set +evalsha +eval +time +mget +del +pexpire"
    " +zadd +zcard +zrem +zremrangebyscore"
)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine() as running:
        yield running


async def test_a_user_limited_to_its_keys_and_commands_is_enough(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisServer("user default off", f"user gw on >a:b@c/d {MAY}") as server:
        async with serving(ruled(engine.url, server.url_for("gw", "a:b@c/d"))) as gateway:
            check(await each_dialect(gateway, 3), None)
            await server.command("SCRIPT", "FLUSH")
            check(await each_dialect(gateway), None)
            async with frozen(server):
                await given_up(gateway, "local")
            await back(gateway)
            check(await each_dialect(gateway), None)
            rules = gateway.worker.composition.rulebook.owned()
            assert len(await courier_of(gateway).levels(rules)) == len(rules)
            await courier_of(gateway).reset(rules)
            assert told(caplog) == [AWAY, BACK]
        assert await server.command("ACL", "LOG") == []
        used = {name.partition("|")[0] for name in await server.commands_used()}
        assert used <= {"auth"} | {word[1:] for word in MAY.split() if word[0] == "+"}, used


@pytest.mark.parametrize(
    "lacks",
    [
        pytest.param("evalsha", marks=pytest.mark.slow),
        pytest.param("set", marks=pytest.mark.slow),
        "zadd",
    ],
)
async def test_a_user_who_may_not_do_enough_is_a_redis_that_is_away(
    engine: Engine, lacks: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Told once, with what is lacking, for as long as it lasts."""
    less = MAY.replace(f"+{lacks} ", "")
    async with RedisServer("user default off", f"user gw on >secret {less}") as server:
        async with serving(ruled(engine.url, server.url_for("gw", "secret"))) as gateway:
            check(await each_dialect(gateway, 3), "local")
            await given_up(gateway, "local")
            await asyncio.sleep(1.2)  # two looks for it
            check(await each_dialect(gateway, 3), "local")
            assert told(caplog) == [AWAY]
            assert "secret" not in caplog.text
            await server.command("ACL", "SETUSER", "gw", f"+{lacks}")
            await back(gateway)


async def test_it_goes_through_tls_and_comes_back_through_it(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisServer(tls=True) as server:
        url = f"{server.url}?ssl_ca_certs={server.ca_file}"
        loop = asyncio.get_running_loop()
        async with serving(ruled(engine.url, url)) as gateway:
            check(await each_dialect(gateway, 3), None)
            async with frozen(server):
                await given_up(gateway, "local")
            await back(gateway)
            check(await each_dialect(gateway), None)
            async with killed(server):
                await given_up(gateway, "local")
            await back(gateway)
            check(await each_dialect(gateway), None)
            assert told(caplog) == [AWAY, BACK] * 2
            server.freeze()
            began = loop.time()
        assert loop.time() - began < 2, "the end waited for Redis"
        server.thaw()


async def test_a_server_with_a_certificate_of_nobody_known_is_away(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisServer(tls=True) as server:
        async with serving(ruled(engine.url, server.url, "closed")) as gateway:
            check(await each_dialect(gateway), "closed")
            assert told(caplog) == [AWAY]


@pytest.mark.slow
async def test_a_sentinel_failover_costs_nobody_a_failed_request(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisSentinels() as servers:
        async with serving(ruled(engine.url, servers.url)) as gateway:
            check(await each_dialect(gateway, 3), None)
            await gateway.logged(9)
            old = await servers.kill_primary()
            asked = await given_up(gateway, "local")
            failing = asyncio.create_task(servers.failed_over(old.port, 20))
            while not failing.done():
                # Between the failover and its being seen, either may decide.
                answers = await each_dialect(gateway)
                asked += len(answers)
                assert {answer.status for _, answer in answers} == {200}
                await asyncio.sleep(0.01)
            port = await failing
            print(f"back {await back(gateway):.2f} s after the failover")
            check(await each_dialect(gateway), None)
            await old.start()
            check(await each_dialect(gateway), None)
            assert told(caplog) == [AWAY, BACK]
            assert courier_of(gateway).decided_here >= asked - 12
            (new,) = [server for server in servers.data if server.port == port]
            await gateway.until_quiet()
            # What the old primary did not hand on is lost, at most.
            assert await new.command("GET", PREFIX + "key:ann:requests_per_day")
            assert not await slots(new, TEAM_SLOTS)


@pytest.mark.slow
async def test_one_sentinel_that_hangs_does_not_keep_it_away(engine: Engine) -> None:
    async with RedisSentinels() as servers:
        primary = next(s for s in servers.data if s.port == servers.data[0].port)
        async with serving(ruled(engine.url, servers.url)) as gateway:
            check(await each_dialect(gateway), None)
            servers.sentinels[0].freeze()
            async with frozen(primary):  # its connections are given up meanwhile
                await given_up(gateway, "local")
            print(f"back after {await back(gateway):.2f} s")
            check(await each_dialect(gateway), None)
        async with serving(ruled(engine.url, servers.url)) as gateway:
            await back(gateway)
            check(await each_dialect(gateway), None)
        servers.sentinels[0].thaw()


@pytest.mark.slow
async def test_one_node_of_a_cluster_that_hangs_keeps_the_others_from_nobody(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.shuffle", lambda nodes: None)  # the one that hangs is asked first
    async with RedisCluster() as cluster:
        for node in cluster.servers:
            await node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        owner = await cluster.owner(PREFIX)
        first, second = [node for node in cluster.servers if node is not owner]
        nodes = ",".join(f"127.0.0.1:{node.port}" for node in (first, second, owner))
        async with frozen(first):
            async with serving(ruled(engine.url, f"redis+cluster://{nodes}")) as gateway:
                check(await each_dialect(gateway), None)
                assert not told(caplog)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["owner", "another"])
@pytest.mark.parametrize("outage", [killed, frozen])
async def test_a_cluster_decides_again_when_its_node_is_back(
    engine: Engine, victim: str, outage: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster that lacks slots takes no writes, also in those it has."""
    async with RedisCluster() as cluster:
        owner = await cluster.owner(PREFIX)
        other = next(node for node in cluster.servers if node is not owner)
        async with serving(ruled(engine.url, cluster.url)) as gateway:
            check(await each_dialect(gateway, 3), None)
            await owner.command("SCRIPT", "FLUSH")
            check(await each_dialect(gateway, 3), None)
            assert not told(caplog)
            node = owner if victim == "owner" else other
            asked = 18
            async with outage(node):  # type: ignore[operator]
                async with asyncio.timeout(10):
                    while not courier_of(gateway)._breaker.open:
                        answers = await each_dialect(gateway)
                        asked += len(answers)
                        assert {answer.status for _, answer in answers} == {200}
                check(await each_dialect(gateway), "local")
                asked += 3

            async def whole() -> bool:
                return "cluster_state:ok" in await owner.command("CLUSTER", "INFO")

            await until_told(whole, 20)
            print(f"back {await back(gateway):.2f} s after the cluster")
            check(await each_dialect(gateway), None)
            asked += 3
            assert told(caplog) == [AWAY, BACK]
            await gateway.until_quiet()
            lines = await gateway.logged(asked)
            if outage is frozen or node is other:
                await settled(gateway, owner, lines)
            assert (await request(gateway.port, "GET", "/v1/models", HEADERS)).status == 200
            assert not await slots(owner, MODEL_SLOTS)

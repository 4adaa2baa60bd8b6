"""The servers are real, do what they are told, and none outlives its test."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.asyncio import RedisCluster as ClusterClient
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NoConnection

from tests.fakes.redis import RedisServer, free_port, until
from tests.fakes.redis_many import SERVICE, RedisCluster, RedisSentinels

ROOT = Path(__file__).parents[2]


def runs(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def ping(url: str, **more: Any) -> bool:
    async with Redis.from_url(url, **more) as client:
        return bool(await client.ping())


# One server


async def test_a_server_answers_and_keeps_nothing_on_disk() -> None:
    async with RedisServer() as server:
        assert await ping(server.url)
        said = await server.command("INFO")
        assert said["process_id"] == server.pid
        assert (said["maxmemory_policy"], said["aof_enabled"]) == ("noeviction", 0)
        assert await server.command("CONFIG", "GET", "save") == ["save", ""]


async def test_lines_of_configuration_and_a_port_are_taken() -> None:
    port = free_port()
    async with RedisServer("maxmemory 7mb", "requirepass secret", port=port) as server:
        assert server.port == port
        assert await server.command("CONFIG", "GET", "maxmemory") == ["maxmemory", "7340032"]
        with pytest.raises(AuthenticationError):
            await ping(server.url)
        assert await ping(server.url_for("", "secret"))


async def test_a_frozen_server_answers_nothing_until_it_is_thawed() -> None:
    async with RedisServer() as server:
        server.freeze()
        with pytest.raises(TimeoutError):
            await server.command("PING", timeout=0.2)
        server.thaw()
        assert await server.command("PING") is True


async def test_a_thawed_server_does_what_it_was_sent_while_frozen() -> None:
    async with RedisServer() as server, Redis.from_url(server.url) as client:
        for number in (1, 2):
            await client.ping()
            server.freeze()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.set("key", number)
            server.thaw()

            async def done(expected: str = str(number)) -> bool:
                return bool(await server.command("GET", "key") == expected)

            await until(done, 5)


async def test_a_killed_server_starts_again_on_its_port_with_nothing_in_it() -> None:
    async with RedisServer() as server:
        await server.command("SET", "key", "lost")
        first, url = server.pid, server.url
        await server.kill()
        await server.kill()
        assert not runs(first)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", server.port)
        await server.start()
        assert await ping(url)
        assert server.pid != first
        assert await server.command("GET", "key") is None


@pytest.mark.parametrize("state", ["running", "frozen", "killed"])
async def test_no_process_and_no_file_is_left(state: str) -> None:
    async with RedisServer() as server:
        pid = server.pid
        folder = Path(os.readlink(f"/proc/{pid}/cwd"))
        assert folder.exists()
        if state == "frozen":
            server.freeze()
        if state == "killed":
            await server.kill()
    assert not runs(pid)
    assert not folder.exists()


async def test_no_process_is_left_by_a_cancelled_test() -> None:
    pids: list[int] = []
    inside = asyncio.Event()

    async def test() -> None:
        async with RedisServer() as server:
            pids.append(server.pid)
            inside.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(test())
    await asyncio.wait_for(inside.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not runs(pids[0])


@pytest.mark.parametrize("frozen", [False, True])
async def test_a_server_dies_with_the_process_of_the_tests(frozen: bool) -> None:
    code = (
        "import asyncio, sys; from tests.fakes.redis import RedisServer\n"
        "async def main():\n"
        "    async with RedisServer() as server:\n"
        f"        {frozen} and server.freeze()\n"
        "        print(server.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    tests = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert tests.stdout is not None
    async with asyncio.timeout(20):
        pid = int(await tests.stdout.readline())
    assert runs(pid)
    tests.kill()
    await tests.wait()

    async def gone() -> bool:
        return not runs(pid)

    await until(gone, 5)


async def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-setting"):
        async with RedisServer("no-such-setting yes"):
            pass
    async with RedisServer() as server:
        with pytest.raises(RuntimeError, match="Address already in use"):
            async with RedisServer(port=server.port):
                pass
        assert await server.command("PING") is True


async def test_a_missing_redis_server_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install redis-server"):
        async with RedisServer():
            pass


async def test_the_commands_of_clients_are_counted_and_ours_are_not() -> None:
    async with RedisServer() as server:
        assert await server.commands_used() == {}
        await server.command("CONFIG", "GET", "port")
        async with Redis.from_url(server.url, protocol=2, driver_info=None) as client:
            await client.get("a")
            await client.get("b")
            await client.config_get("port")
            await client.eval("return redis.call('INCR', KEYS[1])", 1, "c")
        counted = {"get": 2, "config|get": 1, "eval": 1, "incr": 1}
        assert await server.commands_used() == counted
        assert await server.commands_used() == counted
        script = await server.command("SCRIPT", "LOAD", "return 1")
        await server.clear()
        assert await server.commands_used() == {}
        assert await server.command("DBSIZE") == 0
        assert await server.command("SCRIPT", "EXISTS", script) == [0]


async def test_a_user_may_do_what_its_rules_say() -> None:
    user = "user gate on >p/w ~{fairgate}:* +get +ping"
    async with RedisServer(user, "user default off") as server:
        url = server.url_for("gate", "p/w")
        assert await ping(url)
        async with Redis.from_url(url) as client:
            assert await client.get("{fairgate}:a") is None
            with pytest.raises(NoPermissionError):
                await client.get("other")
            with pytest.raises(NoPermissionError):
                await client.set("{fairgate}:a", 1)
        with pytest.raises(AuthenticationError):
            await ping(server.url)
        assert await server.command("PING") is True


async def test_a_server_with_tls_speaks_it_and_nothing_else() -> None:
    async with RedisServer(tls=True) as server:
        assert server.url.startswith("rediss://")
        assert await ping(server.url, ssl_ca_certs=str(server.ca_file))
        assert await server.command("PING") is True
        with pytest.raises(NoConnection, match="CERTIFICATE_VERIFY_FAILED"):
            await ping(server.url)
        with pytest.raises(NoConnection):
            await ping(server.url.replace("rediss:", "redis:"))


# The shared one


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_finds_the_shared_server_empty(
    redis_server: RedisServer, turn: int
) -> None:
    assert await redis_server.command("DBSIZE") == 0
    assert await redis_server.commands_used() == {}
    assert await ping(redis_server.url)
    await redis_server.command("SET", "key", turn)


# Several as one


@pytest.mark.slow
async def test_the_replica_takes_over_and_the_killed_primary_becomes_a_replica() -> None:
    async with RedisSentinels() as servers:
        pids = [server.pid for server in servers.servers]
        assert len(pids) == 5
        ports = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in servers.sentinels)
        assert servers.url == f"redis+sentinel://{ports}/{SERVICE}/0"
        before = await servers.primary_port()
        primary, replica = servers.data
        assert primary.port == before
        await primary.command("SET", "key", "kept")
        assert await primary.command("WAIT", 1, 5000) == 1
        killed = await servers.kill_primary()
        assert killed is primary
        assert await servers.failed_over(before) == replica.port
        assert await servers.primary_port() == replica.port
        assert await replica.command("GET", "key") == "kept"
        await replica.command("SET", "key", "written")
        await killed.start()
        pids.append(killed.pid)
    assert not [pid for pid in pids if runs(pid)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[RedisCluster]:
    async with RedisCluster() as servers:
        yield servers
        pids = [server.pid for server in servers.servers]
    assert not [pid for pid in pids if runs(pid)]


async def test_a_cluster_spreads_its_slots_over_three_servers(cluster: RedisCluster) -> None:
    ports = [server.port for server in cluster.servers]
    assert cluster.url == "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    slots = await cluster.servers[1].command("CLUSTER", "SLOTS")
    spread = {port: (first, last) for first, last, (_, port, *_) in slots}
    assert [spread[port] for port in ports] == [(0, 5461), (5462, 10922), (10923, 16383)]


async def test_a_key_is_with_its_owner_only(cluster: RedisCluster) -> None:
    async with ClusterClient(host="127.0.0.1", port=cluster.servers[0].port) as client:
        for number in range(20):
            await client.set(f"key:{number}", number)
    owners = set()
    for number in range(20):
        owner = await cluster.owner(f"key:{number}")
        assert await owner.command("GET", f"key:{number}") == str(number)
        owners.add(owner.port)
        (other, *_) = (server for server in cluster.servers if server is not owner)
        with pytest.raises(ResponseError):
            await other.command("GET", f"key:{number}")
    assert len(owners) == 3

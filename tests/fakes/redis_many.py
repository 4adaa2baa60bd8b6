"""Several real redis-servers as one: a primary under sentinels, and a cluster."""

import contextlib
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from tests.fakes.redis import START, RedisServer, free_port, until

SERVICE = "fairgate"

#: How many slots a cluster has (Redis cluster specification, "Key distribution model").
SLOTS = 16384


class _Servers(ABC):
    """Servers that run while this is entered. Bound to no event loop.

    Mutable state: the servers that were started, in that order.
    """

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._enter(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    @abstractmethod
    def url(self) -> str:
        """How a client is told of them."""

    @abstractmethod
    async def _enter(self, stack: contextlib.AsyncExitStack) -> None:
        """Start them all, and return once they serve as one."""

    async def _run(self, stack: contextlib.AsyncExitStack, server: RedisServer) -> RedisServer:
        self.servers.append(await stack.enter_async_context(server))
        return server


class RedisSentinels(_Servers):
    """A primary, its replica and three sentinels: two of them make the replica the primary.

    Mutable state: the data servers, the sentinels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        """The sentinels, the service's name, the database."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    async def primary_port(self) -> int:
        """The primary's, as the first sentinel that answers has it."""
        for sentinel in self.sentinels:
            with contextlib.suppress(OSError):
                return await _primary_of(sentinel)
        raise ConnectionError("no sentinel answers")

    async def kill_primary(self) -> RedisServer:
        """SIGKILL; the answer can be started again, and comes back as a replica."""
        port = await self.primary_port()
        primary = next(server for server in self.data if server.port == port)
        await primary.kill()
        return primary

    async def failed_over(self, before: int, timeout: float = START) -> int:
        """The new primary's port, once every sentinel names it and it is one.

        `before` is the old one's. TimeoutError after `timeout` seconds.
        """

        async def changed() -> bool:
            named = {await _primary_of(sentinel) for sentinel in self.sentinels}
            new = [server for server in self.data if {server.port} == named - {before}]
            return bool(new) and len(named) == 1 and (await new[0].command("ROLE"))[0] == "master"

        await until(changed, timeout)
        return await self.primary_port()

    async def _enter(self, stack: contextlib.AsyncExitStack) -> None:
        primary = await self._run(
            stack, RedisServer("repl-diskless-sync yes", "repl-diskless-sync-delay 0")
        )
        replica = await self._run(stack, RedisServer(f"replicaof 127.0.0.1 {primary.port}"))
        self.data += [primary, replica]

        async def copied() -> bool:
            told = await replica.command("INFO", "replication")
            return bool(told["master_link_status"] == "up")

        await until(copied, START)
        ports = [free_port() for _ in range(3)]
        for port in ports:
            lines = _sentinel(port, [other for other in ports if other != port], primary, replica)
            sentinel = RedisServer(*lines, port=port, arguments=("--sentinel",))
            self.sentinels.append(await self._run(stack, sentinel))
            # A busy machine must not put a sentinel into its 30 s of not acting ("TILT").
            await sentinel.command("SENTINEL", "DEBUG", "tilt-trigger", 60_000)
        await until(self._ready, START)

    async def _ready(self) -> bool:
        for sentinel in self.sentinels:
            told = [await sentinel.command("SENTINEL", "REPLICAS", SERVICE)]
            told += [await sentinel.command("SENTINEL", "SENTINELS", SERVICE)]
            replicas, others = ([dict(zip(i[::2], i[1::2], strict=True)) for i in t] for t in told)
            if [i["flags"] for i in (*replicas, *others)] != ["slave", "sentinel", "sentinel"]:
                return False
            if replicas[0]["master-link-status"] != "ok":
                return False
        return True


class RedisCluster(_Servers):
    """Three primaries with a third of the slots each, and no replicas.

    Mutable state: that of its base; `servers` are in the order of their slots.
    """

    @property
    def url(self) -> str:
        """All of them."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.servers)

    async def owner(self, key: str) -> RedisServer:
        """The server that has the slot of `key`."""
        slot = int(await self.servers[0].command("CLUSTER", "KEYSLOT", key))
        return self.servers[slot * len(self.servers) // SLOTS]

    async def _enter(self, stack: contextlib.AsyncExitStack) -> None:
        bus = [free_port() for _ in range(3)]
        for port in bus:
            settings = ("cluster-enabled yes", "cluster-node-timeout 1000", f"cluster-port {port}")
            await self._run(stack, RedisServer(*settings))
        count = len(self.servers)
        for index, node in enumerate(self.servers):
            first, last = -(-SLOTS * index // count), -(-SLOTS * (index + 1) // count) - 1
            await node.command("CLUSTER", "ADDSLOTSRANGE", first, last)
            await node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            for other, port in zip(self.servers[:index], bus, strict=False):
                await node.command("CLUSTER", "MEET", "127.0.0.1", other.port, port)
        # A server that has just started waits for two seconds before it says so.
        await until(self._whole, START)

    async def _whole(self) -> bool:
        for node in self.servers:
            told = await node.command("CLUSTER", "INFO")
            if (
                "cluster_state:ok" not in told
                or f"cluster_known_nodes:{len(self.servers)}" not in told
            ):
                return False
        return True


async def _primary_of(sentinel: RedisServer) -> int:
    _, port = await sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE, timeout=1.0)
    return int(port)


def _sentinel(
    port: int, others: list[int], primary: RedisServer, replica: RedisServer
) -> list[str]:
    """The configuration of one that knows all others already: finding them takes seconds."""
    return [
        f"sentinel myid {port:040x}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} 2",
        f"sentinel down-after-milliseconds {SERVICE} 500",
        f"sentinel failover-timeout {SERVICE} 3000",
        f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}",
        *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {at} {at:040x}" for at in others),
    ]

"""One worker of several: its end of the line to the supervisor, which says when it is to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import Any

import msgspec
import uvloop

from backends.guard import die_with_parent
from backends.probes import Verdict
from gateway import status
from gateway.board import Work
from gateway.channel import Channel, ChannelEnded, Handler
from gateway.limits.report import Told
from gateway.listeners import CannotStart
from gateway.logs import set_up_diagnostics
from gateway.metrics import Counts
from gateway.start import Start, unpacked
from gateway.watch import among
from gateway.worker import Worker

_COUNTS_EVERY = 1.0


def handlers(worker: Worker) -> dict[str, Handler]:
    """What the supervisor may ask of a worker, or tell it, by name. Another: a line here."""

    async def metrics(_: Any) -> Counts:
        return worker.counts()

    async def told(_: Any) -> dict[str, Any]:
        return {"ready": worker.ready, **status.of_worker(worker.composition)}

    async def limits(owner: dict[str, Any]) -> Told:
        return await worker.limits(**owner)

    async def reset_limits(owner: dict[str, Any]) -> Told:
        return await worker.reset_limits(**owner)

    async def drain(payload: dict[str, Any]) -> Told:
        return await worker.drain(**payload)

    async def reload(settings: str) -> None:
        await worker.reload(unpacked(settings))

    async def drained(urls: list[str]) -> None:
        worker.composition.fleet.take_out(urls)

    async def verdicts(told: list[Any]) -> None:
        worker.board.judge(msgspec.convert(told, list[Verdict]))

    async def elsewhere(work: Work) -> None:
        worker.board.elsewhere(work)

    async def blamed(death: list[str]) -> None:
        worker.composition.means.quarantine.blame(*death)

    async def stop(_: Any) -> None:
        worker.stop()

    async def hurry(_: Any) -> None:
        worker.hurry()

    return {
        "metrics": metrics,
        "status": told,
        "limits": limits,
        "reset_limits": reset_limits,
        "drain": drain,
        "reload": reload,
        "drained": drained,
        "verdicts": verdicts,
        "elsewhere": elsewhere,
        "blamed": blamed,
        "stop": stop,
        "hurry": hurry,
    }


async def work(channel: Channel) -> None:
    """Serve as the other end of `channel` says, until it says stop or is gone."""
    start = msgspec.convert(await channel.first(), Start)
    set_up_diagnostics(start.log_level)
    worker = Worker(start.config, start.secret, sys.stdout.fileno())
    quarantine = worker.composition.means.quarantine
    quarantine.tell = lambda fingerprint, url: channel.tell("blamed", [fingerprint, url])
    channel.listen(handlers(worker))
    sockets = [socket.socket(fileno=number) for number in start.sockets]

    async def stop_with_channel() -> None:
        await channel.ended.wait()
        worker.stop()

    async def push() -> None:
        while True:
            channel.tell("metrics", worker.counts())
            await channel.drained()
            await asyncio.sleep(_COUNTS_EVERY)

    try:
        worker.hold(stop_with_channel())
        async with worker.serving_among(sockets):
            worker.hold(push())
            worker.hold(among(worker.board, worker.composition.probed, channel))
            channel.tell("ready")
            await worker.stopped()
        channel.tell("metrics", worker.counts())
    except CannotStart as exc:
        channel.tell("cannot_start", str(exc))
    finally:
        await channel.close()


def main() -> None:
    """`python -m gateway.employed FD`: a worker of the supervisor at the other end of `FD`."""
    # The whole group gets a Ctrl-C, and the whole service a SIGTERM: the supervisor tells us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)

    async def serve() -> None:
        with contextlib.suppress(ChannelEnded):
            await work(await Channel.open(socket.socket(fileno=int(sys.argv[1]))))

    uvloop.run(serve())


if __name__ == "__main__":
    main()

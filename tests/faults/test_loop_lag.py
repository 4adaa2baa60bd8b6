"""Large bodies, reloads and bursts of log lines never hold up the event loop for long."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway.accept import LARGE
from gateway.exchange import Exchange
from tests.bench import running
from tests.fakes.client import Client, head
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving, until
from tests.fakes.script import Wait, plain
from tests.faults import pinned
from tests.faults.asking import CHAT, COMPLETIONS, nothing_left
from tests.faults.pinned import Bed

MIB = 1 << 20
SECONDS = float(os.environ.get("FAIRGATE_LAG_SECONDS", "60"))
#: Many enough for a reload to be work.
KEYS = 500

Body = tuple[str, bytes]


@dataclass(frozen=True)
class Load:
    """So many callers with bodies of so many bytes, and the most seconds the loop may be late."""

    callers: int
    size: int
    most: float


@dataclass
class Seen:
    """What the witness wrote of a time: lags in seconds, and who blocked the loop."""

    late: list[float] = field(default_factory=list)
    #: Without what the machine gave to others: they stop any process now and then.
    own: list[float] = field(default_factory=list)
    #: Of that what the loop's own thread computed; the rest are waits for other threads.
    computed: list[float] = field(default_factory=list)
    where: list[str] = field(default_factory=list)


# Bodies


SAID = 'Look at "{node: 7}" below.\\nAt 09:14 its caché filled, naïve – see \\\\logs\\\\node7.txt'


def written(size: int) -> str:
    """JSON of a text about so long, with the escapes, accents and braces that real ones have."""
    text = json.dumps(SAID, ensure_ascii=False)[1:-1]
    return text * (size // len(text.encode()))


def fields(model: str, rest: str) -> bytes:
    return f'{{"model":"{model}","max_tokens":8,{rest}}}'.encode()


def one_text(model: str, size: int) -> Body:
    said = f'"messages":[{{"role":"user","content":"{written(size - 200)}"}}]'
    return CHAT, fields(model, said)


def conversation(model: str, size: int) -> Body:
    """A long one with many tool calls."""
    each = written(size // 4000)
    turn = f'{{"role":"user","content":[{{"type":"text","text":"{each}"}}]}}'
    turns = (size - 200) // (len(turn.encode()) + 1)
    return CHAT, fields(model, f'"messages":[{",".join([turn] * turns)}]')


def picture(model: str, size: int) -> Body:
    """As large as pictures may be together, and text for the rest."""
    pixels = "QUJD" * (min(size - 1000, 15 * MIB) // 4)
    url = f'{{"url":"data:image/png;base64,{pixels}"}}'
    text = f'{{"type":"text","text":"{written(max(0, size - len(pixels) - 1000))}"}}'
    content = f'[{text},{{"type":"image_url","image_url":{url}}}]'
    return CHAT, fields(model, f'"messages":[{{"role":"user","content":{content}}}]')


def token_ids(model: str, size: int) -> Body:
    ids = ",".join(str(10_000 + number % 50_000) for number in range((size - 200) // 6))
    return COMPLETIONS, fields(model, f'"prompt":[{ids}]')


SHAPES: tuple[Callable[[str, int], Body], ...] = (one_text, conversation, picture, token_ids)


def request(path: str, sent: bytes, headers: list[tuple[str, str]]) -> bytes:
    return head("POST", path, [*headers, ("content-type", "application/json")], sent) + sent


# What goes on at the same time


async def caller(bed: Bed, sent: bytes, ends: float) -> int:
    """Send it over and over; how often it was answered."""
    async with await Client.open(bed.peer.port, patience=60) as client:
        for answered in count():
            if time.monotonic() > ends:
                return answered
            await client.send(sent)
            status, _ = await client.read_head("POST")
            told = await client.read_body()
            assert status == 200, told
    raise AssertionError("counting has no end")


async def reloads(bed: Bed, ends: float) -> int:
    """Read the configuration again each second, with other keys each time; how often."""
    good = bed.config.read_text()
    for number in count():
        if time.monotonic() > ends:
            return number
        more = "".join(
            f'  - {{name: k{each}, team: ads, sha256: "{number:032x}{each:032x}"}}\n'
            for each in range(KEYS)
        )
        bed.config.write_text(good.replace("keys:\n", f"keys:\n{more}"))
        os.kill(bed.pid, signal.SIGHUP)
        await asyncio.sleep(1)
    raise AssertionError("counting has no end")


async def bursts(bed: Bed, ends: float) -> int:
    """A thousand requests at once every two seconds, each with its line in the log."""
    lines = 0
    while time.monotonic() < ends:
        told = await asyncio.to_thread(bed.load, "--requests", "1000", "--connections", "64")
        assert told["errors"] == 0, told["first_error"]
        lines += int(told["requests"])
        await asyncio.sleep(2)
    return lines


async def trickle(bed: Bed, seconds: float) -> dict[str, float]:
    """Small requests from outside, fifty a second: what they wait is what the loop lets them."""
    options = ("--rate", "50", "--connections", "64", "--seconds", str(seconds))
    return await asyncio.to_thread(bed.load, *options)


def seen(file: Path, began: float, ended: float) -> Seen:
    told = Seen()
    for line in map(json.loads, file.read_text().splitlines()):
        if not began <= line["at"] <= ended:
            continue
        if "where" in line:
            told.where.append(line["where"].partition(": ")[2].partition(" < ")[0])
        else:
            told.late.append(line["late"])
            told.own.append(line["late"] - line["others"])
            told.computed.append(line["computed"])
    return told


@contextmanager
def beside() -> Iterator[None]:
    """This process on the core where the gateway is not."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, running.cores()[1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def one_a_turn(live: set[Exchange], most: int) -> list[int]:
    """How many bodies each turn of this loop took that took any, until `most` are taken."""
    taken: set[Exchange] = set()
    turns: list[int] = []
    while len(taken) < most:
        before = len(taken)
        taken |= {exchange for exchange in live if exchange.record.bytes_in}
        if len(taken) > before:
            turns.append(len(taken) - before)
        await asyncio.sleep(0)
    return turns


@pytest.mark.usefixtures("no_traceback")
async def test_large_bodies_are_taken_one_at_a_time_through_a_reload() -> None:
    go = asyncio.Event()
    async with Engine(lambda got: [Wait(go), *plain(200, b"{}")]) as engine:
        text = configured(engine.url, timeouts="{lame_duck: 0, drain: 1s}")
        async with (
            serving(text) as gateway,
            nothing_left(gateway, engine),
            AsyncExitStack() as all_,
        ):
            sent = request(*one_text("tiny", 5 * MIB), list(HEADERS[:1]))
            clients = [await Client.open(gateway.port, patience=60) for _ in range(5)]
            for client in clients:
                all_.callback(client.close)
                await client.send(sent[:-10])
            held = gateway.worker.composition.gateway.bodies
            await until(lambda: held.held > 24 * MIB, 60)
            live = gateway.worker.composition.gateway.live
            turns = asyncio.create_task(one_a_turn(live, len(clients)))
            again = text.replace("lame_duck: 0", "lame_duck: 1s")
            await gateway.worker.reload(configuration.load("test.yaml", again, {}))
            await asyncio.gather(*(client.send(sent[-10:]) for client in clients))
            assert await asyncio.wait_for(turns, 60) == [1] * len(clients)
            assert gateway.worker.composition.gateway.bodies is held
            go.set()
            for client in clients:
                assert (await client.read_head("POST"))[0] == 200
                await client.read_body()


@pytest.mark.soak
@pytest.mark.parametrize(
    "load", [Load(8, 4 * MIB, 0.050), Load(4, 32 * MIB, 0.250)], ids=["4 MiB", "32 MiB"]
)
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_loop_turns_in_time_whatever_bodies_reloads_and_logs_come(
    tmp_path: Path, load: Load, shape: Callable[[str, int], Body]
) -> None:
    witness = tmp_path / "lags"
    command = pinned.witnessed("tests.faults.lagging", str(witness))
    with pinned.serving(tmp_path, command) as bed, beside():
        headers = [(n, v) for n, _, v in (line.partition(": ") for line in bed.peer.headers)]
        sent = request(*shape(bed.peer.model, load.size), headers)
        assert LARGE < len(sent) <= load.size + 1000
        began, seconds = time.monotonic(), SECONDS / len(SHAPES)
        ends = began + seconds
        async with asyncio.TaskGroup() as group:
            trickling = group.create_task(trickle(bed, seconds))
            reloading = group.create_task(reloads(bed, ends))
            bursting = group.create_task(bursts(bed, ends))
            calling = [group.create_task(caller(bed, sent, ends)) for _ in range(load.callers)]
        told = seen(witness, began, ends)
    worst, outside = max(told.own, default=0.0), trickling.result()
    answered = sum(each.result() for each in calling)
    print(
        f"{shape.__name__} of {load.size // MIB} MiB, {answered} from {load.callers} callers "
        f"in {seconds:.0f} s, {reloading.result()} reloads, {bursting.result()} lines: "
        f"the loop was late {max(told.late, default=0.0) * 1000:.0f} ms at most, "
        f"{worst * 1000:.0f} of them its own "
        f"({max(told.computed, default=0.0) * 1000:.0f} computed), "
        f"{len([late for late in told.own if late > load.most / 2])} times over "
        f"{load.most * 500:.0f}; small requests p50 {outside['total_us_p50'] / 1000:.1f} ms, "
        f"p99 {outside['total_us_p99'] / 1000:.1f}"
    )
    for place in sorted(set(told.where), key=told.where.count, reverse=True)[:6]:
        print(f"  {told.where.count(place)} times at {place}")
    assert answered >= load.callers, "the bodies never came"
    assert outside["errors"] == 0, outside["first_error"]
    assert worst <= load.most

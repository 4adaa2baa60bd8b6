"""Another configuration while requests are served: nobody is cut, and a bad one changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway import reload
from gateway.reload import Source
from gateway.worker import Worker
from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, SECRET, Serving, configured, serving, until
from tests.faults.asking import CHAT, PATHS, nothing_left
from tests.faults.holding import OTHER_KEY, Held, asked, reloads
from tests.gateway.test_config import BAD, ENVIRON


async def reloaded(gateway: Serving, text: str) -> None:
    await gateway.worker.reload(configuration.load("test.yaml", text, {}))


async def in_flight(gateway: Serving, engine: Engine) -> list[float]:
    """What `/metrics` says is under way there: one value, or none where it is no series."""
    page = (await request(gateway.admin_port, "GET", "/metrics")).body.decode()
    series = re.escape(f'fairgate_in_flight{{model="tiny",replica="{engine.url}"}}')
    return [float(value) for value in re.findall(rf"^{series} (\S+)$", page, re.MULTILINE)]


# The snapshot that a request began with


@pytest.mark.usefixtures("no_traceback")
async def test_streams_of_a_removed_model_run_to_their_end_and_it_is_gone_for_others() -> None:
    async with Engine() as old, Engine(models=("new",)) as new:
        held = Held(old)
        async with serving(configured(old.url)) as gateway:
            async with nothing_left(gateway, old):
                await held.begin(gateway.port, *PATHS)
                text = configured(new.url).replace("{tiny:", "{new:")
                await reloaded(gateway, text)
                assert await asked(gateway.port, "tiny") == 404
                assert await asked(gateway.port, "new") == 200
                assert held.over == 0
                await held.end()
        assert old.aborts == []


@pytest.mark.usefixtures("no_traceback")
async def test_a_removed_replica_gets_no_new_request_and_finishes_what_it_has() -> None:
    async with Engine() as old, Engine() as new:
        held = Held(old)
        async with serving(configured(old.url)) as gateway:
            await held.begin(gateway.port, CHAT)
            await reloaded(gateway, configured(new.url))
            before = len(old.requests)
            assert [await asked(gateway.port) for _ in range(5)] == [200] * 5
            assert len(old.requests) == before
            assert await in_flight(gateway, old) == [1.0]
            await held.end()
            await gateway.until_quiet()
            assert await in_flight(gateway, old) == [], "idle and in no pool: its series are gone"


@pytest.mark.usefixtures("no_traceback")
async def test_a_replica_of_an_old_pool_and_a_new_one_is_counted_once() -> None:
    async with Engine() as one, Engine() as two:
        held = Held(one)
        async with serving(configured(one.url)) as gateway:
            await held.begin(gateway.port, CHAT)
            await reloaded(gateway, configured(one.url, two.url))
            assert await in_flight(gateway, one) == [1.0]
            await held.end()


@pytest.mark.usefixtures("no_traceback")
async def test_a_replica_that_stays_keeps_its_counts_and_takes_its_new_concurrency() -> None:
    async with Engine() as engine:
        held = Held(engine)
        async with serving(configured(engine.url)) as gateway:
            await held.begin(gateway.port, CHAT, CHAT)
            one = configured(f"{{url: '{engine.url}', concurrency: 2}}")
            await reloaded(gateway, one)
            assert gateway.in_flight == 2 + 2, "two on the replica, in two turns"
            assert await asked(gateway.port) == 503
            await reloaded(gateway, one.replace("concurrency: 2", "concurrency: 3"))
            assert await asked(gateway.port) == 200
            assert await in_flight(gateway, engine) == [2.0]
            await held.end()


@pytest.mark.usefixtures("no_traceback")
async def test_a_request_whose_body_still_comes_is_served_as_it_began() -> None:
    async with Engine() as old, Engine(models=("new",)) as new:
        async with serving(configured(old.url)) as gateway:
            sent = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
            lines = [f"{name}: {value}".encode() for name, value in HEADERS]
            head = b"\r\n".join(
                [b"POST %b HTTP/1.1" % CHAT.encode(), b"host: a", *lines]
                + [b"content-length: %d" % len(sent), b"", sent[:10]]
            )
            async with await Client.open(gateway.port) as client:
                await client.send(head)
                await until(lambda: gateway.live == 1)
                text = configured(new.url, key=OTHER_KEY).replace("{tiny:", "{new:")
                await reloaded(gateway, text)
                await client.send(sent[10:])
                assert (await client.read_head("POST"))[0] == 200
                await client.read_body()
            assert old.requests[-1].path == CHAT


@pytest.mark.usefixtures("no_traceback")
async def test_a_removed_key_is_refused_at_once_and_its_streams_run_on() -> None:
    async with Engine() as engine:
        held = Held(engine)
        async with serving(configured(engine.url)) as gateway:
            await held.begin(gateway.port, *PATHS)
            await reloaded(gateway, configured(engine.url, key=OTHER_KEY))
            assert await asked(gateway.port) == 401
            assert await asked(gateway.port, key=OTHER_KEY) == 200
            await held.end()


# Limits


@pytest.mark.usefixtures("no_traceback")
async def test_a_changed_limit_holds_from_then_on_and_what_was_used_counts(store: str) -> None:
    async with Engine() as engine:

        def text(limits: str) -> str:
            return configured(engine.url, more=f"{store}limits: {limits}\n")

        async with serving(text("{requests_per_day: 3, concurrency: 9}")) as gateway:
            assert [await asked(gateway.port) for _ in range(4)] == [200] * 3 + [429]
            await reloaded(gateway, text("{requests_per_day: 5, concurrency: 9}"))
            assert [await asked(gateway.port) for _ in range(3)] == [200] * 2 + [429]
            await reloaded(gateway, text("{requests_per_day: 2, concurrency: 9}"))
            assert await asked(gateway.port) == 429
            await reloaded(gateway, text("{concurrency: 9}"))
            assert [await asked(gateway.port) for _ in range(3)] == [200] * 3


@pytest.mark.usefixtures("no_traceback")
async def test_what_was_let_in_by_an_old_limit_is_settled_by_the_new_one(store: str) -> None:
    """One call may carry the end of the one and the beginning of the other: of one rule, then."""
    async with Engine() as engine:
        held = Held(engine)

        def text(tokens: int, slots: int) -> str:
            limits = f"{{tokens_per_minute: {tokens}, concurrency: {slots}}}"
            return configured(engine.url, more=f"{store}limits: {limits}\n")

        async with serving(text(7_000_000, 3)) as gateway:
            counter = gateway.worker.composition.counter
            await held.begin(gateway.port, CHAT, CHAT)
            await reloaded(gateway, text(1100, 2))
            assert await asked(gateway.port) == 429, "two run, two may"
            await held.end()
            await gateway.until_quiet()
            many = await asyncio.gather(*(asked(gateway.port) for _ in range(20)))
            assert many.count(200) >= 2
            assert set(many) <= {200, 429}
            rules = gateway.worker.composition.rulebook.owned()
            by_name = {rule.name: rule for rule in rules}
            assert by_name["tokens_per_minute"].limit == 1100

            async def free() -> bool:
                levels = await counter.levels([by_name["concurrency"]])
                return levels[0][0] == 2

            async with asyncio.timeout(5):
                while not await free():
                    await asyncio.sleep(0.01)
            (level,) = await counter.levels([by_name["tokens_per_minute"]])
            assert 0 <= level[0] < 1100, "what they used counts by the new limit"


# Bad configurations


def cases() -> list[tuple[str, str]]:
    """Texts that are refused, and how the refusal begins after the file's name."""
    return [(text, begins) for text, begins in BAD if begins[:1].isdigit()]


def test_there_are_enough_bad_configurations() -> None:
    assert len(cases()) >= 50


@contextlib.asynccontextmanager
async def watching(folder: Path, text: str) -> AsyncIterator[tuple[Serving, Path]]:
    """A gateway in this loop that looks at its file."""
    file = folder / "fairgate.yaml"
    file.write_text(text)
    source = Source(str(file), ENVIRON)
    config = source.read()
    log = folder / "log"
    with open(log, "wb") as out:
        worker = Worker(config, SECRET, out.fileno(), source)
        async with worker.serving() as (address,):
            assert worker.admin_address is not None
            port, admin = (int(a.rpartition(":")[2]) for a in (address, worker.admin_address))
            yield Serving(worker, port, admin, log), file


async def test_a_bad_configuration_is_refused_whole_and_the_old_one_serves_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload, "_LOOK", 3600.0)
    async with Engine() as engine:
        held = Held(engine)
        async with watching(tmp_path, configured(engine.url)) as (gateway, file):
            await held.begin(gateway.port, CHAT)
            before = gateway.worker.composition.gateway
            for number, (text, begins) in enumerate(cases(), 1):
                caplog.clear()
                file.write_text(text)
                gateway.worker.reloads.ask()
                async with asyncio.timeout(10):
                    while (await reloads(gateway.admin_port))[1] < number:
                        await asyncio.sleep(0.005)
                lines = [r.getMessage() for r in caplog.records if "configuration" in r.msg]
                expected = f"configuration not reloaded, the old one stays: {file}:{begins}"
                assert [line[: len(expected)] for line in lines] == [expected]
                assert "sk-" not in caplog.text
                assert gateway.worker.composition.gateway is before
                assert await asked(gateway.port) == 200
            assert await reloads(gateway.admin_port) == (0, len(cases()), 0)
            file.write_text(configured(engine.url))
            gateway.worker.reloads.ask()
            async with asyncio.timeout(10):
                while (await reloads(gateway.admin_port))[0] < 1:
                    await asyncio.sleep(0.005)
            assert await reloads(gateway.admin_port) == (1, len(cases()), 1)
            await held.end()

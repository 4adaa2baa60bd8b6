"""The servers of a configuration: which objects stay over a reload, and who is asked what it is."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backends import discovery
from backends.base import Replica
from backends.transport import Transport
from gateway.fleet import BadFile, Fleet, tls_context
from gateway.settings import ReplicaSettings
from tests.fakes.engine import Engine
from tests.fakes.gateway import until
from tests.fakes.script import Hang, plain

ONE, TWO = ReplicaSettings(url="http://gpu1:8000"), ReplicaSettings(url="http://gpu2:8000")


def fleet(*settings: ReplicaSettings) -> Fleet:
    made = Fleet(Transport(), lambda: None)
    adopt(made, *settings)
    return made


def adopt(of: Fleet, *settings: ReplicaSettings) -> list[Replica]:
    draft = of.drafted(settings)
    of.adopt(draft)
    return [draft[each] for each in settings]


def with_(settings: ReplicaSettings, **changes: object) -> ReplicaSettings:
    given = {"url": settings.url, "api_key": settings.api_key, **changes}
    return ReplicaSettings(**given)  # type: ignore[arg-type]


# Which object


async def test_a_server_whose_settings_stay_is_the_same_object() -> None:
    servers = fleet(ONE, TWO)
    before = adopt(servers, ONE, TWO)
    assert adopt(servers, TWO, ONE) == before[::-1]
    assert before[0] is not before[1]


async def test_another_weight_or_concurrency_keeps_the_object_and_its_counts() -> None:
    servers = fleet()
    (before,) = adopt(servers, ONE)
    before.in_flight, before.last_error = 3, "refused"
    (after,) = adopt(servers, with_(ONE, weight=4, concurrency=7))
    assert after is before
    assert (after.in_flight, after.weight, after.concurrency) == (3, 4, 7)


@pytest.mark.parametrize(
    "other",
    [
        with_(ONE, url="http://gpu1:8001"),
        with_(ONE, url="http://gpu3:8000"),
        with_(ONE, url="http://gpu1:8000/api"),
        with_(ONE, url="https://gpu1:8000"),
        with_(ONE, api_key="another"),
    ],
    ids=str,
)
async def test_a_server_that_is_asked_otherwise_is_another(other: ReplicaSettings) -> None:
    servers = fleet()
    (before,) = adopt(servers, ONE)
    (after,) = adopt(servers, other)
    assert after is not before
    assert after.credential == other.api_key


async def test_models_with_terms_of_their_own_never_swap_objects() -> None:
    wide, narrow = with_(ONE, concurrency=9), with_(ONE, concurrency=1)
    servers = fleet()
    before = adopt(servers, wide, narrow)
    assert len(set(before)) == 2
    changed = with_(ONE, concurrency=2)
    assert adopt(servers, changed, wide) == before[::-1]
    assert [replica.concurrency for replica in before] == [9, 2]


async def test_models_with_terms_of_their_own_keep_their_objects_when_all_terms_change() -> None:
    servers = fleet()
    before = adopt(servers, with_(ONE, weight=1), with_(ONE, weight=2))
    before[0].in_flight = 5
    assert adopt(servers, with_(ONE, weight=3), with_(ONE, weight=4)) == before


async def test_an_object_in_use_is_kept_rather_than_one_that_leaves() -> None:
    servers = fleet()
    gone, stays = adopt(servers, with_(ONE, weight=1), with_(ONE, weight=2))
    gone.in_flight = 1
    adopt(servers, with_(ONE, weight=2))
    assert adopt(servers, with_(ONE, weight=3)) == [stays]


async def test_a_draft_changes_nothing() -> None:
    servers = fleet()
    (before,) = adopt(servers, ONE)
    draft = servers.drafted([with_(ONE, weight=9), TWO])
    assert (before.weight, list(draft.values())[0]) == (1, before)
    assert servers.at(ONE.url) == [before]
    assert servers.at(TWO.url) == []


async def test_one_that_leaves_is_known_until_it_is_idle() -> None:
    servers = fleet()
    (before,) = adopt(servers, ONE)
    before.in_flight = 1
    adopt(servers, TWO)
    assert servers.at(ONE.url) == [before]
    assert adopt(servers, ONE, TWO)[0] is before, "it came back while it was leaving"
    before.in_flight = 0
    adopt(servers, TWO)
    assert servers.at(ONE.url) == []


async def test_what_the_operator_took_out_stays_out_as_another_object() -> None:
    servers = fleet()
    (before,) = adopt(servers, ONE)
    servers.drain(ONE.url, out=True)
    assert before.drained
    after, other = adopt(servers, with_(ONE, api_key="another"), TWO)
    assert (after is before, after.drained, other.drained) == (False, True, False)
    servers.drain(ONE.url, out=False)
    assert not after.drained


async def test_what_the_operator_took_out_stays_out_when_it_comes_back() -> None:
    servers = fleet(ONE, TWO)
    servers.drain(ONE.url, out=True)
    adopt(servers, TWO)
    back, other = adopt(servers, ONE, TWO)
    assert (back.drained, other.drained) == (True, False)


async def test_an_url_that_nobody_has_is_not_remembered_as_taken_out() -> None:
    servers = fleet(TWO)
    servers.drain(ONE.url, out=True)
    one, _ = adopt(servers, ONE, TWO)
    assert not one.drained


async def test_a_whole_list_takes_out_those_that_are_not_known_yet_too() -> None:
    servers = fleet(TWO)
    servers.take_out([ONE.url])
    one, two = adopt(servers, ONE, TWO)
    assert (one.drained, two.drained) == (True, False)
    servers.take_out([TWO.url])
    assert (one.drained, two.drained) == (False, True)


# TLS


def test_an_https_server_is_asked_over_tls_and_its_own_authority() -> None:
    assert tls_context(ONE) is None
    tls = tls_context(ReplicaSettings(url="https://gpu1:8443"))
    assert tls is not None
    assert tls.check_hostname


def test_a_file_without_certificates_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    with pytest.raises(BadFile, match="ca.pem' holds no certificates of use"):
        tls_context(ReplicaSettings(url="https://gpu1", ca_file=str(file)))


# Who is asked


class Learning:
    """Servers that are asked in this loop. `heard` counts answers, `asked` first rounds."""

    def __init__(self) -> None:
        self.transport = Transport()
        self.fleet = Fleet(self.transport, self._count)
        self.heard = 0
        self.asked = 0

    def _count(self) -> None:
        self.heard += 1

    def round(self) -> None:
        self.asked += 1

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.fleet.learn(self.round))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.transport.close()


def at(engine: Engine) -> ReplicaSettings:
    return ReplicaSettings(url=engine.url)


async def test_servers_of_a_later_configuration_are_asked_at_once_and_others_not_again() -> None:
    learning = Learning()
    async with Engine() as one, Engine() as two:
        adopt(learning.fleet, at(one))
        async with learning.going_on():
            await until(lambda: learning.heard == 1)
            asked = len(one.requests)
            _, new = adopt(learning.fleet, at(one), at(two))
            await until(lambda: learning.heard == 2)
            assert new.capability.models[0].name == "tiny"
            assert len(one.requests) == asked


async def test_one_that_hangs_delays_no_other() -> None:
    learning = Learning()
    async with Engine() as one, Engine() as two:
        one.script = lambda got: [Hang()]
        adopt(learning.fleet, at(one), at(two))
        async with learning.going_on():
            await until(lambda: learning.heard == 1)
            assert learning.asked == 0, "the first round is not over"
            adopt(learning.fleet, at(two))
            await until(lambda: learning.asked > 0)


async def test_one_that_left_is_not_asked_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "_SOON", 0.01)
    learning = Learning()
    engine = Engine()
    engine.start()
    await engine.stop()
    async with Engine() as other:
        adopt(learning.fleet, at(engine))
        with caplog.at_level(logging.WARNING):
            async with learning.going_on():
                await until(lambda: "no connection (refused)" in caplog.text)
                adopt(learning.fleet, at(other))
                await until(lambda: learning.heard == 1)
                async with engine:
                    await asyncio.sleep(0.1)  # several rounds, had it stayed
                    assert engine.requests == []


async def recovered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, down: str
) -> list[str]:
    """What is told of one server that is away for several rounds, and then is back."""
    monkeypatch.setattr(discovery, "_SOON", 0.01)
    learning = Learning()
    engine = Engine()
    engine.start()
    await engine.stop()
    (replica,) = adopt(learning.fleet, at(engine))
    replica.health.down = down
    with caplog.at_level(logging.WARNING):
        async with learning.going_on():
            await until(lambda: "no connection" in caplog.text)
            await asyncio.sleep(0.05)
            async with engine:
                await until(lambda: learning.heard == 1)
    return [record.getMessage().removeprefix(f"{engine.url}: ") for record in caplog.records]


async def test_one_that_was_away_is_told_of_once_and_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = await recovered(monkeypatch, caplog, down="")
    assert told == ["no connection (refused)", "answers now"]


async def test_where_probes_say_that_it_is_back_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = await recovered(monkeypatch, caplog, down="no connection can be made")
    assert told == ["no connection (refused)"]


async def test_another_reason_is_told_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "_SOON", 0.01)
    learning = Learning()
    statuses = iter([503, 503, 401, 503, 401, 401])
    async with Engine(lambda got: plain(next(statuses, 401), b"{}")) as engine:
        adopt(learning.fleet, at(engine))
        with caplog.at_level(logging.WARNING):
            async with learning.going_on():
                await until(lambda: len(engine.requests) > 6)
    told = [record.getMessage().removeprefix(f"{engine.url}: ")[:11] for record in caplog.records]
    assert told == ["answers 503", "answers 401"]

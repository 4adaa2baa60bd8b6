"""Another configuration → other live objects: what stays, what goes, and all of it or nothing."""

import asyncio
import gc
import weakref
from pathlib import Path

import msgspec
import pytest

from backends import discovery
from gateway import config as configuration
from gateway.fleet import BadFile
from gateway.settings import Limits
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving, until
from tests.fakes.vllm import Vllm
from tests.gateway.test_composition import BODY, CHAT, discovering, models


async def reloaded(gateway: Serving, text: str) -> None:
    await gateway.worker.reload(configuration.load("test.yaml", text, {}))


async def test_what_is_counted_learnt_and_under_way_stays_over_a_reload() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        whole = gateway.worker.composition
        before, pool = whole.gateway, whole.routes.pools()[0]
        await reloaded(gateway, configured(engine.url, more="request: {n: 3}\n"))
        after = whole.gateway
        assert after is not before
        assert (before.config.request.n, after.config.request.n) == (8, 3)
        for name in ("account", "bodies", "salts", "live"):
            assert getattr(after, name) is getattr(before, name), name
        assert after.admission is not before.admission
        assert after.admission.estimates is before.admission.estimates
        assert after.admission.counter is before.admission.counter
        assert whole.routes.pools() == [pool], "nothing of it changed"
        assert whole.routes.table["tiny"].max_model_len == 4096
        assert whole.routes.table["tiny"].caps.n == 3


async def test_a_pool_with_other_replicas_is_another_on_the_same_ones() -> None:
    async with Engine() as one, Engine() as two, serving(configured(one.url)) as gateway:
        whole = gateway.worker.composition
        (before,) = whole.routes.pools()
        await reloaded(gateway, configured(one.url, two.url))
        (after,) = whole.routes.pools()
        assert before.replicas == after.replicas[:1]
        await until(lambda: len(two.requests) == 3)
        for change in ("kind: openai", "policy: round_robin"):
            await reloaded(gateway, configured(one.url, two.url, model=change))
            (other,) = whole.routes.pools()
            assert other is not after
            assert other.replicas == after.replicas


async def test_the_replicas_in_use_are_told_once_with_their_kind(tmp_path: Path) -> None:
    async with Engine() as one, Engine() as two:
        other = f"models: {{other: {{replicas: [{one.url}]}}, "
        text = configured(one.url, two.url, model="kind: openai").replace("models: {", other, 1)
        async with serving(text) as gateway:
            found = gateway.worker.composition.replicas()
            assert {(r.url, kind.name) for r, kind in found} == {
                (one.url, "vllm"),
                (two.url, "openai"),
            }
            assert len(found) == 2
            await reloaded(gateway, configured(two.url))
            assert [r.url for r, _ in gateway.worker.composition.replicas()] == [two.url]
            assert gateway.worker.composition.fleet.at(one.url) == []
        async with discovering(tmp_path, "http://127.0.0.1:9") as gateway:
            ((silent, kind),) = gateway.worker.composition.replicas()
            assert (silent.url, kind.name) == ("http://127.0.0.1:9", "vllm")


async def test_discovered_models_stay_over_a_reload_and_go_when_no_server_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_SOON", 0.01)
    monkeypatch.setattr(discovery, "_LATER", 0.01)
    async with Engine(models=("tiny", "big")) as one, Engine() as two:
        async with discovering(tmp_path, one.url, two.url) as gateway:
            worker = gateway.worker
            pools = {pool.name: pool for pool in worker.composition.routes.pools()}
            assert [len(pools[name].replicas) for name in ("tiny", "big")] == [2, 1]
            await worker.reload(
                msgspec.structs.replace(worker.config, limits=Limits(concurrency=9))
            )
            assert {p.name: p for p in worker.composition.routes.pools()} == pools
            one.vllm = Vllm(("tiny",), None)
            async with asyncio.timeout(5):
                while "big" in await models(gateway):
                    await asyncio.sleep(0.01)
            assert list(await models(gateway)) == ["tiny"]


async def test_a_configuration_that_fails_on_the_way_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        whole = gateway.worker.composition
        before = (whole.gateway, whole.config, whole.rulebook, whole.replicas())
        bad = f"{{url: 'https://gpu1', ca_file: {file}}}"
        with pytest.raises(BadFile):
            await reloaded(
                gateway,
                configured(f"{{url: '{engine.url}', weight: 5}}", bad, timeouts="{connect: 3s}"),
            )
        assert (whole.gateway, whole.config, whole.rulebook, whole.replicas()) == before
        assert before[3][0][0].weight == 1
        assert whole.transport.limits.connect == 1.0
        assert (await request(gateway.port, "POST", CHAT, HEADERS, BODY)).status == 200


async def test_nothing_of_an_old_configuration_is_kept_once_nobody_uses_it() -> None:
    async with Engine() as one, Engine() as two, serving(configured(one.url)) as gateway:
        whole = gateway.worker.composition
        pool = weakref.ref(whole.routes.pools()[0])
        routes = weakref.ref(whole.routes)
        await request(gateway.port, "POST", CHAT, HEADERS, BODY)
        for number in range(20):
            await reloaded(gateway, configured(two.url, more=f"request: {{n: {number + 1}}}\n"))
        gc.collect()
        assert routes() is None
        assert pool() is None
        assert len(whole.fleet._known) == len(whole.fleet._asking) == 1

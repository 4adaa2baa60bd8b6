"""Configuration → live objects: permissions, pools, and what is learnt of the servers."""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends import discovery
from gateway import config as configuration
from gateway.composition import principals
from gateway.settings import Key, Team, Timeouts
from gateway.terms import Principal
from gateway.worker import Worker
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, KEY, SECRET, Serving, configured, serving, until
from tests.fakes.script import Received, Step, plain

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def loaded(text: str) -> dict[str, Any]:
    """The principals of one configuration by the name of their key."""
    config = configuration.load("test.yaml", text, {})
    return {each.key: each for each in principals(config).values()}


@contextlib.asynccontextmanager
async def discovering(tmp_path: Path, *urls: str) -> AsyncIterator[Serving]:
    """A gateway without a file, in front of these servers."""
    config = configuration.discovered(
        urls,
        listen="127.0.0.1:0",
        keys=(Key(name="ann", team="search", sha256=DIGEST),),
        teams={"search": Team()},
        admin_listen=None,
        timeouts=Timeouts(lame_duck=0.0, drain=3.0),
    )
    with open(tmp_path / "log", "wb") as file:
        worker = Worker(config, SECRET, file.fileno())
        async with worker.serving() as addresses:
            yield Serving(worker, int(addresses[0].rpartition(":")[2]), 0, tmp_path / "log")


async def models(gateway: Serving) -> dict[str, Any]:
    answer = await request(gateway.port, "GET", "/v1/models", HEADERS)
    return {model["id"]: model.get("max_model_len") for model in answer.json()["data"]}


def lasting(length: int | None, *names: str) -> Any:
    """A server whose models have this length."""
    card = {"object": "model"} if length is None else {"object": "model", "max_model_len": length}
    cards = json.dumps({"data": [{"id": name, **card} for name in names or ("tiny",)]}).encode()

    def answer(asked: Received) -> list[Step] | None:
        return plain(200, cards) if asked.path == "/v1/models" else None

    return answer


# Keys


def test_a_key_may_use_what_both_it_and_its_team_allow() -> None:
    known = loaded(
        "models: {a: {replicas: [http://h:1]}, b: {replicas: [http://h:1], aliases: [bee]}}\n"
        "teams: {all: {}, some: {models: [a, bee]}}\n"
        "keys:\n"
        f"  - {{name: free, team: all, sha256: {'1' * 64}}}\n"
        f"  - {{name: team, team: some, sha256: {'2' * 64}}}\n"
        f"  - {{name: key, team: all, sha256: {'3' * 64}, models: [b]}}\n"
        f"  - {{name: both, team: some, sha256: {'4' * 64}, models: [b]}}\n"
    )
    assert {name: each.models for name, each in known.items()} == {
        "free": None,
        "team": {"a", "b"},
        "key": {"b"},
        "both": {"b"},
    }


def test_an_empty_list_allows_nothing_and_never_everything() -> None:
    known = loaded(
        "models: {a: {replicas: [http://h:1]}}\n"
        "teams: {all: {}, none: {models: []}}\n"
        "keys:\n"
        f"  - {{name: team, team: none, sha256: {'1' * 64}}}\n"
        f"  - {{name: key, team: all, sha256: {'2' * 64}, models: []}}\n"
        f"  - {{name: both, team: none, sha256: {'3' * 64}, models: [a]}}\n"
    )
    assert {each.models for each in known.values()} == {frozenset()}


@pytest.mark.parametrize(("day", "status"), [("2020-01-01", 401), ("2999-01-01", 200)])
async def test_a_key_ends_with_its_day(day: str, status: int) -> None:
    async with Engine() as engine:
        text = configured(engine.url).replace(f"{DIGEST}}}", f"{DIGEST}, expires: {day}}}")
        async with serving(text) as gateway:
            assert (await request(gateway.port, "POST", CHAT, HEADERS, BODY)).status == status


async def test_a_key_reaches_and_sees_only_its_models() -> None:
    async with Engine() as engine:
        text = configured(engine.url).replace(f"{DIGEST}}}", f"{DIGEST}, models: [other]}}")
        text = text.replace("models: {", f"models: {{other: {{replicas: [{engine.url}]}}, ", 1)
        async with serving(text) as gateway:
            assert list(await models(gateway)) == ["other"]
            answer = await request(gateway.port, "POST", CHAT, HEADERS, BODY)
            assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")


# Caps


async def test_caps_of_a_team_and_a_model_are_laid_over_the_gateways() -> None:
    more = "request: {n: 2}\n"
    async with Engine() as engine:
        text = configured(engine.url, more=more, model="request: {n: 3}")
        table = {}
        for team in ("{}", "{request: {n: 4}}"):
            async with serving(text.replace("search: {}", f"search: {team}")) as gateway:
                route = gateway.worker.composition.routes.table["tiny"]
                table[team] = (route.caps_for("search").n, route.caps_for("ads").n)
    assert table == {"{}": (3, 3), "{request: {n: 4}}": (4, 3)}


async def test_the_largest_body_anyone_may_send_passes_the_front(tmp_path: Path) -> None:
    large = b'{"model":"tiny","messages":[{"role":"user","content":"' + b"x" * 3000 + b'"}]}'
    more = "request: {body: 1KiB}\n"
    async with Engine() as engine:
        text = configured(engine.url, more=more)
        for over, status in (("{}", 413), ("{request: {body: 8KiB}}", 200)):
            async with serving(text.replace("search: {}", f"search: {over}")) as gateway:
                answer = await request(gateway.port, "POST", CHAT, HEADERS, large)
                assert answer.status == status


# What servers say of themselves


async def test_servers_of_one_model_become_one_pool(tmp_path: Path) -> None:
    async with Engine() as one, Engine(models=("tiny", "big")) as two:
        async with discovering(tmp_path, one.url, two.url) as gateway:
            assert set(await models(gateway)) == {"tiny", "big"}
            table = gateway.worker.composition.routes.table
            assert {r.url for r in table["tiny"].pool.replicas} == {one.url, two.url}
            assert {r.url for r in table["big"].pool.replicas} == {two.url}
            for _ in range(4):
                assert (await request(gateway.port, "POST", CHAT, HEADERS, BODY)).status == 200
    assert [seen.path for seen in one.requests].count(CHAT) == 2
    assert [seen.path for seen in two.requests].count(CHAT) == 2


async def test_a_model_on_several_servers_is_as_long_as_the_shortest(tmp_path: Path) -> None:
    for lengths in ((4096, 1024), (1024, 4096), (1024, None), (None, 1024)):
        async with Engine(lasting(lengths[0])) as one, Engine(lasting(lengths[1])) as two:
            async with discovering(tmp_path, one.url, two.url) as gateway:
                assert await models(gateway) == {"tiny": 1024}
            async with serving(configured(one.url, two.url)) as gateway:
                assert await models(gateway) == {"tiny": 1024}


async def test_models_that_share_a_server_each_learn_their_length() -> None:
    async with Engine(lasting(2048, "a", "b")) as engine:
        text = configured(engine.url, model="upstream_model: a, aliases: [alias]")
        other = f"models: {{other: {{replicas: [{engine.url}], upstream_model: b}}, "
        async with serving(text.replace("models: {", other, 1)) as gateway:
            assert await models(gateway) == {"tiny": 2048, "alias": 2048, "other": 2048}
            table = gateway.worker.composition.routes.table
            assert table["tiny"].pool.replicas[0] is table["other"].pool.replicas[0]


async def test_each_model_keeps_its_own_terms_with_a_server_they_share() -> None:
    async with Engine() as engine:
        other = f"models: {{other: {{replicas: [{{url: '{engine.url}', concurrency: 3}}]}}, "
        text = configured(engine.url).replace("models: {", other, 1)
        async with serving(text) as gateway:
            table = gateway.worker.composition.routes.table
            assert table["other"].pool.replicas[0].concurrency == 3
            assert table["tiny"].pool.replicas[0].concurrency is None


async def test_a_server_that_says_no_length_or_not_this_model_leaves_it_unknown() -> None:
    for script in (lasting(None), lasting(4096, "another")):
        async with Engine(script) as engine, serving(configured(engine.url)) as gateway:
            assert await models(gateway) == {"tiny": None}


async def test_a_server_that_answers_later_is_learnt_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "_SOON", 0.02)
    one, late = Engine(), Engine()
    late.start()
    await late.stop()  # its port is known, and refuses
    async with one:
        with caplog.at_level(logging.WARNING):
            async with discovering(tmp_path, one.url, late.url) as gateway:
                assert gateway.worker.ready
                table = gateway.worker.composition.routes.table
                assert [r.url for r in table["tiny"].pool.replicas] == [one.url]
                await asyncio.sleep(0.1)  # several rounds: it is told of once
                assert caplog.text.count(f"{late.url}: no connection (refused)") == 1
                async with late:
                    await until(lambda: len(table["tiny"].pool.replicas) == 2)
                    assert caplog.text.count(" answers ") == 1
                    for _ in range(2):
                        await request(gateway.port, "POST", CHAT, HEADERS, BODY)
                    assert CHAT in [seen.path for seen in late.requests]


async def test_a_gateway_whose_servers_are_all_away_starts_and_lists_nothing(
    tmp_path: Path,
) -> None:
    engine = Engine()
    engine.start()
    await engine.stop()
    async with discovering(tmp_path, engine.url) as gateway:
        assert gateway.worker.ready
        assert await models(gateway) == {}
        assert (await request(gateway.port, "POST", CHAT, HEADERS, BODY)).status == 404


async def test_a_server_without_a_schema_is_taken_to_know_everything() -> None:
    def answer(asked: Received) -> list[Step] | None:
        return plain(404, b"{}") if asked.path == "/openapi.json" else None

    async with Engine(answer) as engine, serving(configured(engine.url)) as gateway:
        await request(gateway.port, "POST", CHAT, HEADERS, BODY)
        assert "cache_salt" in engine.requests[-1].json()


async def test_a_server_that_takes_no_salt_is_warned_of_once_and_shown_in_the_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    content: Any = {"application/json": {"schema": {"properties": {"model": {}, "messages": {}}}}}
    document = {"paths": {CHAT: {"post": {"requestBody": {"content": content}}}}}

    def answer(asked: Received) -> list[Step] | None:
        old = asked.path == "/openapi.json"
        return plain(200, json.dumps(document).encode()) if old else None

    async with Engine(answer) as old, Engine() as new:
        for engine, takes in ((old, False), (new, True)):
            caplog.clear()
            async with serving(configured(engine.url)) as gateway:
                with caplog.at_level(logging.WARNING):
                    for _ in range(3):
                        await request(gateway.port, "POST", CHAT, HEADERS, BODY)
                status = await request(gateway.admin_port, "GET", "/status")
            assert ("cache_salt" in engine.requests[-1].json()) is takes
            assert status.json()["pools"]["tiny"]["replicas"][0]["cache_salt"] is takes
            assert caplog.text.count("has no cache_salt") == (0 if takes else 1)


async def test_a_configured_model_stays_as_configured_beside_discovered_ones(
    tmp_path: Path,
) -> None:
    async with Engine(models=("real",)) as mine, Engine(models=("tiny", "extra")) as found:
        text = configured(mine.url, model="upstream_model: real, request: {n: 1}")
        config = configuration.override(
            configuration.load("test.yaml", text, {}), backends=(found.url,)
        )
        with open(tmp_path / "log", "wb") as file:
            worker = Worker(config, SECRET, file.fileno())
            async with worker.serving():
                table = worker.composition.routes.table
                assert set(table) == {"tiny", "extra"}
                assert (table["tiny"].caps.n, table["tiny"].upstream_model) == (1, "real")
                assert [r.url for r in table["tiny"].pool.replicas] == [mine.url]


async def test_a_split_stays_a_split_beside_a_discovered_model_of_its_name(
    tmp_path: Path,
) -> None:
    async with Engine() as mine, Engine(models=("chat", "gpt")) as found:
        text = configured(mine.url).replace(
            "models: {", "models: {chat: {split: {tiny: 1}, aliases: [gpt]}, ", 1
        )
        config = configuration.override(
            configuration.load("test.yaml", text, {}), backends=(found.url,)
        )
        with open(tmp_path / "log", "wb") as file:
            worker = Worker(config, SECRET, file.fileno())
            async with worker.serving():
                routes = worker.composition.routes
                assert (set(routes.table), set(routes.splits)) == ({"tiny"}, {"chat", "gpt"})
                lengths = routes.visible(Principal("ann", "search"))
                assert lengths == dict.fromkeys(("tiny", "chat", "gpt"), 4096)


async def test_a_model_its_server_does_not_have_is_told_once_with_those_it_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Engine(models=("real", "other")) as engine:
        with caplog.at_level(logging.WARNING):
            async with serving(configured(engine.url, model="aliases: [small]")) as gateway:
                composition = gateway.worker.composition
                told = f"{engine.url} [tiny]: does not serve tiny, it serves real, other: "
                await until(lambda: told in caplog.text)
                composition._heard()
                assert caplog.text.count("set upstream_model of tiny") == 1
                caplog.clear()
                right = configured(engine.url, model="upstream_model: real")
                composition.reload(configuration.load("test.yaml", right, {}))
                assert caplog.records == []
                wrong = configured(engine.url, model="upstream_model: big")
                composition.reload(configuration.load("test.yaml", wrong, {}))
                assert caplog.text.count("[tiny]: does not serve big") == 1


async def test_models_of_one_url_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    def wants_a_key(asked: Received) -> list[Step] | None:
        return None if asked.headers.get("authorization") else plain(401, b"{}")

    async with Engine(wants_a_key) as engine:
        keyed = f"{{url: '{engine.url}', api_key_env: TOKEN}}"
        other = f"models: {{keyed: {{upstream_model: tiny, replicas: [{keyed}]}}, "
        text = configured(engine.url).replace("models: {", other, 1)
        with caplog.at_level(logging.WARNING):
            async with serving(text, {"TOKEN": "sk"}) as gateway:
                assert gateway.worker.ready
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{engine.url} [tiny]: answers 401: it wants a credential; name its variable with "
        "api_key_env"
    ]

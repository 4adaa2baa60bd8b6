"""Names that lead to several models: a split keeps its callers apart, a fallback stands in."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.route import Split
from tests.fakes.admission import Counting
from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving
from tests.fakes.script import Fin, Hang, Rst, Script, plain, stream
from tests.faults.asking import (
    CHAT,
    MESSAGES,
    PATHS,
    Heard,
    ask,
    body,
    error,
    events,
    nothing_left,
)

pytestmark = pytest.mark.usefixtures("no_traceback")

WAYS = [(path, stream) for path in PATHS for stream in (True, False)]


def named(models: str, **more: str) -> str:
    """A configuration of these models, `name: {...}` one after another."""
    return re.sub(r"^models: .*$", f"models: {{{models}}}", configured(**more), flags=re.MULTILINE)


@contextlib.asynccontextmanager
async def gone() -> AsyncIterator[Engine]:
    """An engine that is not there any more: its port refuses."""
    engine = Engine()
    engine.start()
    await engine.stop()
    with socket.socket() as kept:  # or the next engine could be given it
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", engine.port))
        yield engine


def posts(*engines: Engine) -> list[int]:
    return [sum(seen.method == "POST" for seen in engine.requests) for engine in engines]


def standing_in(first: Engine, *others: Engine, model: str = "") -> str:
    """`tiny` on the first engine, in front of `spare`, on each of the others one, in this order."""
    names = [f"spare{n}" for n in range(len(others))]
    spares = [
        f"{name}: {{replicas: [{engine.url}], upstream_model: tiny}}"
        for name, engine in zip(names, others, strict=True)
    ]
    tiny = f"tiny: {{replicas: [{first.url}], fallback: [{', '.join(names)}]{model}}}"
    return ", ".join([tiny, *spares])


def names_said(answer: Heard) -> set[str]:
    """The names of models that an answer tells."""
    said = orjson.dumps(answer.plain) if answer.plain else b"".join(answer.events)
    return {name.decode() for name in re.findall(rb'"model": ?"([^"]*)"', said)}


# A fallback


async def test_a_fallback_serves_where_no_engine_can_be_reached() -> None:
    async with gone() as down, Engine(models=("real",)) as spare:
        models = standing_in(down, spare).replace("upstream_model: tiny", "upstream_model: real")
        async with serving(named(models)) as gateway, nothing_left(gateway, spare):
            for path, stream in WAYS:
                answer = await ask(gateway.port, path, stream=stream)
                assert answer.status == 200
                assert answer.headers.get("x-fairgate-model") == "spare0"
                assert len(answer.events) == (len(events(path)) if stream else 0)
                assert names_said(answer) == {"tiny"}
                assert spare.requests[-1].json()["model"] == "real"
            for line in await gateway.logged(len(WAYS)):
                told = (line["model"], line["pool"], line["replica"])
                assert told == ("tiny", "spare0", spare.url)
                assert (line["status"], line["outcome"], line["attempts"]) == (200, "ok", 2)
                assert line["completion_tokens"] > 0


async def test_an_engine_that_dies_is_stood_in_for_and_served_by_again_when_it_is_back() -> None:
    async with Engine() as first, Engine() as spare:
        async with serving(named(standing_in(first, spare))) as gateway:
            assert (await ask(gateway.port, CHAT)).status == 200
            await first.stop()
            assert (await ask(gateway.port, CHAT)).status == 200
            first.start()
            assert (await ask(gateway.port, CHAT)).status == 200
            pools = [line["pool"] for line in await gateway.logged(3)]
    assert pools == ["tiny", "spare0", "tiny"]


async def test_every_try_in_the_models_own_pool_comes_before_its_fallback() -> None:
    async with gone() as one, gone() as two, Engine() as spare:
        models = standing_in(one, spare).replace(f"[{one.url}]", f"[{one.url}, {two.url}]")
        async with serving(named(models)) as gateway:
            assert (await ask(gateway.port, CHAT)).status == 200
            (line,) = await gateway.logged(1)
    assert (line["pool"], line["attempts"]) == ("spare0", 3)


async def test_a_fallback_serves_where_every_replica_is_full() -> None:
    async with Engine([Hang()]) as busy, Engine() as spare:
        url = f"{{url: '{busy.url}', concurrency: 1}}"
        text = named(standing_in(busy, spare).replace(f"[{busy.url}]", f"[{url}]"))
        async with serving(text) as gateway, await Client.open(gateway.port) as holding:
            await holding.post(CHAT, body(CHAT), HEADERS)
            await busy.until(lambda: posts(busy) == [1])
            for stream in (True, False):
                answer = await ask(gateway.port, CHAT, stream=stream)
                assert (answer.status, answer.headers.get("x-fairgate-model")) == (200, "spare0")
            for line in await gateway.logged(2):
                assert (line["pool"], line["attempts"]) == ("spare0", 1)


async def test_fallbacks_are_asked_in_their_order_and_each_once() -> None:
    async with gone() as down, gone() as one, Engine() as other, Engine() as last:
        async with serving(named(standing_in(down, one, other, last))) as gateway:
            assert (await ask(gateway.port, CHAT)).headers.get("x-fairgate-model") == "spare1"
            (line,) = await gateway.logged(1)
        assert (line["pool"], line["attempts"]) == ("spare1", 3)
        assert posts(other, last) == [1, 0]


async def test_where_nobody_is_left_the_caller_is_told_once() -> None:
    async with gone() as down, gone() as spare:
        async with serving(named(standing_in(down, spare))) as gateway, nothing_left(gateway):
            for path, stream in WAYS:
                answer = await ask(gateway.port, path, stream=stream)
                error(path, answer)
                assert answer.status == 502
            for line in await gateway.logged(len(WAYS)):
                assert (line["outcome"], line["attempts"]) == ("upstream_failed", 2)
                assert (line["pool"], line["replica"]) == ("spare0", spare.url)


async def test_where_only_full_ones_are_left_the_caller_is_told_to_come_back() -> None:
    async with gone() as down, Engine([Hang()]) as spare:
        url = f"{{url: '{spare.url}', concurrency: 1}}"
        text = named(standing_in(down, spare).replace(f"[{spare.url}]", f"[{url}]"))
        async with serving(text) as gateway, await Client.open(gateway.port) as holding:
            await holding.post(CHAT, body(CHAT), HEADERS)
            await spare.until(lambda: posts(spare) == [1])
            for path, status in ((CHAT, 503), (MESSAGES, 529)):
                assert (await ask(gateway.port, path)).status == status
            line = (await gateway.logged(2))[0]
            # The last that was asked; the full one never was.
            assert (line["pool"], line["replica"], line["attempts"]) == ("tiny", down.url, 1)


async def test_a_fallbacks_own_fallbacks_are_not_asked() -> None:
    async with gone() as down, gone() as spare, Engine() as further:
        models = standing_in(down, spare, further)
        models = models.replace("[spare0, spare1]", "[spare0]")
        models = models.replace("spare0: {", "spare0: {fallback: [spare1], ")
        async with serving(named(models)) as gateway:
            assert (await ask(gateway.port, CHAT)).status == 502
            assert posts(further) == [0]
            answer = await ask(gateway.port, CHAT, model="spare0")
            assert answer.headers.get("x-fairgate-model") == "spare1"


#: What an engine does that has the request, or may have it, and what a caller is told.
HAD: dict[str, tuple[Script, int]] = {
    "too busy": (plain(503, b"{}"), 503),
    "too many": (plain(429, b"{}"), 503),
    "broken": (plain(500, b"{}"), 502),
    "misconfigured": (plain(401, b"{}"), 502),
    "closes": ([Fin()], 502),
    "resets": ([Rst()], 502),
    "cut": ([*stream([], end=False), Rst()], 502),
}


async def test_what_an_engine_may_have_had_goes_to_no_fallback() -> None:
    async with Engine() as first, Engine() as spare:
        async with serving(named(standing_in(first, spare))) as gateway:
            for fault, (script, status) in HAD.items():
                first.script = script
                assert (await ask(gateway.port, CHAT)).status == status, fault
        assert posts(spare) == [0]


async def test_what_killed_one_engine_goes_to_no_fallback_when_the_other_is_away() -> None:
    async with Engine([Rst()]) as first, gone() as other, Engine() as spare:
        models = standing_in(first, spare).replace(f"[{first.url}]", f"[{first.url}, {other.url}]")
        models = models.replace("tiny: {", "tiny: {policy: round_robin, ", 1)
        async with serving(named(models)) as gateway:
            statuses = [(await ask(gateway.port, CHAT)).status for _ in range(2)]
            attempts = [line["attempts"] for line in await gateway.logged(2)]
        assert (statuses, attempts, posts(spare)) == ([502, 502], [2, 2], [0])


@pytest.mark.parametrize("committed", [True, False])
async def test_no_other_pool_answers_under_a_head_that_names_the_first(committed: bool) -> None:
    times = f"{{tls: 200ms, early_commit: {'20ms' if committed else '10s'}, lame_duck: 0}}"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, and no more
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        async with Engine() as spare:
            models = f"tiny: {{replicas: ['{url}'], fallback: [spare]}}"
            models += f", spare: {{replicas: [{spare.url}], upstream_model: tiny}}"
            async with serving(named(models, timeouts=times)) as gateway:
                answer = await ask(gateway.port, CHAT)
                assert answer.status == 200
                told = "tiny" if committed else "spare"
                assert answer.headers.get("x-fairgate-model") == told
                assert (await gateway.logged(1))[0]["pool"] == told
                if committed:
                    error(CHAT, answer)
            assert posts(spare) == [0 if committed else 1]


async def test_a_request_is_made_anew_for_the_server_that_stands_in() -> None:
    odd: dict[str, Any] = {"odd": 1, "max_tokens": 50}
    async with gone() as down, Engine() as vllm, Engine() as openai:
        models = standing_in(down, openai, model=", request: {unknown_fields: drop}")
        models = models.replace(
            "upstream_model: tiny",
            "kind: openai, upstream_model: tiny, usage_in_streams: off, "
            "request: {max_tokens: {cap: 5}}",
        )
        models += f", usual: {{replicas: [{vllm.url}], upstream_model: tiny}}"
        async with serving(named(models)) as gateway:
            for name in ("usual", "tiny"):
                assert (await ask(gateway.port, CHAT, model=name, **odd)).status == 200
        ours, theirs = vllm.requests[-1].json(), openai.requests[-1].json()
    assert ours.keys() - theirs.keys() == {"cache_salt", "stream_options"}
    assert theirs.keys() - ours.keys() == {"odd"}
    assert (ours["max_tokens"], theirs["max_tokens"]) == (50, 5)


async def test_a_fallback_that_cannot_serve_a_request_is_passed_over() -> None:
    async with gone() as down, Engine() as openai, Engine() as vllm:
        models = standing_in(down, openai, vllm)
        models = models.replace("spare0: {", "spare0: {kind: openai, ")
        async with serving(named(models)) as gateway:
            for path, pool in ((MESSAGES, "spare1"), (CHAT, "spare0")):
                assert (await ask(gateway.port, path)).headers.get("x-fairgate-model") == pool
        only = models.replace("[spare0, spare1]", "[spare0]")
        async with serving(named(only)) as gateway:
            assert (await ask(gateway.port, MESSAGES)).status == 502


async def test_a_fallback_needs_permission_for_the_name_asked_for_only() -> None:
    async with gone() as down, Engine() as spare:
        text = named(standing_in(down, spare)).replace("search: {}", "search: {models: [tiny]}")
        async with serving(text) as gateway:
            assert (await ask(gateway.port, CHAT, model="spare0")).status == 404
            assert (await ask(gateway.port, CHAT)).status == 200


async def test_what_a_fallback_served_is_charged_once_and_to_the_name_asked_for() -> None:
    async with gone() as down, Engine() as spare:
        async with serving(named(standing_in(down, spare))) as gateway:
            admission = Counting()
            gateway.worker.composition.gateway.admission = admission
            assert (await ask(gateway.port, CHAT)).status == 200
            (line,) = await gateway.logged(1)
    assert [route.model for _, route, _ in admission.asked] == ["tiny"]
    ((used,),) = admission.settled
    assert (used.exact, used.completion) == (True, line["completion_tokens"])
    assert used.completion > 0


async def test_a_caller_who_leaves_while_a_fallback_works_frees_its_engine() -> None:
    async with gone() as down, Engine([*stream([], end=False), Hang()]) as spare:
        async with serving(named(standing_in(down, spare))) as gateway:
            async with nothing_left(gateway, spare):
                async with await Client.open(gateway.port) as client:
                    await client.post(CHAT, body(CHAT), HEADERS)
                    await spare.until(lambda: posts(spare) == [1])
                await spare.until(lambda: len(spare.aborts) == 1)
            (line,) = await gateway.logged(1)
    assert (line["outcome"], line["pool"], line["attempts"]) == ("client_gone", "spare0", 2)


# A split


def splitting(one: Engine, other: Engine, weights: str = "{a: 60, b: 40}", side: str = "") -> str:
    a = f"a: {{replicas: [{one.url}], upstream_model: tiny{side}}}"
    b = f"b: {{replicas: [{other.url}], upstream_model: tiny}}"
    return f"chat: {{split: {weights}, aliases: [gpt]}}, {a}, {b}"


def by(path: str, user: str) -> dict[str, Any]:
    """Fields that name a user in the dialect of a path."""
    return {"metadata": {"user_id": user}} if path == MESSAGES else {"user": user}


USERS = [f"user-{n}" for n in range(20)]
SIDES = Split("chat", {"a": 60, "b": 40})


def of_side(side: str) -> str:
    return next(user for user in USERS if SIDES.side("ann", user) == side)


async def test_a_user_is_served_by_one_side_of_a_split() -> None:
    async with Engine() as one, Engine() as other:
        engines = {"a": one, "b": other}
        async with serving(named(splitting(one, other))) as gateway:
            for path, stream in WAYS:
                for name, side in (("chat", "a"), ("gpt", "a"), ("chat", "b"), ("gpt", "b")):
                    fields = by(path, of_side(side))
                    answer = await ask(gateway.port, path, stream=stream, model=name, **fields)
                    assert answer.status == 200
                    assert answer.headers.get("x-fairgate-model") == side
                    assert names_said(answer) == {name}
                    line = (await gateway.logged(sum(posts(one, other))))[-1]
                    told = (line["model"], line["pool"], line["replica"])
                    assert told == (name, side, engines[side].url)


async def test_two_gateways_choose_alike_and_the_metrics_tell_the_sides_apart() -> None:
    async with Engine() as one, Engine() as other:
        text = named(splitting(one, other))
        async with serving(text) as first, serving(text) as second:
            for user in USERS:
                for gateway in (first, second):
                    answer = await ask(gateway.port, CHAT, model="chat", user=user)
                    assert answer.headers.get("x-fairgate-model") == SIDES.side("ann", user)
            await second.logged(len(USERS))
            told = await counted(second)
    expected = Counter(SIDES.side("ann", user) for user in USERS)
    assert set(expected) == {"a", "b"}
    assert told == {("chat", side): count for side, count in expected.items()}
    assert posts(one, other) == [2 * expected["a"], 2 * expected["b"]]


async def counted(gateway: Serving) -> dict[tuple[str, str], float]:
    """The finished requests by the name asked for and the pool that served."""
    text = (await request(gateway.admin_port, "GET", "/metrics")).body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {
        (sample.labels["model"], sample.labels["pool"]): sample.value
        for sample in families["fairgate_requests"].samples
        if sample.name.endswith("_total")
    }


async def test_a_key_that_may_use_a_split_sees_and_reaches_its_sides_through_it_alone() -> None:
    async with Engine() as one, Engine() as other:
        text = named(splitting(one, other)).replace("search: {}", "search: {models: [gpt]}")
        async with serving(text) as gateway:
            listed = (await request(gateway.port, "GET", "/v1/models", HEADERS)).json()["data"]
            assert [model["id"] for model in listed] == ["chat", "gpt"]
            assert {model["max_model_len"] for model in listed} == {4096}
            one_of = await request(gateway.port, "GET", "/v1/models/chat", HEADERS)
            assert one_of.json() == listed[0]
            assert (await ask(gateway.port, CHAT, model="chat")).status == 200
            for side in ("a", "b"):
                assert (await ask(gateway.port, CHAT, model=side)).status == 404


async def test_a_limit_of_one_side_holds_for_those_on_it() -> None:
    async with Engine() as one, Engine() as other:
        text = named(splitting(one, other, side=", limits: {requests_per_day: 2}"))
        async with serving(text) as gateway:
            tries = ((of_side("a"), 200), (of_side("a"), 200), (of_side("a"), 503))
            for user, status in (*tries, (of_side("b"), 200)):
                assert (await ask(gateway.port, CHAT, model="chat", user=user)).status == status
            refused = (await gateway.logged(4))[2]
    assert (refused["limited_by"], refused["pool"]) == ("model.requests_per_day", "a")


async def test_a_side_that_is_away_is_stood_in_for_by_its_own_fallback_only() -> None:
    async with gone() as down, Engine() as other:
        for side, status, pool in (("", 502, "a"), (", fallback: [b]", 200, "b")):
            async with serving(named(splitting(down, other, side=side))) as gateway:
                answer = await ask(gateway.port, CHAT, model="chat", user=of_side("a"))
                assert answer.status == status
                (line,) = await gateway.logged(1)
                assert (line["model"], line["pool"]) == ("chat", pool)


async def test_callers_at_once_on_both_sides_do_not_mix() -> None:
    async with Engine() as one, Engine() as other:
        async with serving(named(splitting(one, other))) as gateway:
            asked = [ask(gateway.port, CHAT, model="chat", user=user) for user in USERS * 2]
            told = [a.headers.get("x-fairgate-model") for a in await asyncio.gather(*asked)]
    assert told == [SIDES.side("ann", user) for user in USERS * 2]

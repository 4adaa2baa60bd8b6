"""Prefix-cache isolation: who shares a salt, and who never does."""

import logging
import re

import pytest

from backends.capability import Capability
from gateway.salts import Salts
from gateway.settings import Caps
from gateway.terms import Principal
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, configured, serving
from tests.gateway.pools import pool, replica, route

CHAT = "/v1/chat/completions"
ANN, BOB = Principal("ann", "search"), Principal("bob", "search")
EVE = Principal("eve", "ads")
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
SALTED = b'{"model":"tiny","cache_salt":"mine","messages":[{"role":"user","content":"hi"}]}'


def salt(
    principal: Principal, by: str = "team", path: str = CHAT, secret: str = "s", kind: str = "vllm"
) -> str | None:
    told = route(pool("llama", replica(), kind=kind), caps=Caps(isolate_prefix_cache=by))  # type: ignore[arg-type]
    return Salts(secret).of(principal, told, path)


def test_a_team_shares_one_salt_and_no_other_team_has_it() -> None:
    assert salt(ANN) == salt(BOB) != salt(EVE)


def test_by_key_no_two_keys_share_one_even_where_a_key_is_named_like_a_team() -> None:
    assert len({salt(ANN, "key"), salt(BOB, "key"), salt(EVE, "key")}) == 3
    assert salt(Principal("search", "x"), "key") != salt(ANN)


def test_a_salt_is_the_same_in_every_process_with_the_secret_and_unguessable_without() -> None:
    assert salt(ANN, secret="s") == salt(ANN, secret="s")
    assert salt(ANN, secret="s") != salt(ANN, secret="t")


@pytest.mark.parametrize("team", ["search", "a/b@c\\d", "x" * 128, "\u00fc"])
def test_a_salt_has_only_what_vllm_takes(team: str) -> None:
    made = salt(Principal("ann", team))
    assert made is not None
    assert re.fullmatch(r"[A-Za-z0-9_-]{43,128}", made)
    assert team not in made


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages"]
)
def test_every_path_that_fills_the_cache_is_salted(path: str) -> None:
    assert salt(ANN, path=path)


def test_nothing_is_salted_where_it_is_not_wanted_or_not_understood() -> None:
    assert salt(ANN, "off") is None
    assert salt(ANN, path="/v1/messages/count_tokens") is None
    assert salt(ANN, kind="openai") is None


def test_what_a_team_is_given_goes_over_the_models_own() -> None:
    of = pool("llama", replica())
    told = route(of, caps_by_team={"search": Caps(isolate_prefix_cache="off")})
    assert Salts("s").of(ANN, told, CHAT) is None
    assert Salts("s").of(EVE, told, CHAT)


def test_a_server_without_the_field_is_warned_of_once_a_pool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = Capability(fields={CHAT: frozenset({"model"})})
    salts, told = Salts("s"), route(pool("llama", replica(capability=old)))
    with caplog.at_level(logging.WARNING):
        assert [salts.of(ANN, told, CHAT) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1
    assert "llama" in caplog.text


def test_one_new_server_beside_an_old_one_is_enough_to_send_it() -> None:
    old = Capability(fields={CHAT: frozenset({"model"})})
    told = route(pool("llama", replica(capability=old), replica("http://gpu2:8000")))
    assert Salts("s").of(ANN, told, CHAT)


async def test_the_engine_gets_the_salt_and_an_ordinary_caller_cannot_send_one() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        assert (await request(gateway.port, "POST", CHAT, HEADERS, BODY)).status == 200
        made = engine.requests[-1].json()["cache_salt"]
        assert made
        count = len(engine.requests)
        answer = await request(gateway.port, "POST", CHAT, HEADERS, SALTED)
        assert (answer.status, answer.json()["error"]["param"]) == (400, "cache_salt")
        assert len(engine.requests) == count


@pytest.mark.parametrize("stream", [b"false", b"true"])
async def test_a_callers_salt_is_replaced_even_where_the_field_is_allowed(stream: bytes) -> None:
    more = "request: {privileged: {cache_salt: allow}}"
    async with Engine() as engine, serving(configured(engine.url, more=more)) as gateway:
        await request(gateway.port, "POST", CHAT, HEADERS, BODY)
        ours = engine.requests[-1].json()["cache_salt"]
        body = SALTED[:-1] + b',"stream":' + stream + b"}"
        assert (await request(gateway.port, "POST", CHAT, HEADERS, body)).status == 200
        sent = engine.requests[-1].body
        assert engine.requests[-1].json()["cache_salt"] == ours
        assert sent.count(b"cache_salt") == 1
        assert b"mine" not in sent


async def test_switched_off_nothing_is_set() -> None:
    more = "request: {isolate_prefix_cache: 'off'}"
    async with Engine() as engine, serving(configured(engine.url, more=more)) as gateway:
        await request(gateway.port, "POST", CHAT, HEADERS, BODY)
        assert "cache_salt" not in engine.requests[-1].json()

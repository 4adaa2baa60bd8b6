"""`fairgate drain` and `undrain`: a replica out, with word of what is left there, and in again."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from gateway import cli
from gateway.operator import drain as command
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Serving, configured, serving
from tests.fakes.script import Step, plain

BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
AWAY = "http://127.0.0.1:1"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


async def ask(at: Serving | Engine, *arguments: str) -> Result:
    port = at.admin_port if isinstance(at, Serving) else at.port
    admin = ("--admin", f"http://127.0.0.1:{port}")
    return await asyncio.to_thread(run, *arguments, *admin)


async def chat(gateway: Serving) -> int:
    answer = await request(gateway.port, "POST", "/v1/chat/completions", HEADERS, BODY)
    return answer.status


async def test_a_drained_replica_is_sent_nothing_until_it_is_taken_in_again() -> None:
    async with Engine() as one, Engine() as other:
        async with serving(configured(one.url, other.url)) as gateway:
            result = await ask(gateway, "drain", f"{one.url}/v1/")
            assert (result.exit_code, result.output) == (
                0,
                f"{one.url} is drained: nothing more for tiny\nnothing is under way at {one.url}\n",
            )
            before = len(one.requests)
            assert [await chat(gateway) for _ in range(4)] == [200] * 4
            assert len(one.requests) == before
            result = await ask(gateway, "undrain", one.url)
            assert (result.exit_code, result.output) == (0, f"{one.url} is used again for tiny\n")
            assert [await chat(gateway) for _ in range(4)] == [200] * 4
            assert len(one.requests) > before


async def test_who_takes_out_the_last_one_is_warned() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        result = await ask(gateway, "drain", engine.url)
        assert result.exit_code == 0
        assert "tiny has no other replica: its callers get 503 now" in result.stderr
        assert await chat(gateway) == 503
        assert (await ask(gateway, "undrain", engine.url)).stderr == ""
        assert await chat(gateway) == 200


async def test_a_replica_nobody_has_is_answered_with_those_there_are() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        for name in ("drain", "undrain"):
            result = await ask(gateway, name, "http://gpu9:1/v1")
            told = f"fairgate: no replica 'http://gpu9:1'; known: {engine.url}\n"
            assert (result.exit_code, result.output) == (3, told)
            result = await ask(gateway, name, "gpu9")
            assert result.exit_code == 3
            assert "url: wanted a URL such as http://gpu1:8000" in result.output


# Waiting. The admin port here is a scripted one, which says what is under way.


class Told:
    """An admin port that answers each time with the next of `answers`, the last one for ever."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def script(self, got: Any) -> list[Step]:
        self.asked.append(got.method)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        whole = {"url": "http://gpu1:8000", "drained": True, "pools": ["llama"], "alone": {}}
        return plain(200, orjson.dumps({**whole, "in_flight": 0, "silent": 0, **answer}))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_EVERY", 0.01)


async def drained(told: Told, *more: str) -> Result:
    async with Engine(told.script) as port:
        return await ask(port, "drain", "http://gpu1:8000", *more)


@pytest.mark.parametrize("wait", [("--wait",), ("--wait", "60"), ("--wait=60",)])
async def test_it_waits_until_nothing_is_under_way_and_says_how_it_goes(wait: Any) -> None:
    left = [{"in_flight": n} for n in (3, 3, 1)]
    told = Told(*left, {"silent": 1}, {"in_flight": 0})
    result = await drained(told, *wait)
    assert result.exit_code == 0
    assert result.output.splitlines()[1:] == [
        "3 requests under way there",
        "1 request under way there",
        "1 worker did not say what is under way there",
        "nothing is under way at http://gpu1:8000",
    ]
    assert told.asked == ["POST", *["GET"] * 4]  # only the first of them takes it out


@pytest.mark.parametrize("answer", [{"in_flight": 2}, {"silent": 1}])
async def test_what_is_left_after_the_wait_is_told_with_status_3(answer: dict[str, Any]) -> None:
    result = await drained(Told(answer), "--wait", "0.05")
    assert result.exit_code == 3
    assert result.stderr.endswith(" there after 0.05 s; it stays drained\n")


async def test_without_wait_it_says_what_is_left_and_ends() -> None:
    told = Told({"in_flight": 2})
    result = await drained(told)
    assert (result.exit_code, told.asked) == (0, ["POST"])
    assert result.output.splitlines()[-1] == "2 requests under way there"


async def test_a_wait_for_one_that_somebody_took_in_again_ends() -> None:
    result = await drained(Told({"in_flight": 2}, {"in_flight": 2, "drained": False}), "--wait=9")
    assert result.exit_code == 3
    assert "not drained any more: somebody took it in again" in result.stderr


async def test_who_takes_over_is_named() -> None:
    result = await drained(Told({"alone": {"llama": ["next", "old"]}}))
    assert result.stderr == ("llama has no other replica: its callers get next or old instead\n")


async def test_a_wait_may_stand_before_the_url() -> None:
    told = Told({"in_flight": 1}, {})
    async with Engine(told.script) as port:
        result = await ask(port, "drain", "--wait", "http://gpu1:8000")
    assert (result.exit_code, told.asked) == (0, ["POST", "GET"])
    assert result.output.endswith("nothing is under way at http://gpu1:8000\n")


def test_a_wait_that_is_no_number_is_said() -> None:
    result = run("drain", "--wait", "soon", "http://gpu1:8000")
    assert result.exit_code == 2
    assert "'soon' is not a valid float" in result.output

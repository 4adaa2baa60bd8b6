"""What an operator asks a running gateway: why was this key refused, and its limits' reset."""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway import cli
from gateway.limits.base import Claim
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, Serving, configured, serving
from tests.fakes.redis import RedisServer, free_port

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
ADMIN = "admin-key-of-the-tests"
KEY_LIMITS = "{requests_per_minute: {limit: 60, burst: 2}, concurrency: 4}"
TEAM_LIMITS = "{tokens_per_day: 50000000, requests_per_hour: 1000}"
MODEL_LIMITS = "limits: {concurrency: 256}"


def limited(*engines: str, more: str = "") -> str:
    """Limits of ann, of her team and of the model."""
    text = configured(*engines, model=MODEL_LIMITS, more=more)
    text = text.replace("team: search,", f"team: search, limits: {KEY_LIMITS},")
    return text.replace("{search: {}}", f"{{search: {{limits: {TEAM_LIMITS}}}}}")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


async def ask(gateway: Serving, *arguments: str) -> Result:
    """`fairgate limits` of a gateway in this event loop."""
    admin = ("--admin", f"http://127.0.0.1:{gateway.admin_port}")
    return await asyncio.to_thread(run, "limits", *arguments, *admin)


def row(output: str, rule: str) -> list[str]:
    """The cells after the rule's name."""
    (line,) = [line for line in output.splitlines() if line.startswith(rule)]
    return line.removeprefix(rule).split()


@pytest.fixture
async def gateway() -> AsyncIterator[Serving]:
    async with Engine() as engine, serving(limited(engine.url)) as gateway:
        yield gateway


async def chat(port: int) -> int:
    return (await request(port, "POST", CHAT, HEADERS, BODY)).status


# What is shown


async def test_the_rule_that_is_spent_is_marked_and_says_when_it_is_back(gateway: Serving) -> None:
    assert [await chat(gateway.port) for _ in range(3)] == [200, 200, 429]
    result = await ask(gateway, "--key", "ann")
    assert result.exit_code == 0, result.output
    heads, *lines = result.output.splitlines()
    assert heads.split() == ["rule", "limit", "used", "left", "back", "in"]
    assert len(lines) == 5
    spent = row(result.output, "key ann: requests per minute")
    assert spent[:5] == ["60,", "burst", "2", "2", "0"]
    assert spent[5:] in (["2", "s", "spent"], ["1", "s", "spent"])
    assert row(result.output, "key ann: concurrency") == ["4", "0", "4", "-"]
    assert row(result.output, "team search: requests per hour")[:3] == ["1,000", "2", "998"]
    assert row(result.output, "team search: tokens per day")[0] == "50,000,000"
    assert row(result.output, "model tiny: concurrency") == ["256", "0", "256", "-"]
    assert "Redis" not in result.output


async def test_full_slots_are_marked_while_their_requests_run(gateway: Serving) -> None:
    counter = gateway.worker.composition.counter
    (slots,) = [
        rule for rule in gateway.worker.composition.rulebook.owned(key="ann") if rule.window is None
    ]
    await counter.decide(Claim("r1", ((slots, 4),)))
    result = await ask(gateway, "--key", "ann")
    assert row(result.output, "key ann: concurrency") == ["4", "4", "0", "-", "full"]


async def test_scripts_get_what_the_gateway_told(gateway: Serving) -> None:
    result = await ask(gateway, "--json", "--team", "search")
    told = json.loads(result.stdout)
    assert (told["degraded"], told["mode"]) == (False, None)
    assert [(rule["scope"], rule["name"]) for rule in told["rules"]] == [
        ("team", "requests_per_hour"),
        ("team", "tokens_per_day"),
        ("model", "concurrency"),
    ]


async def test_without_a_name_every_rule_is_shown(gateway: Serving) -> None:
    rules = json.loads((await ask(gateway, "--json")).stdout)["rules"]
    assert {rule["scope"] for rule in rules} == {"key", "team", "model"}
    assert len(rules) == 5


async def test_where_nothing_is_limited_that_is_said() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        assert (await ask(gateway)).output == "no limit is configured here\n"


async def test_while_redis_is_away_the_first_line_says_so() -> None:
    more = f"redis: redis://127.0.0.1:{free_port()}\nsecret: sixteen-letters-\n"
    async with Engine() as engine, serving(limited(engine.url, more=more)) as gateway:
        assert [await chat(gateway.port) for _ in range(3)] == [200, 200, 429]
        result = await ask(gateway, "--key", "ann")
        assert result.output.startswith("Redis is away: this is what one worker counts by itself.")
        assert row(result.output, "key ann: requests per minute")[-1] == "spent"
        result = await ask(gateway, "reset", "--all")
        assert result.exit_code == 3
        assert result.output.endswith("see to it, then ask again\n")
        assert "the limits are out of reach: Redis is away (ConnectionError: " in result.output
        courier = gateway.worker.composition.courier
        assert courier is not None
        courier.dropped = 5
        metrics = (await request(gateway.admin_port, "GET", "/metrics")).body.decode()
    assert "fairgate_limits_degraded 1.0" in metrics
    assert "fairgate_limits_settlements_dropped_total 5.0" in metrics
    assert "fairgate_limits_decided_here_total 3.0" in metrics


@pytest.mark.parametrize("mode", ["open", "closed"])
async def test_where_redis_is_away_and_nothing_is_counted_the_mode_is_told(mode: str) -> None:
    redis = f"redis: redis://127.0.0.1:{free_port()}\nsecret: sixteen-letters-\n"
    more = f"{redis}when_redis_is_down: {mode}\n"
    async with Engine() as engine, serving(limited(engine.url, more=more)) as gateway:
        assert await chat(gateway.port) == (200 if mode == "open" else 503)
        result = await ask(gateway, "--key", "ann")
    assert result.exit_code == 3
    assert f"and when_redis_is_down is {mode}; see to it, then ask again" in result.output


# Reset


async def test_a_reset_says_what_it_forgot(gateway: Serving) -> None:
    assert [await chat(gateway.port) for _ in range(3)] == [200, 200, 429]
    result = await ask(gateway, "reset", "--key", "ann")
    assert (result.exit_code, result.output) == (0, "reset key ann: requests per minute\n")
    assert await chat(gateway.port) == 200
    result = await ask(gateway, "reset", "--team", "search")
    assert result.output == (
        "reset team search: requests per hour\nreset team search: tokens per day\n"
    )
    result = await ask(gateway, "reset", "--all")
    assert len(result.output.splitlines()) == 3


async def test_where_there_is_nothing_to_reset_that_is_said() -> None:
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        result = await ask(gateway, "reset", "--key", "ann")
    assert (result.exit_code, result.output) == (0, "there is no such rule: nothing to reset\n")


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ("{tokens_per_day: 5}", "ann shares the rules of its team: fairgate limits reset --team "),
        ("{concurrency: 5}", ""),
    ],
)
async def test_a_key_without_rules_is_told_of_those_of_its_team(limits: str, told: str) -> None:
    async with Engine() as engine:
        text = configured(engine.url).replace("{search: {}}", f"{{search: {{limits: {limits}}}}}")
        async with serving(text) as gateway:
            result = await ask(gateway, "reset", "--key", "ann")
    first, _, rest = result.output.partition("\n")
    assert (result.exit_code, first) == (0, "there is no such rule: nothing to reset")
    assert rest == (f"{told}search\n" if told else "")


# What is in the way


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--key ann --team search", "one of --key and --team, not both"),
        ("reset", "wanted --key NAME, --team NAME or --all"),
        ("reset --key ann --team search", "one of --key and --team, not both"),
        ("reset --key ann --all", "--all stands alone"),
        ("--key ann reset --all", "options come after 'reset'"),
        ("--admin http://127.0.0.1:1 reset --all", "options come after 'reset'"),
        ("--admin https://127.0.0.1:9464", "--admin: wanted a URL such as"),
        ("--admin http://127.0.0.1:9464 --config x", "one of --admin and --config, not both"),
        ("--config not-there.yaml", "not-there.yaml"),
    ],
)
def test_wrong_usage_is_refused_with_status_2(arguments: str, message: str) -> None:
    result = run("limits", *arguments.split())
    assert result.exit_code == 2
    assert message in result.output


async def test_a_name_nobody_has_is_answered_with_those_there_are(gateway: Serving) -> None:
    for command in ([], ["reset"]):
        result = await ask(gateway, *command, "--key", "bob/&team=search")
        told = "fairgate: no key 'bob/&team=search'; known: ann\n"
        assert (result.exit_code, result.output) == (3, told)


async def test_a_gateway_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        at = f"http://127.0.0.1:{taken.getsockname()[1]}"
    result = await asyncio.to_thread(run, "limits", "--admin", at)
    assert result.exit_code == 3
    assert f"no answer from the admin port {at}" in result.output
    assert "is the gateway running" in result.output


async def test_the_data_port_is_known_not_to_be_the_admin_port(gateway: Serving) -> None:
    result = await asyncio.to_thread(run, "limits", "--admin", gateway.url)
    assert result.exit_code == 3
    assert "answered 404: that is no admin port of fairgate" in result.output


@pytest.mark.parametrize("command", [(), ("reset", "--all")])
@pytest.mark.parametrize("status", [200, 404, 503])
async def test_another_server_is_known_not_to_be_the_admin_port(
    status: int, command: tuple[str, ...]
) -> None:
    """vLLM, for one, answers its 404 in JSON."""
    body = b'{"detail":"Not Found"}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        at = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        result = await asyncio.to_thread(run, "limits", *command, "--admin", at)
    assert result.exit_code == 3
    assert f"answered {status}: that is no admin port of fairgate" in result.output


async def test_the_admin_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    locked = f"admin_key_sha256: {hashlib.sha256(ADMIN.encode()).hexdigest()}"
    async with Engine() as engine, serving(limited(engine.url, more=locked)) as gateway:
        for wrong in (None, "not-it"):
            if wrong is not None:
                monkeypatch.setenv("FAIRGATE_ADMIN_KEY", wrong)
            result = await ask(gateway)
            assert result.exit_code == 3
            assert "set FAIRGATE_ADMIN_KEY to the one of admin_key_sha256" in result.output
        monkeypatch.setenv("FAIRGATE_ADMIN_KEY", f"{ADMIN}\n")
        assert (await ask(gateway)).exit_code == 0


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ("null", "admin_listen is null: this gateway has no admin port to ask"),
        ("unix:/run/fairgate/admin.sock", "curl --unix-socket /run/fairgate/admin.sock http://x/l"),
    ],
)
def test_a_port_that_cannot_be_asked_is_said(tmp_path: Path, listen: str, message: str) -> None:
    file = tmp_path / "gateway.yaml"
    text = configured("http://gpu1:8000")
    file.write_text(text.replace("admin_listen: 127.0.0.1:0", f"admin_listen: {listen}"))
    result = run("limits", "--config", str(file))
    assert result.exit_code == 3
    assert message in result.output


# The installed command


async def told_by(*arguments: str) -> str:
    """What the installed command prints, having ended well."""
    async with Command("limits", *arguments) as command:
        status = await command.ended()
    assert status == 0, command.err.decode()
    return command.out.decode()


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_refused_caller_is_explained_reset_and_served(
    workers: int, tmp_path: Path, redis_server: RedisServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin = f"127.0.0.1:{taken.getsockname()[1]}"
    redis = f"redis: {redis_server.url}\nwhen_redis_is_down: closed\n"
    more = f"{redis}secret: sixteen-letters-\nworkers: {workers}\n"
    file = tmp_path / "gateway.yaml"
    async with Engine() as engine:
        text = limited(engine.url, more=more).replace("60, burst: 2", "1, burst: 2")
        file.write_text(text.replace("admin_listen: 127.0.0.1:0", f"admin_listen: {admin}"))
        async with Command("serve", "--config", str(file)) as serving:
            port = await serving.listening()
            answers = [await request(port, "POST", CHAT, HEADERS, BODY) for _ in range(3)]
            assert [answer.status for answer in answers] == [200, 200, 429]
            assert "key ann: 1 request per minute" in answers[2].json()["error"]["message"]
            shown = await told_by("--config", str(file), "--key", "ann")
            marked = [line for line in shown.splitlines() if line.endswith("spent")]
            assert [line.partition("   ")[0] for line in marked] == ["key ann: requests per minute"]
            told = await told_by("reset", "--admin", f"http://{admin}", "--key", "ann")
            assert told == "reset key ann: requests per minute\n"
            assert await chat(port) == 200
            metrics = (await request(int(admin[10:]), "GET", "/metrics")).body.decode()
    limited_by = 'fairgate_limited_total{rule="key.requests_per_minute",team="search"} 1.0'
    assert limited_by in metrics
    assert "fairgate_limits_degraded 0.0" in metrics
    assert b'"limited_by":"key.requests_per_minute"' in serving.out

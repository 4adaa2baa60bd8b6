"""The command: what each form prints, and how it ends."""

import hashlib
import json
import logging
import re
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from backends import install, launch
from gateway import cli, supervisor, worker
from gateway import up as starting
from gateway.config import ConfigError
from gateway.listeners import CannotStart
from gateway.reload import Source
from gateway.settings import Config
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import KEY, Command, configured

CHAT = "/v1/chat/completions"
BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
GOOD = configured("http://gpu1:8000", "http://gpu2:8000")
COMMANDS = [
    *("", "serve", "up", "check", "keys", "keys new", "limits", "limits reset", "schema"),
    *("engine", "engine install", "status", "drain", "undrain"),
]


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, arguments, input=text)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's state folder, for every command of these tests; diagnostics are left as found."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    root, ours = logging.getLogger(), logging.getLogger("fairgate")
    before = (root.handlers[:], root.level, ours.level)
    yield tmp_path / "state" / "fairgate"
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_says_what_it_does(command: str, option: str) -> None:
    result = run(*command.split(), option)
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {command}".rstrip())
    assert len(result.output.splitlines()) > 3


def test_the_commands_and_the_version_are_those_there_are() -> None:
    assert set(cli.main.commands) == {name.split()[0] for name in COMMANDS if name}
    assert version("fairgate") in run("--version").output


# check


def test_a_good_configuration_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(GOOD)
    for result in (run("check", "--config", str(file)), run("check", "--config", "-", text=GOOD)):
        assert result.exit_code == 0
        assert "good. 1 models on 2 replicas, 1 teams, 1 keys" in result.output


@pytest.mark.parametrize("parameters", ["?db=x", "?socket_timeout=hunter2", "?no_such=1"])
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_check_knows_what_redis_client_would_refuse_at_the_start(
    scheme: str, parameters: str
) -> None:
    redis = f"redis: '{scheme}://:hunter2@127.0.0.1{parameters}'\nsecret: {'s' * 16}\n"
    result = run("check", "--config", "-", text=f"{GOOD}{redis}")
    assert result.exit_code == 2
    assert result.stderr.startswith("fairgate: standard input: redis: the URL's parameters are not")
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (GOOD.replace("team: search", "team: serach"), "keys[0].team: no team 'serach'"),
        (GOOD + "listem: 1\n", "listem"),
        (GOOD + "workers: many\n", "workers"),
        ("a: [", "standard input"),
    ],
)
@pytest.mark.parametrize("command", ["check", "serve"])
def test_a_fault_is_told_with_its_key_and_status_2(command: str, text: str, place: str) -> None:
    result = run(command, "--config", "-", text=text)
    assert result.exit_code == 2
    assert place in result.stderr
    assert result.stderr.startswith("fairgate: ")
    assert "Traceback" not in result.output


def test_a_file_that_is_not_there_is_told_with_status_2(tmp_path: Path) -> None:
    result = run("check", "--config", str(tmp_path / "none.yaml"))
    assert (result.exit_code, "none.yaml" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    "wrong", [["check"], ["serve", "--workers", "0"], ["nonsense"], ["up", "--x"]]
)
def test_wrong_usage_is_status_2(wrong: list[str]) -> None:
    assert run(*wrong).exit_code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["Qwen/Qwen3-0.6B", "--embedding-model", "none"], "with --model Qwen/Qwen3-0.6B;"),
        (["Qwen/Qwen3-0.6B", "--", "--seed", "1"], "with --model Qwen/Qwen3-0.6B;"),
        (["--model", "/nope"], "'--model': no such folder: /nope"),
        (["--model", "none", "--embedding-model", "./nope"], "no such folder: ./nope"),
        (["--model", "none", "--embedding-model", "none"], "leave nothing to serve"),
    ],
)
def test_wrong_usage_of_up_is_told_before_anything_is_installed_or_loaded(
    monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    def fail(environ: Any) -> None:
        pytest.fail("looked for an engine")

    monkeypatch.setattr(install, "found", fail)
    result = run("up", *options)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


# keys, schema


@pytest.mark.parametrize(
    "name", ["ann", "null", "true", "007", "a: b", 'q"\\', "$HOME", "\u00fc x"]
)
def test_what_a_new_key_prints_can_be_pasted_and_opens_the_gateway(name: str) -> None:
    result = run("keys", "new", "--name", name, "--team", name)
    assert result.exit_code == 0
    text, lines = result.stdout.splitlines()
    assert re.fullmatch(r"fg-[A-Za-z0-9_-]{43}", text)
    assert text not in result.stderr
    assert text not in lines
    assert hashlib.sha256(text.encode()).hexdigest() in lines
    teams = f"models: {{m: {{replicas: [http://h:1]}}}}\nteams: {{{json.dumps(name)}: {{}}}}\n"
    checked = run("check", "--config", "-", text=f"{teams}keys:\n{lines}\n")
    assert (checked.exit_code, checked.stderr) == (0, "")


def test_no_two_keys_are_alike() -> None:
    made = {cli.new_key("ann", "search")[0] for _ in range(50)}
    assert len(made) == 50


@pytest.mark.parametrize("name", ["", " a", "a\nb", "x" * 129])
def test_a_name_that_no_configuration_takes_is_refused_at_once(name: str) -> None:
    for options in (["--name", name, "--team", "search"], ["--name", "ann", "--team", name]):
        result = run("keys", "new", *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "wanted a name" in result.stderr


def test_the_schema_is_json_and_knows_every_setting() -> None:
    result = run("schema")
    assert result.exit_code == 0
    schema = orjson.loads(result.stdout)
    assert set(schema["properties"]) == set(Config.__struct_fields__) - Config.internal


# The secret


def test_the_secret_is_made_once_kept_for_its_user_alone_and_used_again(state: Path) -> None:
    made = cli.kept_secret()
    assert len(made) >= 43
    assert stat.S_IMODE((state / "secret").stat().st_mode) == 0o600
    assert cli.kept_secret() == made
    assert [file.name for file in state.iterdir()] == ["secret"]


def test_gateways_that_start_together_keep_one_secret(state: Path) -> None:
    made: list[str] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        made.append(cli.kept_secret())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(made) == 8


@pytest.mark.parametrize("left", ["", "guessable"])
def test_an_empty_or_short_file_is_no_secret_and_that_is_told(
    state: Path, caplog: pytest.LogCaptureFixture, left: str
) -> None:
    state.mkdir(parents=True)
    (state / "secret").write_text(left)
    assert len(cli.kept_secret()) >= 43
    assert "too short to be a secret; remove it" in caplog.text


def test_a_secret_that_cannot_be_kept_is_made_for_this_run_and_told(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.parent.mkdir()
    state.write_text("a file where the folder should be")
    first, second = cli.kept_secret(), cli.kept_secret()
    assert len(first) >= 43
    assert first != second
    assert "cannot be kept" in caplog.text
    assert first not in caplog.text


# serve: what it makes of its options


#: Where the configuration that was served can be read again.
sources: list[Source] = []


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str]]:
    """What the worker was given, instead of serving it."""
    given: list[tuple[Config, str]] = []
    sources.clear()

    def taken(config: Config, secret: str, started: Any, source: Source) -> None:
        given.append((config, secret))
        sources.append(source)
        started(["127.0.0.1:8080", "unix:/run/s.sock"])

    monkeypatch.setattr(worker, "run", taken)
    return given


def test_without_anything_it_serves_the_usual_server_on_loopback_with_a_key_of_its_own(
    served: list[tuple[Config, str]], state: Path
) -> None:
    result = run("serve")
    assert result.exit_code == 0
    ((config, secret),) = served
    assert [backend.url for backend in config.backends] == ["http://127.0.0.1:8000"]
    assert [str(address) for address in config.listen] == ["127.0.0.1:8080"]
    (key,) = re.findall(r"key for this run is (\S+)", result.stderr)
    assert hashlib.sha256(key.encode()).hexdigest() == config.keys[0].sha256
    assert "fairgate listens on http://127.0.0.1:8080" in result.stderr
    assert "fairgate listens on unix:/run/s.sock" in result.stderr
    assert secret == (state / "secret").read_text()
    assert result.stdout == ""


def test_options_stand_over_the_file(served: list[tuple[Config, str]]) -> None:
    options = ["--listen", "127.0.0.1:9", "--listen", "[::1]:9", "--backend", "http://gpu9:1"]
    options += ["--admin-listen", "127.0.0.1:10"]
    result = run("serve", "--config", "-", *options, text=GOOD + "secret: a-secret-of-the-file\n")
    assert result.exit_code == 0, result.stderr
    ((config, secret),) = served
    assert [str(address) for address in config.listen] == ["127.0.0.1:9", "[::1]:9"]
    assert str(config.admin_listen) == "127.0.0.1:10"
    assert [backend.url for backend in config.backends] == ["http://gpu9:1"]
    assert set(config.models) == {"tiny"}
    assert secret == "a-secret-of-the-file"
    assert "key for this run" not in result.stderr


def test_options_stand_over_the_file_when_it_is_read_again(
    served: list[tuple[Config, str]], tmp_path: Path
) -> None:
    file = tmp_path / "fairgate.yaml"
    file.write_text(GOOD)
    options = ["--listen", "127.0.0.1:9", "--backend", "http://gpu9:1"]
    assert run("serve", "--config", str(file), *options).exit_code == 0
    ((config, _),), (source,) = served, sources
    file.write_text(GOOD.replace("gpu2", "gpu3"))
    again = source.read_again(config)
    assert (again.listen, again.backends) == (config.listen, config.backends)
    assert [replica.url for replica in again.models["tiny"].replicas][1] == "http://gpu3:8000"


def test_the_key_of_this_run_is_the_same_when_the_file_is_read_again(
    served: list[tuple[Config, str]], tmp_path: Path
) -> None:
    file = tmp_path / "fairgate.yaml"
    file.write_text("models: {a: {replicas: [http://gpu1:1]}}\n")
    assert "key for this run" in run("serve", "--config", str(file)).stderr
    ((config, _),), (source,) = served, sources
    file.write_text("models: {b: {replicas: [http://gpu1:1]}}\n")
    again = source.read_again(config)
    assert (list(again.models), again.keys) == (["b"], config.keys)


def test_a_file_without_models_means_the_usual_server(served: list[tuple[Config, str]]) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    text = f"teams: {{s: {{}}}}\nkeys: [{{name: a, team: s, sha256: {digest}}}]\n"
    assert run("serve", "--config", "-", text=text).exit_code == 0
    assert [backend.url for backend in served[0][0].backends] == ["http://127.0.0.1:8000"]


@pytest.mark.parametrize("workers", [["--workers", "3"], []])
def test_several_workers_have_a_supervisor(
    served: list[tuple[Config, str]], monkeypatch: pytest.MonkeyPatch, workers: list[str]
) -> None:
    supervised: list[int] = []
    monkeypatch.setattr(supervisor, "run", lambda config, *_: supervised.append(config.workers))
    text = GOOD + "secret: sixteen-letters-\n" + ("" if workers else "workers: 3\n")
    assert run("serve", "--config", "-", *workers, text=text).exit_code == 0
    assert (supervised, served) == ([3], [])


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "[::]:8080", "gpu1:8080"])
def test_off_loopback_it_refuses_to_start_without_keys(
    served: list[tuple[Config, str]], address: str
) -> None:
    result = run("serve", "--listen", address)
    assert (result.exit_code, served) == (2, [])
    assert "keys" in result.stderr
    assert "key for this run" not in result.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ["--listen", "nonsense"],
        ["--admin-listen", "nonsense"],
        ["--backend", "ftp://h"],
        ["--workers", "2"],
    ],
)
def test_a_wrong_option_is_told_with_status_2(
    served: list[tuple[Config, str]], wrong: list[str]
) -> None:
    result = run("serve", *wrong)
    assert (result.exit_code, served) == (2, [])
    assert wrong[0].removeprefix("--").replace("-", "_") in result.stderr


# serve: the real command


async def test_the_zero_configuration_form_prints_one_key_and_serves(tmp_path: Path) -> None:
    async with Engine() as engine:
        options = ("serve", "--backend", engine.url, "--listen", "127.0.0.1:0")
        file = tmp_path / "c.yaml"
        file.write_text("admin_listen: 127.0.0.1:0\n")
        async with Command(*options, "--config", str(file)) as command:
            port = await command.listening()
            headers = [("authorization", f"Bearer {await command.key()}")]
            headers.append(("content-type", "application/json"))
            assert (await request(port, "POST", CHAT, headers, BODY)).status == 200
            assert (await request(port, "POST", CHAT, headers[1:], BODY)).status == 401
            command.signal(signal.SIGTERM)
            assert await command.ended() == 0
        assert command.err.count(b"key for this run is") == 1
        assert len([orjson.loads(line) for line in command.out.splitlines()]) == 2


@pytest.mark.parametrize("option", ["--listen", "--admin-listen"])
async def test_a_taken_port_is_status_3_with_the_reason(option: str) -> None:
    other = {"--listen": "--admin-listen", "--admin-listen": "--listen"}[option]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = (option, f"127.0.0.1:{port}", other, "127.0.0.1:0")
        async with Command("serve", *options) as command:
            assert await command.ended() == 3
    assert f"give another one with {option}," in command.err.decode()
    assert f"fairgate: cannot listen on 127.0.0.1:{port}: Address already in use" in (
        command.err.decode()
    )
    assert b"Traceback" not in command.err


# up, engine install


def prepared(monkeypatch: pytest.MonkeyPatch, found: Path | None = Path("/engine/python")) -> None:
    monkeypatch.setattr(install, "found", lambda environ: found)
    monkeypatch.setattr(install, "home", lambda environ: Path("/engine"))


def test_up_takes_a_folder_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prepared(monkeypatch)
    asked: list[str] = []
    monkeypatch.setattr(launch, "choose", lambda *given, **named: asked.extend(given[:2]))
    monkeypatch.setattr(starting, "run", lambda *given: None)
    assert run("up", "--model", str(tmp_path), "--embedding-model", "org/e").exit_code == 0
    assert asked == [str(tmp_path), "org/e"]


def test_up_hands_on_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    prepared(monkeypatch)
    asked: list[Any] = []

    def choose(*given: Any, **named: Any) -> list[launch.Engine]:
        asked.append((*given[:3], named["extra"]))
        return []

    def serve(engines: Any, listen: Any, key: Any, secret: str, log: Path, console: Any) -> None:
        asked.append((engines, listen, key[1].sha256, secret, log))
        assert hashlib.sha256(key[0].encode()).hexdigest() == key[1].sha256

    monkeypatch.setattr(launch, "choose", choose)
    monkeypatch.setattr(starting, "run", serve)
    options = ["--model", "org/m", "--embedding-model", "none", "--listen", "127.0.0.1:1"]
    assert run("up", *options, "--", "--max-model-len", "10", "--", "x").exit_code == 0
    chosen, started = asked
    assert chosen == ("org/m", "none", Path("/engine/python"), ("--max-model-len", "10", "--", "x"))
    assert started[:2] == ([], ("127.0.0.1:1",))
    assert started[3:] == (cli.kept_secret(), state / "logs" / "requests.jsonl")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (launch.EngineDied("out of memory"), 3, "fairgate: out of memory"),
        (install.InstallFailed("no network"), 3, "fairgate: no network"),
        (CannotStart("cannot listen on x"), 3, "fairgate: cannot listen on x"),
        (ConfigError("listen: wrong"), 2, "fairgate: listen: wrong"),
        (KeyboardInterrupt(), 0, "ended before it was ready"),
    ],
)
def test_why_up_did_not_start_is_told_with_its_status(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: int, said: str
) -> None:
    prepared(monkeypatch)

    def fail(*given: Any, **named: Any) -> None:
        raise raised

    monkeypatch.setattr(launch, "choose", fail)
    result = run("up")
    assert (result.exit_code, said in result.stderr) == (status, True)


def test_engine_install_does_nothing_where_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(install, "prepare", lambda home, say: made.append(home))
    prepared(monkeypatch)
    assert (run("engine", "install").exit_code, made) == (0, [])
    prepared(monkeypatch, None)
    assert (run("engine", "install").exit_code, made) == (0, [Path("/engine")])


def test_an_installation_that_fails_is_status_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(home: Path, say: Any) -> None:
        raise install.InstallFailed("no room in /engine")

    monkeypatch.setattr(install, "prepare", fail)
    prepared(monkeypatch, None)
    result = run("engine", "install")
    assert (result.exit_code, "fairgate: no room in /engine" in result.stderr) == (3, True)

"""A new configuration while the gateway runs: what can change, who notices, what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import config as configuration
from gateway import reload
from gateway.config import ConfigError
from gateway.document import path_text
from gateway.reload import AT_ANY_TIME, AT_THE_START, Reloads, Source, changes, restarts
from gateway.settings import Bounds, Config, Key, Tls
from tests.fakes.gateway import configured, until

GOOD = configured("http://gpu1:8000", more="limits: {requests_per_minute: 5}\n")
OTHER = GOOD + "request: {n: 2}\n"


def loaded(text: str) -> Config:
    return configuration.load("test.yaml", text, {})


def started(folder: Path, text: str, key: Key | None = None) -> tuple[Path, Source, Config]:
    """A file with that text, the source it is, and the configuration read at the start."""
    file = folder / "f.yaml"
    file.write_text(text)
    source = Source(str(file), {}, key=key)
    return file, source, source.read()


# What can change


def test_of_every_setting_it_is_decided_whether_it_can_change_while_running() -> None:
    decided = [*AT_THE_START, *AT_ANY_TIME]
    every: list[tuple[str | int, ...]] = []
    for field in msgspec.structs.fields(Config):
        noun = {"tls": Tls(), "bounds": Bounds()}.get(field.name)
        inner = msgspec.structs.fields(noun) if noun else ()
        every += [(field.name, each.name) for each in inner] or [(field.name,)]
    assert sorted(decided) == sorted(every)


#: The key, and a line that changes it.
FIXED = [
    ("listen", "listen: 127.0.0.1:9"),
    ("admin_listen", "admin_listen: 127.0.0.1:9"),
    ("admin_listen", "admin_listen: null"),
    ("admin_key_sha256", f"admin_key_sha256: {'a' * 64}"),
    ("workers", "workers: 2"),
    ("secret", "secret: another secret of the tests"),
    ("redis", "redis: redis://127.0.0.1:9"),
    ("redis_prefix", "redis_prefix: '{other}'"),
    ("when_redis_is_down", "when_redis_is_down: open"),
    ("bounds.bodies", "bounds: {bodies: 100MiB}"),
    ("bounds.log_lines", "bounds: {log_lines: 9}"),
]


@pytest.mark.parametrize(("key", "line"), FIXED, ids=[line for _, line in FIXED])
def test_what_cannot_change_while_running_is_refused_with_its_place(
    tmp_path: Path, key: str, line: str
) -> None:
    text = GOOD.replace("admin_listen: 127.0.0.1:0\n", "").replace("limits: {req", "#").strip()
    text = f"secret: sixteen-letters-\n{text}\n".replace(
        "listen: 127.0.0.1:0", "listen: 127.0.0.1:8"
    )
    file, source, running = started(tmp_path, text)
    name = line.partition(":")[0]
    kept = [each for each in text.splitlines() if not each.startswith(f"{name}:")]
    file.write_text("\n".join([*kept, line]))
    with pytest.raises(ConfigError) as caught:
        source.read_again(running)
    told = f"{file}:{len(kept) + 1}: {key}: changing it needs a restart"
    assert str(caught.value) == told


def test_a_setting_that_is_gone_is_refused_too() -> None:
    running, config = loaded("redis_prefix: '{a}'\n"), loaded("")
    assert [path_text(path) for path, _ in restarts(running, config)] == ["redis_prefix"]


def test_certificates_under_other_names_need_a_restart(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text("")
    given = [f"tls: {{cert_file: {tmp_path}/{cert}, key_file: {tmp_path}/c}}" for cert in "ab"]
    found = list(restarts(loaded(given[0]), loaded(given[1])))
    assert [path for path, _ in found] == [("tls", "cert_file")]


# The file


def test_an_empty_file_is_no_configuration_while_one_runs(tmp_path: Path) -> None:
    file, source, running = started(tmp_path, "")
    for text in ("", "# nothing\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"f\.yaml:1: is empty"):
            source.read_again(running)


def test_the_last_key_cannot_go_while_running(tmp_path: Path) -> None:
    key = Key(name="this-run", team="x", sha256="f" * 64)
    file, source, running = started(tmp_path, GOOD, key=key)
    file.write_text("\n".join(line for line in GOOD.splitlines() if not line.startswith("keys")))
    with pytest.raises(ConfigError, match=r"f\.yaml:1: keys: removing the last one needs a res"):
        source.read_again(running)


def test_what_files_hold_is_looked_at_before_anything_changes(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("no certificate")
    file, source, running = started(tmp_path, GOOD)
    file.write_text(
        GOOD.replace("http://gpu1:8000", f"{{url: 'https://gpu1', ca_file: {authority}}}")
    )
    with pytest.raises(ConfigError, match=r"f\.yaml:6: models\.tiny\.replicas\[0\]\.ca_file: '.*"):
        source.read_again(running)
    authority.write_text("")
    tls = f"tls: {{cert_file: {authority}, key_file: {authority}}}\n"
    file.write_text(GOOD + tls)
    running = source.read()
    with pytest.raises(ConfigError, match=r"f\.yaml:8: tls: the certificate or its key: "):
        source.read_again(running)


def test_standard_input_a_pipe_and_no_file_do_not_last(tmp_path: Path) -> None:
    assert not Source("-", {}).lasting
    made = Source(None, {}, lambda config: configuration.override(config, backends=["http://a"]))
    assert made.read().backends[0].url == "http://a"
    assert not made.lasting
    reading, writing = os.pipe()
    os.write(writing, GOOD.encode())
    os.close(writing)
    pipe = Source(f"/dev/fd/{reading}", {})
    assert pipe.read() == loaded(GOOD)
    assert not pipe.lasting
    os.close(reading)


# What is told


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda text: text, ""),
        (lambda text: text + "request: {n: 2}\n", "models: 1 changed; request changed"),
        (lambda text: text + "cors: {origins: ['*']}\n", "cors changed"),
        (lambda text: text + "bounds: {event: 2MiB}\n", "bounds.event changed"),
        (lambda text: text.replace("_minute: 5", "_minute: 6"), "limits: 1 changed"),
        (lambda text: text.replace("_minute: 5", "_hour: 5"), "limits: 1 added, 1 removed"),
        (lambda text: text.replace("ann", "eve"), "keys: 1 added, 1 removed"),
        (lambda text: text.replace("{search: {}}", "{search: {}, ads: {}}"), "teams: 1 added"),
        (
            lambda text: text.replace("gpu1", "gpu2").replace("{search", "{b: {}, search"),
            "models: 1 changed; teams: 1 added",
        ),
    ],
)
def test_what_is_different_is_counted(changed: Any, told: str) -> None:
    assert changes(loaded(GOOD), loaded(changed(GOOD))) == told


# Taking over


class Taking:
    """A source in a file, and what was taken over of it.

    Mutable state: `taken`; `why_not`, why now is no time for it; `broken`, raised by taking over.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.source, running = started(folder, GOOD)
        self.taken: list[Config] = []
        self.why_not = ""
        self.broken: Exception | None = None
        self.reloads = Reloads(self.source, running, self._take, lambda: self.why_not)

    async def _take(self, config: Config) -> None:
        if self.broken is not None:
            raise self.broken
        self.taken.append(config)

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reloads.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def counted(self) -> tuple[float, ...]:
        """How many were taken over and refused, and whether the last one was good."""
        counts = self.reloads.counts()
        (_, [ok]), (_, [refused]) = counts["config_reloads"]
        ((_, [last]),) = counts["config_last_reload_successful"]
        return ok, refused, last


@pytest.fixture
def taking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Taking]:
    monkeypatch.setattr(reload, "_LOOK", 0.01)
    with caplog.at_level(logging.INFO, "fairgate"):
        yield Taking(tmp_path)


async def test_a_changed_file_is_taken_over_once_and_told_of(
    taking: Taking, caplog: pytest.LogCaptureFixture
) -> None:
    async with taking.going_on():
        taking.file.write_text(GOOD.replace("_minute: 5", "_minute: 50"))
        await until(lambda: bool(taking.taken))
        await asyncio.sleep(0.1)  # several looks
    assert [config.limits.rules[0].limit for config in taking.taken] == [50]
    assert taking.reloads.config is taking.taken[0]
    assert taking.counted() == (1, 0, 1)
    assert "configuration reloaded: limits: 1 changed" in caplog.text


async def test_a_change_since_the_start_is_noticed(taking: Taking) -> None:
    taking.file.write_text(OTHER)
    async with taking.going_on():
        await until(lambda: bool(taking.taken))


async def test_a_file_behind_links_that_are_swapped_is_noticed(tmp_path: Path) -> None:
    """As Kubernetes does it: the file is a link into a folder, which is a link to the newest."""
    for number, n in (("1", 1), ("2", 2)):
        (tmp_path / number).mkdir()
        (tmp_path / number / "f.yaml").write_text(f"request: {{n: {n}}}\n")
        os.utime(tmp_path / number / "f.yaml", (0, 0))  # only the file itself is another
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "f.yaml").symlink_to("data/f.yaml")
    source = Source(str(tmp_path / "f.yaml"), {})
    running = source.read()
    assert source.looked() == source.stamps
    (tmp_path / "new").symlink_to("2")
    os.replace(tmp_path / "new", tmp_path / "data")
    assert source.looked() != source.stamps
    assert source.read_again(running).request.n == 2
    assert source.looked() == source.stamps


async def test_a_file_that_is_still_being_written_is_left_alone(
    taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, stamps = 0, [*([(n, 0, 0, 0)] for n in range(20)), [(20, 0, 0, 0)], [(20, 0, 0, 0)]]

    def looked() -> Any:
        nonlocal looks
        looks += 1
        return tuple(stamps[min(looks, len(stamps)) - 1])

    monkeypatch.setattr(taking.source, "looked", looked)
    taking.file.write_text(OTHER)
    async with taking.going_on():
        await until(lambda: bool(taking.taken))
    assert looks >= 22


async def test_a_file_that_is_away_for_a_moment_is_waited_for(
    taking: Taking, caplog: pytest.LogCaptureFixture
) -> None:
    taking.file.unlink()
    async with taking.going_on():
        await asyncio.sleep(0.1)
        assert taking.counted() == (0, 0, 1)
        taking.file.write_text(OTHER)
        await until(lambda: bool(taking.taken))
    assert "No such file" not in caplog.text


async def test_a_refused_one_leaves_the_old_one_and_is_told_once_with_its_place(
    taking: Taking, caplog: pytest.LogCaptureFixture
) -> None:
    before = taking.reloads.config
    async with taking.going_on():
        taking.file.write_text(GOOD + "modles: {}\n")
        await until(lambda: taking.counted()[1] == 1)
        await asyncio.sleep(0.1)  # several looks
        assert taking.counted() == (0, 1, 0)
        assert taking.reloads.config is before
        told = [r.getMessage() for r in caplog.records]
        (line,) = told
        place = f"{taking.file}:8: modles: unknown key; did you mean models?"
        assert line.startswith(f"configuration not reloaded, the old one stays: {place}")
        taking.file.write_text(GOOD)
        await until(lambda: taking.counted() == (1, 1, 1))
    assert taking.taken == [before]
    assert "configuration reloaded: nothing changed" in caplog.text


async def test_asked_for_it_is_read_at_once_changed_or_not(
    taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "_LOOK", 3600.0)
    async with taking.going_on():
        for times in (1, 2):
            taking.reloads.ask()
            await until(lambda times=times: len(taking.taken) == times)  # type: ignore[misc]


async def test_asked_for_at_the_wrong_time_it_is_not_read(
    taking: Taking, caplog: pytest.LogCaptureFixture
) -> None:
    taking.why_not = "the gateway is stopping"
    taking.file.write_text(OTHER)
    async with taking.going_on():
        taking.reloads.ask()
        await asyncio.sleep(0.1)
    assert not taking.taken
    assert "configuration not reloaded: the gateway is stopping" in caplog.text


async def test_without_a_file_who_asks_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async def take(config: Config) -> None:
        raise AssertionError

    for source in (None, Source("-", {}), Source(None, {})):
        caplog.clear()
        reloads = Reloads(source, Config(), take, lambda: "")
        reloads.ask()
        await asyncio.wait_for(reloads.run(), 1)
        assert "configuration not reloaded: there is no file to read again" in caplog.text


async def test_a_fault_of_our_own_is_no_end_of_looking(
    taking: Taking, caplog: pytest.LogCaptureFixture
) -> None:
    taking.broken = ValueError("sk-secret")
    async with taking.going_on():
        taking.reloads.ask()
        await until(lambda: taking.counted() == (0, 1, 0))
        taking.broken = None
        taking.reloads.ask()
        await until(lambda: taking.counted() == (1, 1, 1))
    assert "ValueError at test_reload.py" in caplog.text
    assert "sk-secret" not in caplog.text

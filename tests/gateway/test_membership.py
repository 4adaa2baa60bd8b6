"""What an entry stands for: addresses of a name, lines of a file; and that no bad one counts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from gateway import config as configuration
from gateway.document import ConfigError
from gateway.membership import Membership, at_addresses, in_file, listed
from gateway.settings import Config, ReplicaSettings
from tests.fakes.gateway import until

HEADLESS = ReplicaSettings(dns="http://vllm.ns.svc:8000", weight=2, concurrency=8)
LISTED = ReplicaSettings(file="replicas", weight=3, api_key="sk-1", api_key_env="KEY")


def urls(servers: Sequence[ReplicaSettings]) -> list[str]:
    return [server.url for server in servers]


# A name with several addresses


def test_each_address_of_a_name_is_a_server_that_is_called_by_the_name() -> None:
    six, four = at_addresses(HEADLESS, ["fd00::7", "10.0.0.7"])[::-1]
    assert (four.url, six.url) == ("http://10.0.0.7:8000", "http://[fd00::7]:8000")
    for server, address in ((four, "10.0.0.7"), (six, "fd00::7")):
        assert (server.host, server.address, server.port) == ("vllm.ns.svc", address, 8000)
        assert (server.weight, server.concurrency, server.base) == (2, 8, "/v1")
        assert (server.dns, server.file) == (None, None)


def test_the_path_and_the_scheme_of_the_name_hold_for_each_address() -> None:
    (server,) = at_addresses(ReplicaSettings(dns="https://vllm/api/v1"), ["10.0.0.7"])
    assert server.url == "https://10.0.0.7/api/v1"
    assert (server.port, server.base, server.host) == (443, "/api/v1", "vllm")


def test_a_name_without_an_address_stands_for_itself() -> None:
    (server,) = at_addresses(HEADLESS, [])
    assert (server.url, server.host, server.address) == (HEADLESS.dns, "vllm.ns.svc", "")


def test_the_order_of_an_answer_makes_no_difference() -> None:
    there = ["10.0.0.7", "10.0.0.6"]
    assert at_addresses(HEADLESS, there) == at_addresses(HEADLESS, there[::-1])


# A list of servers


@pytest.mark.parametrize(
    "text",
    [
        "https://gpu1\nhttps://gpu2:8443/v1/\n",
        "# ours\n\n  https://gpu1 # the old one\n\r\nhttps://gpu2:8443",
        "- https://gpu1\n- https://gpu2:8443\n",
        "# ours\n- url: https://gpu1\n- {url: https://gpu2:8443}\n",
        '["https://gpu1", {"url": "https://gpu2:8443"}]',
    ],
)
def test_a_list_is_lines_or_yaml_or_json(text: str) -> None:
    servers = listed("replicas", text, LISTED)
    assert urls(servers) == ["https://gpu1", "https://gpu2:8443"]
    for server in servers:
        assert (server.weight, server.api_key, server.file) == (3, "sk-1", None)


def test_a_server_of_a_list_may_have_its_own_weight_and_concurrency() -> None:
    text = "- {url: https://gpu1, weight: 5}\n- {url: https://gpu2, concurrency: 4}\n"
    one, two = listed("replicas", text, LISTED)
    assert [(s.weight, s.concurrency) for s in (one, two)] == [(5, None), (3, 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "replicas: names no server"),
        ("# none\n", "replicas: names no server"),
        ("[]", "replicas: names no server"),
        ("https://gpu1\ngpu2:8000\n", "replicas:2: wanted a URL such as"),
        ("https://gpu1\n\nhttps://gpu1/v1", "replicas:3: https://gpu1 is there twice"),
        ("https://u:sk-2@gpu1", "replicas:1: no credentials in a URL"),
        ("http://gpu1", "replicas:1: would cross the network unencrypted"),
        ("- https://gpu1\n- {url: ftp://x}", "replicas:2: [1]: wanted a URL such as"),
        ("- https://gpu1\n- {url: https://gpu1}", "replicas:2: [1]: https://gpu1 is there twice"),
        ("- {weight: 2}", "replicas:1: [0]: wanted one of url"),
        ("- {url: https://a, weight: 0}", "replicas:1: [0].weight: wanted a whole number"),
        ("- url: https://a\n  api_key_env: X", "replicas:2: [0].api_key_env: not for one server"),
        ("- {dns: https://a}", "replicas:1: [0].dns: not for one server"),
        ("- [a]", "replicas:1: [0]: wanted a mapping; given a list"),
        ("- &a https://gpu1", "replicas:1: anchors and aliases are not read"),
        ("[", "replicas:1: "),
    ],
)
def test_a_bad_list_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        listed("replicas", text, LISTED)
    assert str(caught.value).startswith(message)
    assert "sk-" not in str(caught.value)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "huge").write_text("#" * (1 << 20) + "\nhttps://gpu1")
    told = {
        "none": "No such file or directory",
        ".": "Is a directory",
        "binary": "not a text in UTF-8",
        "huge": "longer than 1048576 characters",
    }
    for name, why in told.items():
        with pytest.raises(ConfigError, match=why):
            in_file(ReplicaSettings(file=str(tmp_path / name)))
    with pytest.raises(ConfigError, match="not an ordinary file"):
        in_file(ReplicaSettings(file="/dev/null"))


# Over time


class Turns:
    """A sleep that ends when the test says so, once for each `turn`."""

    def __init__(self) -> None:
        self.naps = 0
        self._go = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.naps += 1
        await self._go.acquire()

    async def turn(self, times: int = 1) -> None:
        """So many looks, from one sleep to the next."""
        for _ in range(times):
            await until(lambda: self.naps > 0)
            naps = self.naps
            self._go.release()
            await until(lambda naps=naps: self.naps > naps)  # type: ignore[misc]


class Case:
    """A membership, how often it told of others, and what the names lead to."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {name.replace("_", "."): found for name, found in names.items()}
        self.told = 0
        self.sleep = Turns()
        self.membership = Membership(
            self._changed, lookup=self._lookup, sleep=self.sleep, every=0.01
        )
        self.config = Config()

    def _changed(self) -> None:
        self.told += 1

    async def _lookup(self, host: str) -> Sequence[str]:
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    def want(self, text: str) -> None:
        self.config = configuration.load("fairgate.yaml", text, {})
        self.membership.want(self.config)

    def members(self, model: str = "llama") -> list[str]:
        return urls(self.membership.members(self.config.models[model].replicas))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.membership.run())
        try:
            await self.membership.asked()
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_members_of_a_name_join_and_leave_and_outlive_a_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    case = Case(vllm_svc=["10.0.0.1", "10.0.0.2"])
    case.want("models: {llama: {replicas: [{dns: 'http://vllm.svc:8000'}, http://10.9.9.9]}}")
    assert case.members() == ["http://vllm.svc:8000", "http://10.9.9.9"]
    with caplog.at_level(logging.INFO):
        async with case.running():
            first = ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.9.9.9"]
            assert (case.members(), case.told) == (first, 1)
            case.names["vllm.svc"] = ["10.0.0.3", "10.0.0.2"]
            await until(lambda: case.told == 2)
            later = ["http://10.0.0.2:8000", "http://10.0.0.3:8000", "http://10.9.9.9"]
            assert case.members() == later
            assert "model llama: http://10.0.0.3:8000 joined" in caplog.messages
            assert "model llama: http://10.0.0.1:8000 left" in caplog.messages
            del case.names["vllm.svc"]
            await until(lambda: any("cannot be resolved" in m for m in caplog.messages))
            assert (case.members(), case.told) == (later, 2)


async def test_plain_names_are_resolved_too_and_change_no_pool() -> None:
    case = Case(gpu1=["10.0.0.1"], gpu2=["10.0.0.2"])
    case.want("models: {llama: {replicas: [http://gpu1:8000, http://10.0.0.9]}}")
    case.membership.want(configuration.override(case.config, backends=("http://gpu2:8000",)))
    async with case.running():
        addresses = case.membership.addresses
        assert addresses("gpu1") == ("10.0.0.1",)
        assert addresses("gpu2") == ("10.0.0.2",)
        assert addresses("10.0.0.9") == ("10.0.0.9",)
        assert addresses("gpu3") == ()
    assert case.told == 0


def file_of(path: Path) -> str:
    return f"models: {{llama: {{replicas: [{{file: {path}}}]}}}}"


async def test_a_changed_file_is_read_once_it_is_still(tmp_path: Path) -> None:
    path = tmp_path / "llama.replicas"
    path.write_text("http://10.0.0.1\n")
    case = Case(gpu2=["10.0.0.2"])
    case.want(file_of(path))
    assert case.members() == ["http://10.0.0.1"]
    async with case.running():
        await case.sleep.turn(2)
        assert case.told == 0
        path.write_text("http://10.0.0.1\nhttp://gp")  # half of it is written
        await case.sleep.turn()
        path.write_text("http://10.0.0.1\nhttp://gpu2\n")
        await case.sleep.turn()
        assert (case.members(), case.told) == (["http://10.0.0.1"], 0)
        await case.sleep.turn()
        assert (case.members(), case.told) == (["http://10.0.0.1", "http://gpu2"], 1)
        await until(lambda: case.membership.addresses("gpu2") == ("10.0.0.2",))
        await case.sleep.turn(3)
        assert case.told == 1


async def test_a_file_put_in_its_place_is_seen(tmp_path: Path) -> None:
    path, other = tmp_path / "replicas", tmp_path / "other"
    path.write_text("http://10.0.0.1\n")
    other.write_text("http://10.0.0.2\n")
    case = Case()
    case.want(file_of(path))
    async with case.running():
        await case.sleep.turn(2)
        os.replace(other, path)
        await case.sleep.turn(2)
        assert case.members() == ["http://10.0.0.2"]


async def test_a_bad_or_missing_file_keeps_the_last_good_list_and_says_why_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "replicas"
    path.write_text("http://10.0.0.1\n")
    case = Case()
    case.want(file_of(path))
    async with case.running():
        path.write_text("http://10.0.0.1\nnonsense\n")
        await case.sleep.turn(4)
        path.write_text("http://10.0.0.3\nnonsense\n")  # another file, the same fault
        await case.sleep.turn(4)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(f"{path}:2: wanted a URL such as")
        assert caplog.messages[0].endswith("its last good list is kept")
        path.unlink()
        await case.sleep.turn(4)
        assert len(caplog.messages) == 2
        assert "No such file" in caplog.messages[1]
        assert (case.members(), case.told) == (["http://10.0.0.1"], 0)
        path.write_text("http://10.0.0.1\n")
        await case.sleep.turn(2)
        assert caplog.messages[2] == f"{path} is good again"
        assert case.told == 0


async def test_a_file_that_is_gone_at_once_leaves_a_pool_that_fills_later(tmp_path: Path) -> None:
    path = tmp_path / "replicas"
    path.write_text("http://10.0.0.1\n")
    case = Case()
    case.config = configuration.load("fairgate.yaml", file_of(path), {})
    path.unlink()
    case.membership.want(case.config)
    assert case.members() == []
    async with case.running():
        path.write_text("http://10.0.0.2\n")
        await case.sleep.turn(2)
        assert (case.members(), case.told) == (["http://10.0.0.2"], 1)


async def test_a_server_named_twice_is_there_once_on_its_first_terms(tmp_path: Path) -> None:
    path = tmp_path / "replicas"
    path.write_text("http://10.0.0.1\nhttp://10.0.0.2\n")
    case = Case()
    case.want(
        "models: {llama: {replicas: [{url: 'http://10.0.0.1', weight: 5}, "
        f"{{file: {path}, weight: 2}}]}}}}"
    )
    found = case.membership.members(case.config.models["llama"].replicas)
    assert [(s.url, s.weight) for s in found] == [("http://10.0.0.1", 5), ("http://10.0.0.2", 2)]


async def test_another_configuration_keeps_what_was_learnt_and_forgets_the_rest(
    tmp_path: Path,
) -> None:
    path = tmp_path / "replicas"
    path.write_text("http://10.0.0.1\n")
    case = Case(vllm_svc=["10.0.0.7"])
    dns = "llama: {replicas: [{dns: 'http://vllm.svc:8000'}]}"
    case.want(f"models: {{{dns}, other: {{replicas: [{{file: {path}}}]}}}}")
    async with case.running():
        path.unlink()
        case.want(f"models: {{new: {{replicas: ['http://10.1.1.1']}}, {dns}}}")
        assert case.members() == ["http://10.0.0.7:8000"]
        told = case.told
        path.write_text("http://10.0.0.2\n")
        await case.sleep.turn(3)
        assert case.told == told
        assert not case.membership._lists  # it is not looked at any more
        case.want("models: {new: {replicas: ['http://10.1.1.1']}}")
        assert case.membership.addresses("vllm.svc") == ()

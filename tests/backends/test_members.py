"""Where names lead: asked in the background, kept where nobody answers, looked up at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

import pytest

from backends.members import Resolver, compared, is_address, looked_up
from tests.fakes.gateway import until


class Names:
    """A resolver of the system, scripted. `said` may be changed; `asked` are the names asked for.

    An answer that is an exception is raised; None hangs until `answer`.
    """

    def __init__(self, **said: Sequence[str] | Exception | None) -> None:
        self.said = {name.replace("_", "."): answer for name, answer in said.items()}
        self.asked: list[str] = []
        self.cancelled = 0
        self.answer = asyncio.Event()

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        said = self.said[host]
        if said is None:
            try:
                await self.answer.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            said = self.said[host]
        if isinstance(said, Exception):
            raise said
        return said or ()


@contextlib.asynccontextmanager
async def running(resolver: Resolver) -> AsyncIterator[None]:
    task = asyncio.ensure_future(resolver.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def resolver(names: Names, changed: list[str] | None = None) -> Resolver:
    told = changed if changed is not None else []
    return Resolver(told.append, lookup=names, every=0.01)


def test_who_joined_and_who_left() -> None:
    assert compared("abc", "bcd") == (("d",), ("a",))
    assert compared("", "ab") == (("a", "b"), ())
    assert compared("ab", "ba") == ((), ())


@pytest.mark.parametrize(
    ("host", "fact"),
    [("10.0.0.7", True), ("::1", True), ("gpu1", False), ("1.2.3", False), ("", False)],
)
def test_an_address_is_told_from_a_name(host: str, fact: bool) -> None:
    assert is_address(host) is fact


async def test_the_system_is_asked_for_a_name() -> None:
    assert {"127.0.0.1", "::1"} & set(await looked_up("localhost"))


async def test_a_name_leads_nowhere_until_it_was_answered() -> None:
    names = Names(gpu1=None)
    resolving = resolver(names)
    resolving.want(["gpu1", "10.0.0.7"])
    async with running(resolving):
        await until(lambda: names.asked == ["gpu1"])
        assert resolving.addresses("gpu1") == ()
        assert resolving.addresses("10.0.0.7") == ("10.0.0.7",)
        assert resolving.addresses("nobody") == ()
        names.said["gpu1"] = ["10.0.0.1"]
        names.answer.set()
        await resolving.asked()
        assert resolving.addresses("gpu1") == ("10.0.0.1",)
    assert set(names.asked) == {"gpu1"}


async def test_another_answer_is_taken_and_told_of_once() -> None:
    changed: list[str] = []
    names = Names(gpu1=["10.0.0.1", "10.0.0.2", "10.0.0.1"], gpu2=["10.0.0.9"])
    resolving = resolver(names, changed)
    resolving.want(["gpu1", "gpu2"])
    async with running(resolving):
        await resolving.asked()
        assert resolving.addresses("gpu1") == ("10.0.0.1", "10.0.0.2")
        assert sorted(changed) == ["gpu1", "gpu2"]
        names.said["gpu1"] = ["10.0.0.2", "10.0.0.1"]  # the same in another order
        rounds = len(names.asked)
        await until(lambda: len(names.asked) >= rounds + 4)
        assert sorted(changed) == ["gpu1", "gpu2"]
        names.said["gpu1"] = ["10.0.0.3"]
        await until(lambda: len(changed) == 3)
        assert changed[-1] == "gpu1"
        assert resolving.addresses("gpu1") == ("10.0.0.3",)


@pytest.mark.parametrize("fault", [OSError("away"), UnicodeError("no name"), ()])
async def test_the_last_good_answer_is_kept_and_each_turn_is_told_once(
    fault: Exception | Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    changed: list[str] = []
    names = Names(gpu1=["10.0.0.1"])
    resolving = resolver(names, changed)
    resolving.want(["gpu1"])
    with caplog.at_level(logging.WARNING):
        async with running(resolving):
            await resolving.asked()
            names.said["gpu1"] = fault
            rounds = len(names.asked)
            await until(lambda: len(names.asked) >= rounds + 4)
            assert resolving.addresses("gpu1") == ("10.0.0.1",)
            assert len(caplog.messages) == 1
            assert "its last addresses are kept" in caplog.messages[0]
            names.said["gpu1"] = ["10.0.0.1"]
            await until(lambda: len(caplog.messages) == 2)
            assert caplog.messages[1] == "gpu1 can be resolved again"
    assert changed == ["gpu1"]


async def test_a_question_without_an_answer_is_not_asked_twice_and_ends_with_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("backends.members._PATIENCE", 0.01)
    names = Names(slow=None, quick=["10.0.0.1"])
    resolving = resolver(names)
    resolving.want(["slow", "quick"])
    async with running(resolving):
        await until(lambda: names.asked.count("quick") >= 3)
        assert names.asked.count("slow") == 1
        assert resolving.addresses("quick") == ("10.0.0.1",)
    assert names.cancelled == 1
    assert [m for m in caplog.messages if "slow" in m] == [
        "slow cannot be resolved (no answer in time): no address is known"
    ]


async def test_new_names_are_asked_for_at_once_and_others_forgotten() -> None:
    changed: list[str] = []
    names = Names(gpu1=["10.0.0.1"], gpu2=["10.0.0.2"])
    resolving = Resolver(changed.append, lookup=names, every=3600.0)
    resolving.want(["gpu1"])
    async with running(resolving):
        await resolving.asked()
        resolving.want(["gpu2"])
        assert resolving.addresses("gpu1") == ()
        await until(lambda: resolving.addresses("gpu2") == ("10.0.0.2",))
        resolving.want(["gpu2"])
        resolving.want([])
    assert names.asked == ["gpu1", "gpu2"]


async def test_new_names_do_not_wait_for_slow_ones() -> None:
    names = Names(slow=None, gpu1=["10.0.0.1"], gpu2=["10.0.0.2"])
    resolving = Resolver(lambda _: None, lookup=names, every=3600.0)
    resolving.want(["slow", "gpu1"])
    async with running(resolving):
        await until(lambda: bool(resolving.addresses("gpu1")))
        resolving.want(["slow", "gpu2"])
        await until(lambda: bool(resolving.addresses("gpu2")), 2)
        # One that went and came back was forgotten in between.
        resolving.want(["slow", "gpu1"])
        await until(lambda: bool(resolving.addresses("gpu1")), 2)
        assert names.asked.count("slow") == 1
    assert names.cancelled == 1


async def test_an_answer_for_a_name_that_is_not_wanted_any_more_is_dropped() -> None:
    changed: list[str] = []
    names = Names(gpu1=None)
    resolving = resolver(names, changed)
    resolving.want(["gpu1"])
    async with running(resolving):
        await until(lambda: names.asked == ["gpu1"])
        resolving.want([])
        names.said["gpu1"] = ["10.0.0.1"]
        names.answer.set()
        await resolving.asked()
    assert (changed, resolving.addresses("gpu1")) == ([], ())


async def test_a_round_comes_after_its_time_and_a_share_of_chance() -> None:
    names = Names(gpu1=["10.0.0.1"])
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    at = loop.call_at

    def seen(when: float, *rest: object, **more: object) -> object:
        timers.append(when - loop.time())
        return at(when, *rest, **more)  # type: ignore[arg-type]

    loop.call_at = seen  # type: ignore[method-assign, assignment]
    resolving = Resolver(lambda _: None, lookup=names, draw=lambda: 0.5, every=1000.0)
    resolving.want(["gpu1"])
    async with running(resolving):
        await resolving.asked()
        await until(lambda: any(1099 < seconds <= 1100 for seconds in timers))

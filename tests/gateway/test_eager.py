"""A first step that is taken at once is its task's in everything but the time and the context."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.eager import Eager, Starts

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def on_loop(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return on_loop


async def nothing() -> None:
    return None


def begun(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    loop = asyncio.get_running_loop()
    eager = Eager(coroutine)
    task = loop.create_task(eager)
    eager.begin(task, loop)
    return task


def test_the_first_step_is_taken_at_once_and_the_others_in_their_turn(run: Run) -> None:
    steps: list[str] = []

    async def work(future: asyncio.Future[str]) -> None:
        steps.append("first")
        steps.append(await future)
        await asyncio.sleep(0)
        steps.append("last")

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        task = begun(work(future))
        assert steps == ["first"]
        await asyncio.sleep(0.01)
        assert steps == ["first"]
        future.set_result("second")
        await task
        assert steps == ["first", "second", "last"]

    run(main())


@pytest.mark.parametrize("failed", [False, True])
def test_what_it_waits_for_may_be_there_before_its_task_is(run: Run, failed: bool) -> None:
    seen: list[object] = []

    async def work(future: asyncio.Future[str]) -> None:
        try:
            seen.append(await future)
        except OSError as exc:
            seen.append(type(exc))

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        task = begun(work(future))
        future.set_exception(OSError()) if failed else future.set_result("here")
        await task
        assert seen == [OSError if failed else "here"]

    run(main())


def test_its_first_step_knows_its_task_and_the_one_around_it_is_itself_again(run: Run) -> None:
    known: list[asyncio.Task[Any] | None] = []

    async def work() -> None:
        known.append(asyncio.current_task())
        async with asyncio.timeout(10):
            await asyncio.sleep(0)
        known.append(asyncio.current_task())

    async def main() -> None:
        around = asyncio.current_task()
        task = begun(work())
        assert asyncio.current_task() is around
        await task
        assert known == [task, task]

    run(main())


def test_a_timeout_begun_in_the_first_step_ends_what_it_waits_for(run: Run) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            ended.append("late")

    async def main() -> None:
        await begun(work())
        assert ended == ["late"]

    run(main())


def test_one_that_ends_in_its_first_step_is_a_task_that_ended(run: Run) -> None:
    async def fails() -> None:
        raise OSError("gone")

    async def main() -> None:
        task = begun(nothing())
        await task
        assert task.result() is None
        with pytest.raises(OSError, match="gone"):
            await begun(fails())

    run(main())


def test_a_cancellation_before_the_tasks_turn_comes_where_it_waits(run: Run) -> None:
    seen: list[str] = []

    async def work(future: asyncio.Future[None] | None) -> None:
        try:
            await (asyncio.sleep(0) if future is None else future)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        for waits_for in (future, None):
            task = begun(work(waits_for))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert seen == ["cancelled"] * 2
        assert future.cancelled(), "as one that a task waits for is"

    run(main())


def test_a_cancellation_may_be_outlived(run: Run) -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("outlived")

    async def main() -> None:
        task = begun(work())
        task.cancel()
        await task
        assert seen == ["outlived"]

    run(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_one_that_ended_in_its_first_step_is_gone_without_the_collector(
    run: Run, cancelled: bool
) -> None:
    async def main() -> None:
        task = begun(nothing())
        if cancelled:
            task.cancel()
        await task
        kept = weakref.ref(task)
        del task
        await asyncio.sleep(0)  # what woke us has it for so long
        assert kept() is None

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


def test_one_that_was_over_before_it_was_cancelled_is_over(run: Run) -> None:
    async def main() -> None:
        task = begun(nothing())
        task.cancel()
        await task
        assert not task.cancelled()

    run(main())


def test_of_those_that_ask_in_one_turn_one_is_first(run: Run) -> None:
    async def main() -> None:
        loop, starts = asyncio.get_running_loop(), Starts()
        for _ in range(3):
            assert [starts.is_first(loop) for _ in range(3)] == [True, False, False]
            await asyncio.sleep(0)

    run(main())

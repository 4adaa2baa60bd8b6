"""A coroutine that was begun before it had a task: the task goes on where it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gateway.begun import Begun, begin


class Steps:
    """Mutable state: what the coroutine `did`."""

    def __init__(self) -> None:
        self.did: list[str] = []

    async def waiting(self, future: asyncio.Future[str]) -> None:
        self.did.append("began")
        try:
            self.did.append(await future)
        except asyncio.CancelledError:
            self.did.append("cancelled")
            raise
        finally:
            self.did.append("let go")


@pytest.fixture
def steps() -> Steps:
    return Steps()


def begun(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    rest = begin(coroutine)
    assert rest is not None
    return asyncio.get_running_loop().create_task(rest)


async def test_what_waits_for_nothing_is_over_at_once(steps: Steps) -> None:
    async def work() -> None:
        steps.did.append("all")

    assert begin(work()) is None
    assert steps.did == ["all"]


async def test_its_first_steps_are_taken_before_the_loop_turns(steps: Steps) -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = begun(steps.waiting(future))
    assert steps.did == ["began"]
    await asyncio.sleep(0)
    future.set_result("answered")
    await task
    assert steps.did == ["began", "answered", "let go"]


async def test_what_it_waits_for_may_be_there_before_its_task_is(steps: Steps) -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = begun(steps.waiting(future))
    future.set_result("early")
    await task
    assert steps.did == ["began", "early", "let go"]


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_it_is_cancelled_where_it_waits_at_any_time(steps: Steps, turns: int) -> None:
    """Before its task's first step, too: what it waits for is told, and what it holds let go of."""
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = begun(steps.waiting(future))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert future.cancelled()
    assert steps.did == ["began", "cancelled", "let go"]


async def test_a_cancelled_one_may_go_on(steps: Steps) -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            steps.did.append("refused")
            await asyncio.sleep(0)
            steps.did.append("told")

    task = begun(stubborn())
    task.cancel()
    await task
    assert steps.did == ["refused", "told"]


async def test_a_turn_of_the_loop_is_a_wait_as_well(steps: Steps) -> None:
    async def yields() -> None:
        for n in range(3):
            steps.did.append(str(n))
            await asyncio.sleep(0)

    task = begun(yields())
    assert steps.did == ["0"]
    await task
    assert steps.did == ["0", "1", "2"]
    task = begun(yields())
    task.cancel()
    await asyncio.wait({task})
    assert steps.did == ["0", "1", "2", "0"]


async def test_its_first_wait_may_be_for_a_lock_that_is_held(steps: Steps) -> None:
    lock = asyncio.Lock()

    async def locked() -> None:
        async with lock:
            steps.did.append("had it")

    await lock.acquire()
    task = begun(locked())
    await asyncio.sleep(0)
    assert not steps.did
    lock.release()
    await task
    assert steps.did == ["had it"]
    assert not lock.locked()


async def test_what_it_raises_is_raised() -> None:
    async def fails(wait: Callable[[], Any] | None) -> None:
        if wait is not None:
            await wait()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        begin(fails(None))
    with pytest.raises(ValueError, match="broken"):
        await begun(fails(lambda: asyncio.sleep(0)))


async def test_after_its_first_wait_it_has_a_task_and_before_it_has_none() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def look() -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())

    # Begun by the event loop, as by the callback of a read; within a task that one is current.
    made: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: made.set_result(begun(look())))
    task = await made
    await task
    assert tasks == [None, task]


async def test_one_that_nobody_goes_on_with_is_closed(steps: Steps) -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    rest = begin(steps.waiting(future))
    assert isinstance(rest, Begun)
    rest.close()
    assert steps.did == ["began", "let go"]
    with pytest.raises(TypeError, match="a task of its own"):
        await rest

"""The body within its limits: size, type, time, and the room all bodies share."""

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from gateway import accept
from gateway.errors import (
    DEEPEST,
    ClientGone,
    GatewayError,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    TooDeep,
    UnsupportedMedia,
)
from gateway.terms import Head

LIMIT = 100


def receiving(pieces: Iterable[bytes], *, end: bool = True) -> accept.Receive:
    """A caller who sends these pieces, and then the end or nothing more."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    if end:
        messages[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    return receive


async def body(receive: accept.Receive, bodies: accept.Bodies, deadline: float = 5) -> bytes:
    with bodies.share() as share:
        return await accept.body(None, receive, share, LIMIT, deadline)


async def turns_of(sizes: Iterable[int], bodies: accept.Bodies, pauses: int = 0) -> list[int]:
    """In which turn of the loop each of several bodies that are whole at once is taken, and in
    which it goes on after each of so many pauses.
    """
    turn = 0
    taken: list[int] = []

    async def turning() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def one(size: int) -> None:
        with bodies.share() as share:
            await accept.body(None, receiving([b"a" * size]), share, 2 * accept.LARGE, 5)
            taken.append(turn)
            for _ in range(pauses):
                await share.pause()
                taken.append(turn)

    watching = asyncio.create_task(turning())
    try:
        await asyncio.gather(*map(one, sizes))
    finally:
        watching.cancel()
    return taken


async def text(given: bytes) -> bytes:
    with accept.Bodies(1 << 30).share() as share:
        return await accept.body(None, receiving([given]), share, 1 << 30, 60)


def head(**fields: str) -> Head:
    listed = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    return Head("POST", "/x", {b"content-type": b"application/json", **listed})


@pytest.mark.parametrize("sizes", [[0], [100], [50, 50], [1] * 100, [100, 0]])
async def test_a_body_up_to_its_cap_is_whole(sizes: list[int]) -> None:
    bodies = accept.Bodies(1000)
    assert await body(receiving(b"a" * size for size in sizes), bodies) == b"a" * sum(sizes)
    assert bodies.held == 0


@pytest.mark.parametrize("sizes", [[101], [100, 1], [50, 51], [101, 0]])
async def test_a_body_over_its_cap_is_refused_when_it_passes_it(sizes: list[int]) -> None:
    bodies = accept.Bodies(1000)
    with pytest.raises(RequestTooLarge):
        await body(receiving([b"a" * size for size in sizes], end=False), bodies)
    assert bodies.held == 0


@pytest.mark.parametrize("pieces", [[], [b"a"], [b"a", b"b"]])
async def test_a_body_that_stops_coming_is_refused(pieces: list[bytes]) -> None:
    bodies = accept.Bodies(1000)
    with pytest.raises(RequestTimeout):
        await body(receiving(pieces, end=False), bodies, deadline=0.02)
    assert bodies.held == 0


async def test_a_caller_who_leaves_is_told_nothing() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        await body(receive, accept.Bodies(1000))


async def test_bodies_share_one_room_and_give_it_back() -> None:
    bodies = accept.Bodies(150)
    with bodies.share() as share:
        await accept.body(None, receiving([b"a" * 100]), share, LIMIT, 5)
        assert bodies.held == 100
        with pytest.raises(Overloaded):
            await body(receiving([b"a" * 51]), bodies)
        assert bodies.held == 100
        assert await body(receiving([b"a" * 50]), bodies)
    assert bodies.held == 0


async def test_large_bodies_are_taken_one_in_a_turn_of_the_loop() -> None:
    taken = await turns_of([accept.LARGE + 1] * 5, accept.Bodies(1 << 30))
    assert all(after - before > 1 for before, after in pairwise(taken))


async def test_large_bodies_go_on_one_in_a_turn_of_the_loop() -> None:
    taken = await turns_of([accept.LARGE + 1] * 5, accept.Bodies(1 << 30), pauses=2)
    assert len(taken) == 15
    assert all(after - before > 1 for before, after in pairwise(sorted(taken)))


async def test_other_bodies_wait_for_nobody() -> None:
    bodies = accept.Bodies(1 << 30)
    assert len(set(await turns_of([accept.LARGE] * 5, bodies))) == 1
    small, *large = await turns_of([accept.LARGE + 1, 10, accept.LARGE + 1], bodies)
    assert small < min(large)


async def test_a_caller_who_leaves_in_the_queue_of_large_bodies_leaves_it_to_the_others() -> None:
    bodies = accept.Bodies(1 << 30)
    loser = asyncio.create_task(turns_of([accept.LARGE + 1] * 3, bodies))
    for _ in range(2):  # it begins, and its bodies are here
        await asyncio.sleep(0)
    assert bodies.held
    loser.cancel()
    await asyncio.wait([loser])
    assert loser.cancelled()
    assert bodies.held == 0
    assert len(await turns_of([accept.LARGE + 1] * 2, bodies)) == 2


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({}, None),
        ({"content_length": "100"}, None),
        ({"content_length": "101"}, RequestTooLarge),
        ({"content_length": "9" * 30}, RequestTooLarge),
        ({"content_encoding": "identity"}, None),
        ({"content_encoding": "IDENTITY"}, None),
        ({"content_encoding": "gzip"}, UnsupportedMedia),
        ({"content_encoding": "identity, gzip"}, UnsupportedMedia),
        ({"content_type": "Application/JSON; Charset=UTF-8"}, None),
        ({"content_type": 'application/json; charset="utf-8"'}, None),
        ({"content_type": ""}, UnsupportedMedia),
        ({"content_type": "text/plain"}, UnsupportedMedia),
        ({"content_type": "application/json+x"}, UnsupportedMedia),
        ({"content_type": "application/json; charset=utf-16"}, UnsupportedMedia),
    ],
)
def test_the_head_alone_decides_what_it_can(
    fields: dict[str, str], refusal: type[GatewayError] | None
) -> None:
    if refusal is None:
        accept.check_head(head(**fields), LIMIT)
    else:
        with pytest.raises(refusal):
            accept.check_head(head(**fields), LIMIT)


def test_the_cap_of_a_model_is_looked_at_again() -> None:
    accept.check_size(b"a" * 10, 10)
    with pytest.raises(RequestTooLarge, match="cap of 10 bytes"):
        accept.check_size(b"a" * 11, 10)


@pytest.mark.parametrize("good", [b"", b"{}", '{"é":"\U0001f600"}'.encode()])
async def test_text_is_utf_8(good: bytes) -> None:
    assert await text(good) == good


#: Longer than what is decoded at once, its letters of several bytes across every border.
LONG = "aé€😀".encode() * 50_000


@pytest.mark.parametrize("shift", range(10))
async def test_long_text_is_utf_8_wherever_its_letters_lie(shift: int) -> None:
    assert await text(b"a" * shift + LONG)
    for at in (-1, len(LONG) // 2):
        with pytest.raises(InvalidRequest):
            await text(b"a" * shift + LONG[:at] + b"\xff" + LONG[at:])
    with pytest.raises(InvalidRequest):
        await text(b"a" * shift + LONG[:-1])


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", "{}".encode("utf-16")])
async def test_what_is_not_utf_8_is_refused(bad: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await text(bad)
    assert caught.value.code == "invalid_json"


async def test_a_body_that_came_with_its_head_is_not_waited_for() -> None:
    bodies = accept.Bodies(1000)
    with bodies.share() as share:
        assert await accept.body(b"a" * LIMIT, never, share, LIMIT, 5) == b"a" * LIMIT
        assert bodies.held == LIMIT
    assert bodies.held == 0
    with bodies.share() as share, pytest.raises(RequestTooLarge):
        await accept.body(b"a" * (LIMIT + 1), never, share, LIMIT, 5)
    assert bodies.held == 0


async def never() -> dict[str, Any]:
    raise AssertionError("all of it is here")


@pytest.mark.parametrize("padding", [0, 2 * accept.LARGE])
async def test_a_body_that_nests_too_deeply_is_refused_however_large(padding: int) -> None:
    filled = b'"' + b"[" * padding + b'"'
    for deep, refused in ((DEEPEST - 1, False), (DEEPEST, True)):
        given = b"[" + filled + b"," + b"[" * deep + b"]" * deep + b"]"
        if refused:
            with pytest.raises(TooDeep):
                await text(given)
        else:
            assert await text(given) == given

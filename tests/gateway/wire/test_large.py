"""The model's name in a plain answer that passes in pieces: at the top, and nowhere else."""

import random

import pytest

from gateway.wire.large import Renaming

NAMED = b'"model":"mine"'
FILLER = b"w " * 2000


def passed(body: bytes, cuts: list[int]) -> bytes:
    renaming = Renaming(NAMED)
    told = b"".join(renaming.feed(body[a:b]) for a, b in zip([0, *cuts], cuts, strict=False))
    return told + renaming.feed(body[cuts[-1] if cuts else 0 :]) + renaming.rest()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b'{"model":"up","a":"%b"}', b'{"model":"mine","a":"%b"}'),
        (b'{"a":"%b","model" : "up"}', b'{"a":"%b","model":"mine"}'),
        (
            b'{"a":[{"model":"up"},"%b"],"model":"up"}',
            b'{"a":[{"model":"up"},"%b"],"model":"mine"}',
        ),
        (b'{"a":{"b":[1,{"model":"up"}]},"c":"%b"}', b'{"a":{"b":[1,{"model":"up"}]},"c":"%b"}'),
        (
            b'{"a":"{\\"model\\":\\"up\\"}%b","model":"up"}',
            b'{"a":"{\\"model\\":\\"up\\"}%b","model":"mine"}',
        ),
        (b'{"a":"\\\\","b":"[{%b","model":"up"}', b'{"a":"\\\\","b":"[{%b","model":"mine"}'),
        (b'{"model":7,"a":"%b"}', b'{"model":7,"a":"%b"}'),
    ],
)
def test_only_the_name_at_the_top_is_exchanged_however_it_is_cut(sent: bytes, told: bytes) -> None:
    body, want = sent % FILLER, told % FILLER
    draw = random.Random(7)
    assert passed(body, []) == want
    for _ in range(50):
        cuts = sorted(draw.sample(range(1, len(body)), draw.randint(1, 40)))
        assert passed(body, cuts) == want


def test_little_is_held_back() -> None:
    renaming = Renaming(NAMED)
    body = b'{"a":"' + FILLER * 10
    assert len(body) - len(renaming.feed(body)) <= 1024


def test_once_it_is_found_nothing_is_held_back() -> None:
    renaming = Renaming(NAMED)
    assert renaming.feed(b'{"model":"up","a":"' + FILLER) == b'{"model":"mine","a":"' + FILLER
    assert renaming.feed(b'"model":"up"') == b'"model":"up"'
    assert renaming.rest() == b""

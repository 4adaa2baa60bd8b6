"""Who is calling: the shape of a key, its digest, and one answer for all that is wrong."""

import hashlib
import random

import pytest

from gateway.authenticate import ConfiguredKeys, authenticate
from gateway.errors import GatewayError, InvalidRequest, Unauthorized
from gateway.terms import Head, Principal

KEY = b"fg-a-key-of-some-length"
ANN = Principal("ann", "search")
NOW = 1000.0


class Spy:
    """Keys that remember what they were asked for."""

    def __init__(self, known: dict[bytes, Principal] | None = None) -> None:
        self._known = ConfiguredKeys(known or {hashlib.sha256(KEY).digest(): ANN})
        self.asked: list[bytes] = []

    def known(self, digest: bytes) -> Principal | None:
        self.asked.append(digest)
        return self._known.known(digest)

    async def fetch(self, digest: bytes) -> Principal | None:
        self.asked.append(digest)
        return None


def head(**fields: bytes) -> Head:
    listed = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return Head("POST", "/x", listed)


@pytest.mark.parametrize(
    "fields",
    [
        {"authorization": b"Bearer " + KEY},
        {"authorization": b"bearer   " + KEY},
        {"x_api_key": KEY},
        {"authorization": b"BEARER " + KEY, "x_api_key": KEY},
        # Blanks behind a value are none of it (RFC 9110 §5.5), and the parser leaves them there.
        {"authorization": b"Bearer " + KEY + b" "},
        {"x_api_key": KEY + b" \t"},
        {"authorization": b"Bearer " + KEY, "x_api_key": KEY + b" "},
    ],
)
async def test_a_key_is_taken_from_either_header(fields: dict[str, bytes]) -> None:
    assert await authenticate(head(**fields), Spy(), NOW) is ANN


async def test_a_head_keeps_the_digest_of_its_key_and_whose_it_is_is_asked_each_time() -> None:
    sent, digest = head(authorization=b"Bearer " + KEY), hashlib.sha256(KEY).digest()
    assert await authenticate(sent, Spy(), NOW) is ANN
    assert sent.key_digest == digest
    with pytest.raises(Unauthorized):
        await authenticate(sent, Spy({b"another's": ANN}), NOW)
    sent.key_digest, spy = b"kept", Spy({b"kept": ANN})
    assert await authenticate(sent, spy, NOW) is ANN
    assert spy.asked == [b"kept"]


async def test_a_head_without_a_good_key_keeps_nothing() -> None:
    sent = head(authorization=b"Bearer short")
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await authenticate(sent, Spy(), NOW)
    assert not sent.key_digest


@pytest.mark.parametrize("length", [16, 256])
async def test_people_may_bring_their_own_keys(length: int) -> None:
    key = bytes(33 + at % 94 for at in range(length))
    spy = Spy({hashlib.sha256(key).digest(): ANN})
    assert await authenticate(head(authorization=b"Bearer " + key), spy, NOW) is ANN


@pytest.mark.parametrize("key", [b"", b"a" * 15, b"a" * 257, b"a" * 16 + b"\n", b"a b" * 8])
async def test_what_has_no_key_s_shape_is_not_looked_up(key: bytes) -> None:
    spy = Spy({hashlib.sha256(key).digest(): ANN})
    for fields in ({"authorization": b"Bearer " + key}, {"x_api_key": key}):
        with pytest.raises(Unauthorized):
            await authenticate(head(**fields), spy, NOW)
    assert not spy.asked


async def test_keys_with_a_long_common_beginning_stay_distinct() -> None:
    start = b"k" * 40
    bob = Principal("bob", "ads")
    digests = {hashlib.sha256(start + end).digest(): who for end, who in ((b"1", ANN), (b"2", bob))}
    assert await authenticate(head(x_api_key=start + b"1"), Spy(digests), NOW) is ANN
    assert await authenticate(head(x_api_key=start + b"2"), Spy(digests), NOW) is bob
    for other in (start, start + b"3", start + b"1."):
        with pytest.raises(Unauthorized):
            await authenticate(head(x_api_key=other), Spy(digests), NOW)


async def test_a_key_ends_at_the_second_it_expires() -> None:
    spy = Spy({hashlib.sha256(KEY).digest(): Principal("ann", "search", expires=NOW)})
    assert await authenticate(head(x_api_key=KEY), spy, NOW - 0.001)
    for late in (NOW, NOW + 1):
        with pytest.raises(Unauthorized):
            await authenticate(head(x_api_key=KEY), spy, late)


@pytest.mark.parametrize("name", [b"authorization", b"x-api-key"])
async def test_a_key_sent_twice_is_refused_even_where_both_are_right(name: bytes) -> None:
    fields = {b"authorization": b"Bearer " + KEY, b"x-api-key": KEY}
    sent = Head("POST", "/x", fields, frozenset({name}))
    with pytest.raises(InvalidRequest):
        await authenticate(sent, Spy(), NOW)


async def test_two_different_keys_are_refused_whichever_is_right() -> None:
    for bearer, key in ((KEY, b"b" * 20), (b"b" * 20, KEY), (KEY, b""), (b"", KEY)):
        with pytest.raises(Unauthorized):
            await authenticate(head(authorization=b"Bearer " + bearer, x_api_key=key), Spy(), NOW)


async def test_two_different_keys_are_told_to_be_two_and_nothing_else_of_them() -> None:
    told: set[str] = set()
    spy = Spy()
    other, third = b"b" * 20, b"c" * 20
    for bearer, key in (
        (b"Bearer " + KEY, other),
        (b"Bearer " + other, KEY),
        (b"Bearer " + other, third),
        (b"Basic " + KEY, KEY),
        (b"Basic " + other, third),
    ):
        with pytest.raises(Unauthorized, match="^Two different keys were sent") as refused:
            await authenticate(head(authorization=bearer, x_api_key=key), spy, NOW)
        told.add(str(refused.value))
    assert (len(told), spy.asked) == (1, [])
    with pytest.raises(Unauthorized, match="^No valid API key"):
        await authenticate(head(authorization=b"Basic " + KEY), spy, NOW)


async def test_10_000_hostile_values_are_refused_and_no_store_sees_one() -> None:
    chosen = random.Random(2)
    spy, words = (
        Spy(),
        (b"Bearer ", b"Basic ", b"' OR 1=1 --", KEY, b"\x00", b"\xff", b"%s", b"../"),
    )
    refusals: set[str] = set()
    for _ in range(10_000):
        value = b"".join(chosen.choices(words, k=chosen.randrange(6)))
        value += chosen.randbytes(chosen.randrange(300))
        with pytest.raises(GatewayError) as caught:
            await authenticate(head(authorization=value), spy, NOW)
        assert isinstance(caught.value, Unauthorized)
        refusals.add(str(caught.value))
    assert len(refusals) == 1
    assert {len(asked) for asked in spy.asked} <= {32}

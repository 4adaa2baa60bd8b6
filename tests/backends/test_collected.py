"""A small answer is kept whole, and one that is not small is broken off."""

from __future__ import annotations

from backends.collected import Collected
from backends.errors import BadAnswer
from tests.backends.sinks import replica
from tests.fakes.flying import Flying


def flown(limit: int, *pieces: bytes) -> tuple[Collected, Flying]:
    sink, flight = Collected(limit), Flying()
    sink.begin(flight, replica(1))
    sink.sent()
    sink.head(200, ())
    for piece in pieces:
        sink.data(piece)
    sink.end()
    return sink, flight


def test_an_answer_up_to_its_cap_is_kept() -> None:
    sink, flight = flown(4, b"ab", b"cd")
    assert (sink.status, b"".join(sink.pieces)) == (200, b"abcd")
    assert flight.failures == []
    assert sink.failure is None


def test_an_answer_over_its_cap_is_broken_off() -> None:
    sink, flight = flown(4, b"ab", b"cd", b"e")
    assert [type(exc) for exc in flight.failures] == [BadAnswer]
    assert b"".join(sink.pieces) == b"abcd"
    sink.broken(flight.failures[0])
    assert sink.failure is flight.failures[0]

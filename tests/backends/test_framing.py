"""The framer: whole events only, however the stream was cut, at a bounded cost."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.errors import BadAnswer
from backends.framing import Framer
from tests.gateway.wire import LINE_ENDS, STREAMS, cut, parse, recorded, single

LIMIT = 1 << 20

#: Streams of one kind of line end, of events with and without type, with comments in between.
_line = st.text("abc:{} \U0001f600", max_size=6)
_event = st.lists(_line.filter(bool), min_size=1, max_size=3)
_stream = st.builds(
    lambda events, end: b"".join(
        end.join([*(f"data:{line}".encode() for line in event), b"", b""]) for event in events
    ),
    st.lists(_event, min_size=1, max_size=5),
    st.sampled_from(sorted(LINE_ENDS.values())),
)


def runs(pieces: Sequence[bytes], limit: int = LIMIT) -> tuple[list[bytes], bytes]:
    framer = Framer(limit)
    found = [framer.cut(piece) for piece in pieces]
    return [run for run in found if run], framer.rest()


def assert_whole(stream: bytes, pieces: Sequence[bytes]) -> None:
    """Every byte passes in order, and no run ends inside an event."""
    found, rest = runs(pieces)
    assert b"".join(found) + rest == stream
    assert [event for run in found for event in parse(run)] == parse(stream)
    assert not rest


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_cut_anywhere_passes_as_whole_events(name: str, end: bytes) -> None:
    stream = recorded(name).replace(b"\n", end)
    assert_whole(stream, [stream])
    assert_whole(stream, single(stream))
    for at in range(1, len(stream)):
        found, rest = runs(cut(stream, [at]))
        assert b"".join(found) + rest == stream
        assert all(run.endswith(end * 2) for run in found)


@settings(deadline=None)
@given(_stream, st.data())
def test_any_pieces_give_the_same_bytes_and_the_same_events(
    stream: bytes, data: st.DataObject
) -> None:
    at = data.draw(st.lists(st.integers(0, len(stream))))
    assert_whole(stream, cut(stream, at))


@settings(deadline=None)
@given(_stream)
def test_an_event_leaves_with_the_last_byte_that_ends_it(stream: bytes) -> None:
    framer = Framer(LIMIT)
    given = out = b""
    for piece in single(stream):
        given += piece
        out += framer.cut(piece)
        if given.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
            assert out == given


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_the_beginning_of_an_event_is_held_until_its_end(blank: bytes) -> None:
    framer = Framer(LIMIT)
    assert framer.cut(b"data: 1" + blank + b"data: 2") == b"data: 1" + blank
    assert framer.cut(b", 3") == b""
    assert framer.cut(blank + b"data: 4") == b"data: 2, 3" + blank
    assert framer.rest() == b"data: 4"
    assert framer.rest() == b""


def test_a_crlf_cut_in_its_middle_ends_one_line_not_two() -> None:
    framer = Framer(LIMIT)
    assert framer.cut(b"data: 1\r") == b""
    assert framer.cut(b"\ndata: 2\r") == b""
    assert framer.cut(b"\n\r") == b""
    assert framer.cut(b"\n") == b"data: 1\r\ndata: 2\r\n\r\n"


def test_mixed_line_ends_lose_nothing() -> None:
    stream = b"data: 1\r\n\r\ndata: 2\n\ndata: 3\r\rdata: 4\n\n"
    for at in range(1, len(stream)):
        found, rest = runs(cut(stream, [at]))
        assert b"".join(found) + rest == stream
        assert [e for run in found for e in parse(run)] == parse(stream)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_an_event_of_the_limit_passes_and_a_byte_more_does_not(size: int) -> None:
    event = b"data: " + b"x" * 62  # 68 bytes
    pieces = [event[n : n + size] for n in range(0, len(event), size)]
    framer = Framer(len(event))
    for piece in pieces:
        assert framer.cut(piece) == b""
    assert framer.cut(b"\n\n") == event + b"\n\n"
    framer = Framer(len(event) - 1)
    for piece in pieces[:-1]:
        framer.cut(piece)
    with pytest.raises(BadAnswer, match=f"more than {len(event) - 1} bytes"):
        framer.cut(pieces[-1])


def test_the_limit_is_for_one_event_not_for_the_stream() -> None:
    framer = Framer(16)
    for _ in range(10):
        assert framer.cut(b"data: 12") == b""
        assert framer.cut(b"\n\ndata: 3") == b"data: 12\n\n"
        assert framer.cut(b"\n\n") == b"data: 3\n\n"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_never_more_than_the_limit_is_held(pieces: list[bytes]) -> None:
    framer = Framer(50)
    given, out = b"", b""
    for piece in pieces:
        given += piece
        try:
            out += framer.cut(piece)
        except BadAnswer:
            assert len(given) - len(out) > 50
            return
        assert len(given) - len(out) <= 50
    assert out + framer.rest() == given


class Counting(Framer):
    """May scan so many bytes for boundaries, and no more."""

    __slots__ = ("left",)

    def __init__(self, limit: int, allowance: int) -> None:
        super().__init__(limit)
        self.left = allowance

    def _boundary(self, text: bytes) -> int:
        self.left -= len(text)
        assert self.left >= 0, "the same bytes were scanned again"
        return super()._boundary(text)


def test_a_large_event_in_small_pieces_is_scanned_once() -> None:
    size = 1 << 20
    framer = Counting(2 * size, allowance=4 * size + 8)
    for _ in range(size):
        framer.cut(b"x")
    assert framer.cut(b"\n\n") == b"x" * size + b"\n\n"

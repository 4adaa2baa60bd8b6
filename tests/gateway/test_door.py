"""What the connections of a listener share."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.door import Door
from gateway.errors import HeadersTooLarge, InvalidRequest


def test_the_lines_of_every_answer_are_made_once_for_each_list() -> None:
    door = Door()
    fields = [(b"date", b"now"), (b"x", b"y")]
    lines = door.lines(fields)
    assert lines == b"date: now\r\nx: y\r\n"
    assert door.lines(fields) is lines
    assert door.lines([(b"date", b"later")]) == b"date: later\r\n"


def test_by_itself_it_leaves_every_visit_to_the_application() -> None:
    assert Door().direct(cast(Any, object())) is None


def test_a_head_is_too_large_by_its_fields_or_its_bytes() -> None:
    door = Door(header_fields=2, header_bytes=10)
    assert door.too_large(b"/", [(b"a", b"b"), (b"c", b"d")]) is None
    assert door.too_large(b"/123456", [(b"a", b"b"), (b"c", b"d")]) is not None
    told = door.too_large(b"/", [(b"a", b"b")] * 3)
    assert isinstance(told, HeadersTooLarge)
    assert "fields" in str(told)


@pytest.mark.parametrize(
    ("target", "begins"), [(b"/v1/chat/completions", b'{"error"'), (b"/v1/messages", b'{"type"')]
)
def test_a_refusal_is_whole_and_in_the_dialect_of_its_target(target: bytes, begins: bytes) -> None:
    said = Door().refusal(InvalidRequest("No."), target, b"date: now\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ndate: now\r\n")
    assert b"content-length: %d\r\n" % len(body) in head
    assert head.endswith(b"connection: close")
    assert body.startswith(begins)

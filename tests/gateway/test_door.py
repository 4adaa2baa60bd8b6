"""What the connections of a listener share."""

from __future__ import annotations

from typing import Any, cast

from gateway.door import Door


def test_the_lines_of_every_answer_are_made_once_for_each_list() -> None:
    door = Door()
    fields = [(b"date", b"now"), (b"x", b"y")]
    lines = door.lines(fields)
    assert lines == b"date: now\r\nx: y\r\n"
    assert door.lines(fields) is lines
    assert door.lines([(b"date", b"later")]) == b"date: later\r\n"


def test_by_itself_it_leaves_every_visit_to_the_application() -> None:
    assert Door().direct(cast(Any, object())) is None

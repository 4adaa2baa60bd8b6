"""The log never holds a request up: it keeps order, counts what it loses, and tells no secret."""

import asyncio
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from gateway.logs import ATOMIC, LineLog, set_up_diagnostics, tell_of_fault, told_safely


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:
            continue


@pytest.fixture
def diagnostics() -> Iterator[None]:
    """The root logger as it was, afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("fairgate")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])


def wait_until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def everything(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 65536):
        pieces.append(piece)
    return b"".join(pieces)


def test_lines_come_out_whole_and_in_their_order(pipe: tuple[int, int]) -> None:
    log = LineLog(pipe[1], 10_000)
    lines = [b"%d %b\n" % (n, b"x" * (n % 300)) for n in range(300)]
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(everything(pipe[0])))
    reader.start()
    for line in lines:
        log.write(line)
    log.close(5)
    os.close(pipe[1])
    reader.join(5)
    assert got == [b"".join(lines)]
    assert log.dropped == 0


def test_what_comes_after_a_rest_is_written_too(pipe: tuple[int, int]) -> None:
    log = LineLog(pipe[1], 10)
    for line in (b"one\n", b"two\n", b"three\n"):
        log.write(line)
        assert os.read(pipe[0], 100) == line
    log.close(5)


def test_one_write_is_never_larger_than_what_a_pipe_keeps_together(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = os.write

    def noted(fd: int, data: bytes) -> int:
        if fd == pipe[1]:
            sizes.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", noted)
    log = LineLog(pipe[1], 1000)
    for _ in range(40):
        log.write(b"y" * 999 + b"\n")
    log.close(5)
    assert sum(sizes) == 40_000
    assert max(sizes) == 4000
    assert ATOMIC == 4096


def test_a_line_over_4_kib_is_dropped_and_counted_and_the_next_one_is_written(
    pipe: tuple[int, int],
) -> None:
    log = LineLog(pipe[1], 10)
    log.write(b"a" * ATOMIC + b"\n")
    log.write(b"b" * (ATOMIC - 1) + b"\n")
    log.close(5)
    os.close(pipe[1])
    assert everything(pipe[0]) == b"b" * (ATOMIC - 1) + b"\n"
    assert log.dropped == 1


def test_a_blocked_pipe_delays_nobody_and_what_it_costs_is_counted(pipe: tuple[int, int]) -> None:
    log = LineLog(pipe[1], 50)
    line = b"z" * 1999 + b"\n"
    sent = 0
    while log.dropped < 100:  # the pipe, the write that waits in it, and the queue are full
        log.write(line)
        sent += 1
        assert sent < 1_000_000
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(everything(pipe[0])))
    reader.start()
    log.close(5)
    os.close(pipe[1])
    reader.join(5)
    assert got[0].count(b"\n") == sent - log.dropped
    assert set(got[0].splitlines(keepends=True)) == {line}


def test_an_end_does_not_wait_for_a_blocked_pipe(pipe: tuple[int, int]) -> None:
    log = LineLog(pipe[1], 1000)
    for _ in range(100):
        log.write(b"z" * 1999 + b"\n")
    began = time.monotonic()
    log.close(0.05)
    assert time.monotonic() - began < 2
    reader = threading.Thread(target=everything, args=(pipe[0],))
    reader.start()
    log.close(5)
    os.close(pipe[1])
    reader.join(5)


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    os.close(pipe[0])
    log = LineLog(pipe[1], 10)
    with caplog.at_level(logging.WARNING):
        log.write(b"one\n")
        wait_until(lambda: log.dropped == 1)
        for line in (b"two\n", b"three\n", b"four\n"):
            log.write(line)
        log.close(5)
    assert log.dropped == 4
    assert [record.message for record in caplog.records] == [
        "1 log lines were dropped: standard output does not keep up"
    ]


def test_diagnostics_go_to_standard_error_at_the_level_asked_for(
    diagnostics: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    set_up_diagnostics("info")
    logging.getLogger("fairgate").info("ours")
    logging.getLogger("fairgate").debug("hidden")
    logging.getLogger("library").info("hidden")
    logging.getLogger("library").warning("theirs")
    lines = err.getvalue().splitlines()
    assert [line.partition(" ")[2].split(" ", 1)[1] for line in lines] == [
        "INFO fairgate: ours",
        "WARNING library: theirs",
    ]


def failing(prompt: str) -> None:
    raise ValueError(f"cannot handle {prompt!r}")


def test_an_exception_is_told_by_type_and_place_never_by_value(
    diagnostics: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    set_up_diagnostics("warning")
    try:
        failing("my secret prompt")
    except ValueError as exc:
        told = told_safely(exc)
        logging.getLogger("library").exception("failed")
    for text in (told, err.getvalue()):
        assert "ValueError at test_logs.py:" in text
        assert " failing < " in text
        assert "secret" not in text
        assert "/" not in text.partition(" at ")[2]
    assert told_safely(KeyError("sk-1")) == "KeyError at unknown place"


def test_a_message_without_an_exception_is_left_alone(
    diagnostics: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    set_up_diagnostics("warning")
    logging.getLogger("library").error("nothing was raised", exc_info=True)
    assert err.getvalue().count("\n") <= 2
    assert "nothing was raised" in err.getvalue()


async def test_what_nobody_caught_in_the_event_loop_is_told_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(tell_of_fault)
    loop.call_soon(failing, "my secret prompt")
    loop.call_exception_handler({"message": "odd"})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "odd: no exception" in caplog.text
    assert "Exception in callback failing: ValueError at test_logs.py:" in caplog.text
    assert "secret" not in caplog.text

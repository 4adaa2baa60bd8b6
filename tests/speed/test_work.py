"""How much work a request is, in instructions: it may not grow unnoticed.

Counted by callgrind, without sockets, so that a busy machine changes nothing, and judged against a
loop that is counted in the same run. Fewer are welcome: then lower the number in `ALLOWED`.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from tests.speed import path
from tests.speed.counting import KINDS
from tests.speed.path import CHAT, MESSAGES, request

HERE = Path(__file__).parent
#: Turns of the calibration loop that each is worth, on the Python they were counted with. Another
#: compiles other code: a second line of numbers is to be counted for it.
COUNTED_WITH = (3, 11)
ALLOWED = {
    "plain": 207,
    "plain of 8 KB": 234,
    "plain, another head": 224,
    # Of an event 3.2 are its turn behind what begins (docs/decisions/0010): a microsecond.
    "stream": 2005,
    "an event": 16.9,
    "an event of messages": 16.6,
}
ROOM = 1.05


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Instructions of one of each kind, in turns of the calibration loop."""
    folder = tmp_path_factory.mktemp("counted")
    switch, out = folder / "switch.so", folder / "out"
    compiler = ["gcc", "-O1", "-shared", "-fPIC", "-o", str(switch), str(HERE / "switch.c")]
    subprocess.run(compiler, check=True)
    counting = [sys.executable, "-m", "tests.speed.counting", str(switch)]
    callgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
    subprocess.run(
        [*callgrind, f"--callgrind-out-file={out}", *counting],
        check=True,
        capture_output=True,
        cwd=HERE.parent.parent,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        timeout=300,
    )
    found = dict(read(each) for each in folder.glob("out.*"))
    turn = found.pop("calibration")
    return {name: instructions / turn for name, instructions in found.items()}


def read(dump: Path) -> tuple[str, float]:
    """What was counted, and the instructions of one of it."""
    text = dump.read_text()
    named = re.search(r"^desc: Trigger: Client Request: (.+) (\d+)$", text, re.MULTILINE)
    total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
    if named is None or total is None:
        return "", 0.0  # the rest of the process, after the last of them
    return named[1], int(total[1]) / int(named[2])


@pytest.mark.slow
def test_the_work_of_a_request_and_of_an_event_does_not_grow(counted: dict[str, float]) -> None:
    if sys.version_info[:2] != COUNTED_WITH:
        pytest.skip(f"the numbers are those of Python {COUNTED_WITH}")
    assert counted.keys() >= {name for name, *_ in KINDS}
    work = {name: turns for name, turns in counted.items() if name in ALLOWED}
    work["an event"] = (counted["longer stream"] - counted["stream"]) / 300
    work["an event of messages"] = (counted["longer messages"] - counted["messages"]) / 300
    assert work.keys() == ALLOWED.keys()
    print({name: round(turns, 1) for name, turns in work.items()})
    grown = {n: f"{t:.1f} of {ALLOWED[n]}" for n, t in work.items() if t > ALLOWED[n] * ROOM}
    assert not grown, "if it is worth that, say why where the number is raised"


def test_what_is_counted_is_the_whole_path(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def ask() -> tuple[bytes, bytes, bytes]:
        through = path.Path(os.open(log, os.O_WRONLY | os.O_CREAT))
        told = []
        for sent, answer in (
            (request(10, stream=False), path.plain_answer()),
            (request(10, stream=True), path.streamed_answer(3)),
            (request(10, stream=True, path=MESSAGES), path.message_answer(3)),
        ):
            through.engines.answer = answer
            told.append(await through.ask(sent))
        through.close()
        plain, stream, message = told
        return plain, stream, message

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        plain, stream, message = runner.run(ask())
    assert plain.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"model":"bench"' in plain
    assert b"x-ratelimit-remaining-tokens" in plain
    assert (stream.count(b" word"), stream.count(b"[DONE]")) == (3, 1)
    assert b"usage" not in stream, "asked for by us, and for us"
    assert (message.count(b" word"), message.count(b"message_stop")) == (3, 2)
    lines = log.read_bytes().splitlines()
    assert [line.count(b'"outcome":"ok"') for line in lines] == [1, 1, 1]
    assert [line.count(b'"prompt_tokens":260') for line in lines] == [1, 1, 1]
    assert CHAT.encode() in lines[0]

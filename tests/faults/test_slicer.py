"""Streams that arrive in crumbs: callers read the engine's own events, in order, no others."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import Client
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, Command, configured
from tests.fakes.script import Received, Step, render, stream
from tests.fakes.slicer import SAID, chat, crlf, messages, sliced
from tests.faults.asking import CHAT, MESSAGES, body

pytestmark = pytest.mark.usefixtures("no_traceback")

EVENTS = 20
AT_ONCE = 100
TIMEOUTS = (
    "{early_commit: 50ms, heartbeat: 50ms, first_event: 60s, stall: 60s, total: 120s,"
    " lame_duck: 0, drain: 3s}"
)
#: What the gateway says of its own accord while an engine is silent.
BEATS = {CHAT: b": ping\n\n", MESSAGES: b'event: ping\ndata: {"type": "ping"}\n\n'}
_EVENT = re.compile(rb".*?(?:\r\n\r\n|\n\n)", re.DOTALL)


@dataclass(frozen=True)
class Sliced:
    """One stream, all of it drawn from its seed."""

    seed: int

    @property
    def path(self) -> str:
        return MESSAGES if self.seed % 2 else CHAT

    @property
    def crlf(self) -> bool:
        return self.seed // 2 % 3 == 0

    @property
    def wants_usage(self) -> bool:
        return self.seed // 6 % 2 == 0

    def events(self) -> list[bytes]:
        """What the engine says."""
        write = messages if self.path == MESSAGES else chat
        said = write(random.Random(self.seed), EVENTS)
        assert len(said) == EVENTS
        return crlf(said) if self.crlf else said

    def steps(self) -> Iterator[Step]:
        return sliced(render(stream(self.events())), random.Random(~self.seed))

    def heard(self) -> list[bytes]:
        """What its caller has to read: usage that it did not ask for was asked for by others."""
        said = self.events()
        if self.path == CHAT and not self.wants_usage:
            return [event for event in said if b'"usage":{' not in event]
        return said

    async def wrong(self, port: int, beats: Counter[str]) -> str | None:
        """Play it; how what the caller read differs from what it has to read."""
        more: dict[str, Any] = {"messages": [{"role": "user", "content": str(self.seed)}]}
        if self.path == CHAT and self.wants_usage:
            more["stream_options"] = {"include_usage": True}
        async with await Client.open(port, patience=60) as client:
            await client.post(self.path, body(self.path, **more), HEADERS)
            status, _ = await client.read_head("POST")
            read = await client.read_body()
        events = _EVENT.findall(read)
        beat = BEATS[self.path]
        beats[self.path] += events.count(beat)
        got, want = [event for event in events if event != beat], self.heard()
        if status == 200 and b"".join(events) == read and got == want:
            return None
        at = next((n for n in count() if got[n : n + 1] != want[n : n + 1]), None)
        if at is None:
            return f"seed {self.seed}: status {status}, {read[-200:]!r}"
        return f"seed {self.seed}: event {at} is {got[at : at + 2]!r}, not {want[at : at + 2]!r}"


class Slicing(Engine):
    """Answers with the stream of the seed that it is asked for, and counts crumbs as progress."""

    def __init__(self) -> None:
        super().__init__(self._asked)

    def _asked(self, got: Received) -> Iterator[Step] | None:
        return self._counted(got) if got.method == "POST" else None

    def _counted(self, got: Received) -> Iterator[Step]:
        for step in Sliced(int(got.json()["messages"][0]["content"])).steps():
            self.vllm.metrics["vllm:iteration_tokens_total_count"] += 1
            yield step


def test_the_streams_are_of_all_kinds() -> None:
    cases = [Sliced(seed) for seed in range(12)]
    assert len({(case.path, case.crlf, case.wants_usage) for case in cases}) == 8
    said = b"".join(event for case in cases for event in case.events())
    for word in SAID:
        assert word.encode() in said or word.encode("unicode_escape") in said


@pytest.mark.parametrize(
    "streams",
    [
        20,
        pytest.param(1_000, marks=pytest.mark.slow),
        pytest.param(10_000, marks=pytest.mark.soak),
    ],
)
async def test_sliced_streams_are_the_engines_own_events(tmp_path: Path, streams: int) -> None:
    file = tmp_path / "fairgate.yaml"
    beats: Counter[str] = Counter()
    seeds = iter(range(streams))
    found: list[str] = []
    async with Slicing() as engine:
        file.write_text(configured(engine.url, timeouts=TIMEOUTS))
        async with Command("serve", "--config", str(file)) as command:
            port = await command.listening()

            async def caller() -> None:
                for seed in seeds:
                    wrong = await Sliced(seed).wrong(port, beats)
                    if wrong is not None:
                        found.append(wrong)

            await asyncio.gather(*(caller() for _ in range(min(streams, AT_ONCE))))
            assert b"Traceback" not in command.err
    print(f"{streams} sliced streams, {dict(beats)} heartbeats between their events")
    assert not found, f"{len(found)} of {streams} differ:\n" + "\n".join(found[:5])
    assert beats[CHAT] > 0
    assert beats[MESSAGES] > 0

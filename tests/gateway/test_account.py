"""What is told of a finished request: one line, whole, exact, and without what was said."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.account import Account, Line
from gateway.endpoints.base import OPENAI
from gateway.errors import InternalError
from gateway.logs import LineLog
from gateway.metrics import Metrics
from gateway.reply import Reply
from gateway.route import Routes
from gateway.terms import Record, Usage
from tests.fakes.caller import FakeCaller
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, KEY, configured, serving
from tests.fakes.script import Fin, stream

CHAT = "/v1/chat/completions"


def told(tmp_path: Path, record: Record, now: float, reply: Reply | None = None) -> dict[str, Any]:
    """The line that one record makes at `now`."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    log = LineLog(fd, 10)
    account = Account(Metrics(Routes({})), log, lambda: now)
    account.close(record, reply or Reply(FakeCaller(), OPENAI, "req_1"))
    log.close(5)
    os.close(fd)
    line: dict[str, Any] = orjson.loads((tmp_path / "log").read_bytes())
    return line


def test_times_are_milliseconds_since_the_head(tmp_path: Path) -> None:
    record = Record("req_1", CHAT, 100.0, admitted=100.001, first_event=100.25)
    line = told(tmp_path, record, 101.5)
    assert (line["admit_ms"], line["first_event_ms"], line["total_ms"]) == (1.0, 250.0, 1500.0)


def test_the_metrics_count_the_time_that_the_line_tells(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = LineLog(file.fileno(), 10)
        account = Account(Metrics(Routes({})), log, lambda: 101.5)
        account.close(Record("r", CHAT, 100.0), Reply(FakeCaller(), OPENAI, "r"))
        log.close(5)
    (histogram,) = account.metrics.seconds.values()
    assert histogram.sum == 1.5


def test_a_step_that_was_not_reached_took_no_time(tmp_path: Path) -> None:
    line = told(tmp_path, Record("req_1", CHAT, 100.0), 100.5)
    assert (line["admit_ms"], line["first_event_ms"], line["total_ms"]) == (0.0, 0.0, 500.0)


def test_the_time_of_day_is_utc_with_milliseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now, text in (
        (1796000000.007, "2026-11-30T00:53:20.007Z"),
        (1796000000.999, "2026-11-30T00:53:20.998Z"),
        (1796000001.0, "2026-11-30T00:53:21.000Z"),
    ):
        monkeypatch.setattr("gateway.account.time.time", lambda now=now: now)
        stamp = told(tmp_path, Record("req_1", CHAT, 0.0), 0.0)["time"]
        assert stamp[:-4] == text[:-4]
        assert abs(int(stamp[-4:-1]) - int(text[-4:-1])) <= 1


def test_the_second_is_made_anew_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = LineLog(file.fileno(), 10)
        account = Account(Metrics(Routes({})), log, lambda: 0.0)
        for now in (1796000000.25, 1796000000.5, 1796000001.75):
            monkeypatch.setattr("gateway.account.time.time", lambda now=now: now)
            account.close(Record("r", CHAT, 0.0), Reply(FakeCaller(), OPENAI, "r"))
        log.close(5)
    lines = (tmp_path / "log").read_bytes().splitlines()
    stamps = [orjson.loads(line)["time"][17:] for line in lines]
    assert stamps == ["20.250Z", "20.500Z", "21.750Z"]


def test_what_the_caller_was_sent_is_told_as_it_was_sent(tmp_path: Path) -> None:
    caller = FakeCaller()
    reply = Reply(caller, OPENAI, "req_1")
    reply.refuse(InternalError())
    line = told(tmp_path, Record("req_1", CHAT, 0.0, status=418), 1.0, reply)
    assert (line["status"], line["bytes_out"]) == (500, len(caller.body))


def test_a_caller_who_was_told_nothing_keeps_the_status_of_the_record(tmp_path: Path) -> None:
    line = told(tmp_path, Record("req_1", CHAT, 0.0, status=499, outcome="client_gone"), 1.0)
    assert (line["status"], line["outcome"], line["bytes_out"]) == (499, "client_gone", 0)


@pytest.mark.parametrize(("exact", "word"), [(True, "exact"), (False, "counted")])
def test_tokens_say_whose_count_they_are(tmp_path: Path, exact: bool, word: str) -> None:
    usage = Usage(prompt=5, cached=2, completion=3, exact=exact)
    line = told(tmp_path, Record("req_1", CHAT, 0.0, usage=usage), 1.0)
    tokens = (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"])
    assert (*tokens, line["tokens_are"]) == (5, 2, 3, word)


def test_the_longest_line_there_can_be_is_still_written(tmp_path: Path) -> None:
    long = "\U0001f642" * 128  # no printable character takes more bytes
    record = Record("req_" + "0" * 24, "/v1/messages/count_tokens", 0.0)
    record.client_request_id, record.trace_id = "x" * 128, "0" * 32
    record.key = record.team = record.pool = long
    record.model = long * 100
    record.replica = "http://" + "h" * 253 + ":65535/" + "p" * 500
    line = told(tmp_path, record, 10.0**6)
    assert line["model"] == long
    assert list(line) == list(Line.__struct_fields__)


def test_a_fault_of_our_own_is_told_with_the_id_and_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = LineLog(file.fileno(), 10)
        account = Account(Metrics(Routes({})), log, lambda: 0.0)
        account.fault(Record("req_7", CHAT, 0.0), ValueError("the prompt: my secret"))
        log.close(5)
    assert "req_7: ValueError at" in caplog.text
    assert "secret" not in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


async def test_one_line_a_request_with_exact_tokens_and_nothing_that_was_said() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "whisper"}]}
    plain, streamed = orjson.dumps(body), orjson.dumps({**body, "stream": True})
    ids = (("x-request-id", "mine-1"), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"))
    async with Engine() as engine, serving(configured(engine.url)) as gateway:
        answers = [
            await request(gateway.port, "POST", CHAT, [*HEADERS, *ids], sent)
            for sent in (plain, streamed)
        ]
        lines = await gateway.logged(2)
        text = gateway.log.read_text()
    for line, answer, sent in zip(lines, answers, (plain, streamed), strict=True):
        assert line["request_id"] == answer.headers.get("x-request-id")
        assert (line["client_request_id"], line["trace_id"]) == ("mine-1", "a" * 32)
        assert (line["key"], line["team"], line["endpoint"]) == ("ann", "search", CHAT)
        assert (line["model"], line["pool"], line["replica"]) == ("tiny", "tiny", engine.url)
        assert (line["status"], line["outcome"], line["attempts"]) == (200, "ok", 1)
        assert (line["bytes_in"], line["bytes_out"]) == (len(sent), len(answer.body))
        assert line["tokens_are"] == "exact"
        assert line["prompt_tokens"] > 0
        assert line["completion_tokens"] > 0
        assert 0 < line["admit_ms"] <= line["first_event_ms"] <= line["total_ms"] < 10_000
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert [line["stream"] for line in lines] == [False, True]
    assert "whisper" not in text
    assert KEY not in text


async def test_a_stream_that_broke_is_told_with_counted_tokens() -> None:
    event = b'data: {"model":"tiny","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    steps = [*stream([event] * 3, end=False), Fin()]
    body = b'{"model":"tiny","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    async with Engine(steps) as engine, serving(configured(engine.url)) as gateway:
        await request(gateway.port, "POST", CHAT, HEADERS, body)
        (line,) = await gateway.logged(1)
    assert (line["status"], line["outcome"]) == (200, "upstream_failed")
    assert (line["completion_tokens"], line["tokens_are"]) == (3, "counted")

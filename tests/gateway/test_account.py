"""What is told of a finished request: one line, whole, exact, and without what was said."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.account import Account
from gateway.endpoints.base import OPENAI
from gateway.errors import InternalError
from gateway.logs import LineLog
from gateway.metrics import Metrics
from gateway.reply import Reply
from gateway.route import Routes
from gateway.terms import Record, Usage, milliseconds
from tests.fakes.caller import FakeCaller
from tests.fakes.client import request
from tests.fakes.engine import Engine
from tests.fakes.gateway import HEADERS, KEY, configured, serving
from tests.fakes.script import Fin, stream

CHAT = "/v1/chat/completions"


def made(**more: Any) -> Record:
    return Record(request_id="req_1", endpoint=CHAT, **more)


def told(
    tmp_path: Path, record: Record, *, took: float = 1.0, reply: Reply | None = None
) -> dict[str, Any]:
    """The line of a record whose request took so many seconds."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    log = LineLog(fd, 10)
    account = Account(Metrics(Routes({})), log, lambda: 100.0 + took)
    account.close(record, reply or Reply(FakeCaller(), OPENAI, "req_1"), 100.0)
    log.close(5)
    os.close(fd)
    line: dict[str, Any] = orjson.loads((tmp_path / "log").read_bytes())
    return line


def test_times_are_milliseconds_since_the_head(tmp_path: Path) -> None:
    line = told(tmp_path, made(admit_ms=1.0, first_event_ms=250.0), took=1.5)
    assert (line["admit_ms"], line["first_event_ms"], line["total_ms"]) == (1.0, 250.0, 1500.0)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, 0.0),
        (0.0000004, 0.0),
        (0.0000006, 0.001),
        (0.1234567, 123.457),
        (599.9999994, 599999.999),
    ],
)
def test_a_time_is_told_to_the_microsecond(seconds: float, told: float) -> None:
    assert milliseconds(seconds) == told


def test_the_metrics_count_the_time_that_the_line_tells(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = LineLog(file.fileno(), 10)
        account = Account(Metrics(Routes({})), log, lambda: 101.5)
        account.close(made(), Reply(FakeCaller(), OPENAI, "r"), 100.0)
        log.close(5)
    (histogram,) = account.metrics.seconds.values()
    assert histogram.sum == 1.5


def test_a_step_that_was_not_reached_took_no_time(tmp_path: Path) -> None:
    line = told(tmp_path, made(), took=0.5)
    assert (line["admit_ms"], line["first_event_ms"], line["total_ms"]) == (0.0, 0.0, 500.0)
    assert line["tokens_are"] == "counted"


async def test_the_times_of_what_no_engine_answered_are_those_of_the_steps_it_took() -> None:
    body = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
    async with serving(configured("http://127.0.0.1:1")) as gateway:
        await request(gateway.port, "POST", CHAT, HEADERS, body)
        await request(gateway.port, "GET", "/v1/models", HEADERS)
        failed, listing = await gateway.logged(2)
    assert failed["outcome"] == "upstream_failed"
    assert failed["first_event_ms"] == 0.0 < failed["admit_ms"] <= failed["total_ms"] < 10_000
    assert listing["admit_ms"] == listing["first_event_ms"] == 0.0 < listing["total_ms"] < 10_000


def test_the_time_of_day_is_utc_with_milliseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for now, text in (
        (1796000000.007, "2026-11-30T00:53:20.007Z"),
        (1796000000.999, "2026-11-30T00:53:20.998Z"),
        (1796000001.0, "2026-11-30T00:53:21.000Z"),
    ):
        monkeypatch.setattr("gateway.account.time.time", lambda now=now: now)
        stamp = told(tmp_path, made())["time"]
        assert stamp[:-4] == text[:-4]
        assert abs(int(stamp[-4:-1]) - int(text[-4:-1])) <= 1


def test_the_second_is_made_anew_when_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = LineLog(file.fileno(), 10)
        account = Account(Metrics(Routes({})), log, lambda: 0.0)
        for now in (1796000000.25, 1796000000.5, 1796000001.75, 1796000000.125):  # set back
            monkeypatch.setattr("gateway.account.time.time", lambda now=now: now)
            account.close(made(), Reply(FakeCaller(), OPENAI, "r"), 0.0)
        log.close(5)
    lines = (tmp_path / "log").read_bytes().splitlines()
    stamps = [orjson.loads(line)["time"][17:] for line in lines]
    assert stamps == ["20.250Z", "20.500Z", "21.750Z", "20.125Z"]


def test_what_the_caller_was_sent_is_told_as_it_was_sent(tmp_path: Path) -> None:
    caller = FakeCaller()
    reply = Reply(caller, OPENAI, "req_1")
    reply.refuse(InternalError())
    line = told(tmp_path, made(status=418), reply=reply)
    assert (line["status"], line["bytes_out"]) == (500, len(caller.body))


def test_a_caller_who_was_told_nothing_keeps_the_status_of_the_record(tmp_path: Path) -> None:
    line = told(tmp_path, made(status=499, outcome="client_gone"))
    assert (line["status"], line["outcome"], line["bytes_out"]) == (499, "client_gone", 0)


@pytest.mark.parametrize(("exact", "word"), [(True, "exact"), (False, "counted")])
def test_tokens_say_whose_count_they_are(tmp_path: Path, exact: bool, word: str) -> None:
    record = made()
    record.used(Usage(prompt=5, cached=2, completion=3, exact=exact))
    line = told(tmp_path, record)
    tokens = (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"])
    assert (*tokens, line["tokens_are"]) == (5, 2, 3, word)


def test_the_longest_line_there_can_be_is_still_written(tmp_path: Path) -> None:
    long = "\U0001f642" * 128  # no printable character takes more bytes
    record = Record(request_id="req_" + "0" * 24, endpoint="/v1/messages/count_tokens")
    record.client_request_id, record.trace_id = "x" * 128, "0" * 32
    record.key = record.team = record.pool = long
    record.model = long * 100
    record.replica = "http://" + "h" * 253 + ":65535/" + "p" * 500
    line = told(tmp_path, record, took=10.0**6)
    assert line["model"] == long
    assert list(line) == list(Record.__struct_fields__)


def test_a_fault_of_our_own_is_told_with_the_id_and_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open(tmp_path / "log", "wb") as file:
        log = LineLog(file.fileno(), 10)
        account = Account(Metrics(Routes({})), log, lambda: 0.0)
        account.fault(
            Record(request_id="req_7", endpoint=CHAT), ValueError("the prompt: my secret")
        )
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

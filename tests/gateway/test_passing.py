"""What of a head passes on: ids, a few named fields, and the caller's own deadline."""

import re

import pytest

from gateway import passing
from gateway.settings import Timeouts
from gateway.terms import Head, Record

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def head(**fields: str) -> Head:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in fields.items()}
    return Head("POST", "/v1/chat/completions", named)


def passed(head: Head) -> tuple[dict[str, str], Record]:
    record = Record(request_id="req_1", endpoint=head.path)
    *lines, end = passing.trace(head, record).split("\r\n")
    assert end == ""
    return dict(line.split(": ", 1) for line in lines), record


def test_request_ids_never_repeat_and_have_one_form() -> None:
    made = {passing.request_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", each) for each in made)


def test_a_trace_is_kept_under_a_span_of_our_own() -> None:
    fields, record = passed(head(traceparent=f"00-{TRACE}-{SPAN}-01"))
    version, trace, span, _ = fields["traceparent"].split("-")
    assert (version, trace, record.trace_id) == ("00", TRACE, TRACE)
    assert re.fullmatch("[0-9a-f]{16}", span)
    assert span not in (SPAN, "0" * 16)


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_no_trace_is_replaced_by_a_new_one(sent: str) -> None:
    fields, record = passed(head(traceparent=sent))
    found = re.fullmatch(r"00-([0-9a-f]{32})-[0-9a-f]{16}-01", fields["traceparent"])
    assert found
    assert found[1] == record.trace_id
    assert record.trace_id not in (TRACE, "0" * 32)


def test_a_trace_is_made_where_none_is_sent() -> None:
    (fields, first), (_, second) = passed(head()), passed(head())
    assert re.fullmatch("[0-9a-f]{32}", first.trace_id)
    assert first.trace_id != second.trace_id
    _, trace, span, _ = fields["traceparent"].split("-")
    assert span not in trace


def test_no_span_is_of_zeros_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlucky:
        def getrandbits(self, bits: int) -> int:
            return 0

    monkeypatch.setattr(passing, "_random", Unlucky())
    fields, _ = passed(head(traceparent=f"00-{TRACE}-{SPAN}-01"))
    assert fields["traceparent"] == f"00-{TRACE}-{'0' * 15}1-01"


def test_only_named_fields_pass() -> None:
    fields, _ = passed(
        head(
            anthropic_version="2023-06-01",
            anthropic_beta="tools-2024",
            x_vllm_priority="1",
            x_data_parallel_rank="3",
            x_session_id="s",
            x_request_id="mine",
            authorization="Bearer fg-key",
            x_api_key="fg-key",
            cookie="a=b",
            tracestate="x=y",
            baggage="x=y",
            host="evil",
            content_length="7",
            x_forwarded_for="1.2.3.4",
        )
    )
    assert set(fields) == {"traceparent", "anthropic-version", "anthropic-beta"}
    assert fields["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize(
    "value", [b"", b"a\tb", b"caf\xe9", b"a\r\nx-evil: 1", b"x" * 1025, b"a\n"]
)
def test_a_named_field_with_odd_bytes_stays_here(value: bytes) -> None:
    fields, _ = passed(Head("POST", "/", {b"anthropic-beta": value}))
    assert set(fields) == {"traceparent"}


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("abc-1.2_3:4/5+6=7@8", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ('a"b', False),
        ("a\n", False),
        ("é", False),
        ("\x1b[31m", False),
    ],
)
def test_a_callers_id_is_logged_only_where_its_characters_are_harmless(
    sent: str, kept: bool
) -> None:
    assert passing.client_request_id(head(x_request_id=sent)) == (sent if kept else "")
    assert passing.client_request_id(head()) == ""


def deadline(told: str | None, stream: bool) -> float:
    times = Timeouts(first_event=300.0, total=590.0)
    sent = head() if told is None else head(x_stainless_read_timeout=told)
    return passing.deadline(sent, 1000.0, times, stream) - 1000.0


def test_without_a_word_of_the_caller_our_own_times_hold() -> None:
    assert deadline(None, stream=False) == 590.0
    assert deadline(None, stream=True) == 600.0


@pytest.mark.parametrize("stream", [False, True])
def test_a_callers_timeout_is_answered_before_it_is_over(stream: bool) -> None:
    assert deadline("60", stream) == 55.0
    assert deadline("60.5", stream) == 55.5


@pytest.mark.parametrize("told", ["6000", "inf", "nan", "", "soon", "-1", "0", "3", "6", "1e999"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_callers_timeout_never_makes_ours_longer_or_senseless(told: str, stream: bool) -> None:
    assert deadline(told, stream) == deadline(None, stream)

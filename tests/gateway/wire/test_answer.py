"""Both dialects over every recorded stream: what passes, what is counted, however it was cut."""

import json
from itertools import pairwise

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from backends.errors import BadAnswer
from gateway.terms import Ask, Usage
from gateway.wire import anthropic, openai
from gateway.wire.answer import Translator
from tests.gateway.wire import (
    LINE_ENDS,
    NAME,
    STREAMS,
    chat,
    cut,
    document,
    messages,
    parse,
    play,
    raw,
    recorded,
    single,
    translator,
)

NAMED = orjson.dumps({"model": NAME})[1:-1]
ASKING = pytest.mark.parametrize("wants_usage", [False, True], ids=["quiet", "asking"])
RECORDED = pytest.mark.parametrize("name", STREAMS)
HEARTBEATS = {True: anthropic.HEARTBEAT, False: openai.HEARTBEAT}

#: Tokens as the engine counted them, where it said so: prompt, cached, completion.
EXACT = {
    "chat_stream_usage": (20, 0, 8),
    "messages_stream": (20, 0, 8),
    "messages_tools_stream": (151, 128, 10),
}


def expected(name: str, *, wants_usage: bool) -> bytes:
    """What the caller is to read: all of it under its own name for the model, less the usage."""
    events = recorded(name).replace(b'"model":"tiny"', NAMED).split(b"\n\n")
    usage_only = b'"choices":[],"usage":{'
    return b"\n\n".join(e for e in events if wants_usage or usage_only not in e)


def assert_counted(wire: Translator, name: str) -> None:
    """By the engine, or else by its events."""
    if name in EXACT:
        assert wire.usage == Usage(*EXACT[name], exact=True)
    else:
        events = len(parse(recorded(name))) - 1  # all but `[DONE]`
        assert (wire.usage, wire.events) == (Usage(), events)


@ASKING
@RECORDED
@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
def test_a_recorded_stream_passes_but_for_the_model(
    name: str, end: bytes, wants_usage: bool
) -> None:
    stream = recorded(name).replace(b"\n", end)
    told = expected(name, wants_usage=wants_usage).replace(b"\n", end)
    for pieces in ([stream], single(stream), stream.splitlines(keepends=True)):
        wire = translator(name, wants_usage=wants_usage)
        assert b"".join(play(wire, pieces)) == told
        assert wire.done
        assert wire.failed is None
        assert_counted(wire, name)


#: Few of so many cases are quick; the others are cut at random below.
QUICK = ["chat_stream_usage", "messages_stream"]


@pytest.mark.parametrize(
    ("name", "end", "wants_usage"),
    [
        pytest.param(
            name,
            LINE_ENDS[end],
            asking,
            id=f"{name}-{end}{'-asking' * asking}",
            marks=[] if name in QUICK and end == "lf" else pytest.mark.slow,
        )
        for name in STREAMS
        for end in LINE_ENDS
        for asking in (False, True)
    ],
)
def test_a_cut_at_any_position_changes_nothing(name: str, end: bytes, wants_usage: bool) -> None:
    stream = recorded(name).replace(b"\n", end)
    told = expected(name, wants_usage=wants_usage).replace(b"\n", end)
    for at in range(1, len(stream)):
        wire = translator(name, wants_usage=wants_usage)
        assert b"".join(play(wire, cut(stream, [at]))) == told
        assert wire.done
        assert_counted(wire, name)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(STREAMS), st.sampled_from(sorted(LINE_ENDS.values())), st.data())
def test_any_pieces_give_the_same_answer(name: str, end: bytes, data: st.DataObject) -> None:
    stream = recorded(name).replace(b"\n", end)
    pieces = cut(stream, data.draw(st.lists(st.integers(0, len(stream)))))
    wire = translator(name)
    assert b"".join(play(wire, pieces)) == expected(name, wants_usage=False).replace(b"\n", end)
    assert_counted(wire, name)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(STREAMS), st.sampled_from(sorted(LINE_ENDS.values())), st.data())
def test_a_heartbeat_between_any_two_runs_changes_no_event(
    name: str, end: bytes, data: st.DataObject
) -> None:
    stream = recorded(name).replace(b"\n", end)
    pieces = cut(stream, data.draw(st.lists(st.integers(0, len(stream)))))
    runs = play(translator(name), pieces)
    beat = HEARTBEATS[name.startswith("messages")]
    heard = [event for event in parse(beat.join([b"", *runs, b""])) if event[0] != "ping"]
    assert heard == parse(b"".join(runs))


@RECORDED
def test_every_event_leaves_in_the_read_that_completes_it(name: str) -> None:
    stream = recorded(name)
    ends = [n + 2 for n in range(len(stream)) if stream.startswith(b"\n\n", n)]
    events = [stream[a:b] for a, b in pairwise([0, *ends])]
    runs = play(translator(name, wants_usage=True), events)
    assert len(runs) == len(events)


#: Texts that mean something on the wire, and nothing inside a JSON string.
TRAPS = [
    "[DONE]",
    "data: [DONE]",
    "\n\ndata: [DONE]\n\n",
    '"usage":{',
    '{"usage":{"prompt_tokens":9,"completion_tokens":9}}',
    '"error"',
    "error",
    "abort",
    "usage",
    '{"error":{"message":"no"}}',
    '"model":"x"',
    '"model":"tiny"',
    "message_stop",
    '{"type":"message_stop"}',
    '"type":"message_stop"',
    "event: error",
    "\nevent: error\ndata: {}\n\n",
    '{"type":"error","error":{}}',
    '"finish_reason":"abort"',
]


def spoken(wire: Translator, text: str) -> bytes:
    """One event that carries `text`, as its dialect does."""
    quoted = json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode()
    if isinstance(wire, openai.OpenAITranslator):
        head = b'data: {"model":"tiny","choices":[{"index":0,"delta":{"content":'
        return head + quoted + b'},"finish_reason":null}],"usage":null}\n\n'
    head = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":'
    return head + quoted + b'},"index":0}\n\n'


@pytest.mark.parametrize("text", TRAPS)
@pytest.mark.parametrize("make", [chat, messages])
def test_a_text_that_looks_like_the_wire_is_only_text(make: type[Translator], text: str) -> None:
    wire = make()  # type: ignore[call-arg]  # the functions above, which take nothing
    event = spoken(wire, text)
    told = event.replace(b'"model":"tiny"', NAMED, 1) if b'"model":"tiny","ch' in event else event
    for pieces in ([event * 3], [event] * 3, single(event * 3)):
        wire.restart()
        assert b"".join(play(wire, pieces)) == told * 3
        assert not wire.done
        assert wire.failed is None
        assert not wire.usage.exact


@settings(deadline=None)
@given(st.text(), st.booleans())
def test_any_text_passes_untouched(text: str, openai_dialect: bool) -> None:
    wire: Translator = chat() if openai_dialect else messages()
    event = spoken(wire, text)
    (told,) = play(wire, [event])
    assert told == event.replace(b'"model":"tiny"', NAMED, 1)
    assert not wire.done


def test_a_model_is_renamed_whatever_its_name_and_spacing() -> None:
    wire = chat()
    assert (
        wire.feed(b'data: {"model" : "a\\"b\\\\","x":1}\n\n') == b"data: {" + NAMED + b',"x":1}\n\n'
    )
    assert wire.feed(b'data: {"model" : "a\\"b\\\\"}\n\n') == b"data: {" + NAMED + b"}\n\n"
    assert wire.feed(b'data: {"model":"other"}\n\n') == b"data: {" + NAMED + b"}\n\n"


def test_an_engine_that_uses_our_name_costs_no_rewriting() -> None:
    wire = chat()
    event = b"data: {" + NAMED + b"}\n\n"
    wire.feed(event)
    assert wire.feed(event) is event


def test_a_restart_forgets_the_attempt_before() -> None:
    wire = chat()
    play(wire, [recorded("chat_stream_usage")])
    assert wire.done
    wire.restart()
    assert (wire.usage, wire.events, wire.done, wire.failed) == (Usage(), 0, False, None)


@pytest.mark.parametrize("name", ["chat_stream", "messages_stream"])
def test_the_next_server_may_call_the_model_something_else(name: str) -> None:
    wire = translator(name)
    play(wire, [recorded(name)[:600]])
    wire.restart()
    told = b"".join(play(wire, [recorded(name).replace(b'"tiny"', b'"large"')]))
    assert told == expected(name, wants_usage=False)


def test_a_request_carries_what_was_checked_under_the_servers_name() -> None:
    sent = raw(model=NAME, messages=[], odd=1, stream=False)
    checked = {name: value for name, value in sent.items() if name != "odd"}
    wire = Translator(Ask(NAME, False, sent), checked)
    wire.set("cache_salt", "s")
    body = orjson.loads(wire.request("tiny"))
    assert body == {"model": "tiny", "messages": [], "stream": False, "cache_salt": "s"}
    assert wire.dropped == 1


def test_nested_values_of_a_request_pass_byte_for_byte() -> None:
    value = b'[ {"role":"user","content":"\\u00e9 1.0 1e400 12345678901234567890"} ]'
    wire = Translator(Ask(NAME, False, {}), {"messages": Raw(value)})
    assert value in wire.request("tiny")


PLAIN = {
    "chat_plain": Usage(20, 0, 8, exact=True),
    "chat_json_schema": Usage(20, 0, 8, exact=True),
    "embeddings_float": Usage(6, 0, 0, exact=True),
    "embeddings_base64": Usage(3, 0, 0, exact=True),
    "messages_plain": Usage(20, 0, 8, exact=True),
    "count_tokens": Usage(20, 0, 0, exact=True),
}


def plain(name: str) -> Translator:
    return messages(stream=False) if name[:2] in ("me", "co") else chat(stream=False)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_answer_passes_but_for_the_model(name: str) -> None:
    wire = plain(name)
    body = wire.whole(document(name))
    told = document(name).replace(b'"model":"tiny"', NAMED).replace(b'"model":"minilm"', NAMED)
    assert body == told
    assert wire.usage == PLAIN[name]


def in_pieces(wire: Translator, body: bytes, size: int) -> bytes:
    """What a caller is sent of a large plain answer that comes in pieces of so many bytes."""
    told = wire.opening(body[:size])
    for at in range(size, len(body), size):
        told += wire.more(body[at : at + size])
    return told + wire.closing(body[-4096:])


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("size", [7, 4096, 100_000])
def test_a_large_plain_answer_is_renamed_and_counted_at_its_tail(name: str, size: int) -> None:
    wire = plain(name)
    assert in_pieces(wire, document(name), size) == plain(name).whole(document(name))
    if name != "count_tokens":  # it has no usage, and is never large
        assert wire.usage == PLAIN[name]


def test_the_last_usage_of_a_tail_counts() -> None:
    wire = chat(stream=False)
    tail = b'"parts":[{"usage":{"prompt_tokens":1}}],"usage": {"prompt_tokens":5,"x":{}}}'
    in_pieces(wire, b"{" + tail, 1 << 20)
    assert wire.usage == Usage(prompt=5, exact=True)


def test_a_tail_without_usage_leaves_it_unknown() -> None:
    wire = chat(stream=False)
    in_pieces(wire, b'{"usage":null}', 1 << 20)
    assert wire.usage == Usage()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b'{"a":[{"model":"x"}],"model":"x"}', b'{"a":[{"model":"x"}],"model":%b}'),
        (b'{"a":{"model":"x"},"model":"y"}', b'{"a":{"model":"x"},"model":%b}'),
        (b'{"model": "x","a":1}', b'{"model":%b,"a":1}'),
        (b'{"model":7,"a":1}', b'{"model":%b,"a":1}'),
        (b'{"object":"model","model":"x"}', b'{"object":"model","model":%b}'),
        (b'{"model":"x","a":{"model":"x"}}', b'{"model":%b,"a":{"model":"x"}}'),
        (b'{"model":"up","id":1,"model":"x"}', b'{"model":%b,"id":1}'),
    ],
)
def test_only_the_models_name_at_the_top_is_exchanged(sent: bytes, told: bytes) -> None:
    assert chat(stream=False).whole(sent) == told % orjson.dumps(NAME)


@pytest.mark.parametrize("choices", [b'["x"]', b'{"a":1}', b'"abort"', b"[null]", b"7", b"null"])
def test_choices_of_another_shape_are_not_ours_to_judge(choices: bytes) -> None:
    wire = chat(stream=False)
    body = b'{"model":"x","usage":{"prompt_tokens":3},"choices":%b}' % choices
    assert wire.whole(body) == body.replace(b'"x"', orjson.dumps(NAME), 1)
    assert wire.usage.prompt == 3


def test_a_plain_answer_says_only_what_the_engine_said() -> None:
    assert chat(stream=False).whole(b'{"id":"1"}') == b'{"id":"1"}'


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b'{"a":1}x', b"<html>", b'{"a":' + b"[" * 100_000]
)
def test_what_is_no_json_object_is_no_answer(body: bytes) -> None:
    with pytest.raises(BadAnswer, match="not a JSON object"):
        chat(stream=False).whole(body)


@pytest.mark.parametrize("usage", ["1", '"x"', '{"prompt_tokens":"x","input_tokens":"x"}', "null"])
@pytest.mark.parametrize("make", [chat, messages])
def test_a_usage_that_is_none_does_not_spoil_the_answer(make: type[Translator], usage: str) -> None:
    wire = make(stream=False)  # type: ignore[call-arg]  # the functions above
    body = b'{"usage":' + usage.encode() + b"}"
    assert wire.whole(body) == body
    assert not wire.usage.exact


def test_a_dialect_has_to_say_how_it_reads() -> None:
    bare = Translator(Ask(NAME, True, {}), {})
    with pytest.raises(AssertionError):
        bare.feed(b"")
    with pytest.raises(AssertionError):
        bare.whole(msgspec.json.encode({"usage": {}}))

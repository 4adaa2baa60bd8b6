"""Each cap from both sides, and what no value may do to a check."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.errors import InvalidRequest
from gateway.settings import Caps
from gateway.wire import caps, media
from gateway.wire.caps import LONGEST_LIST, LONGEST_WORDS, SCHEMA_DEPTH, Check

CAPS = Caps()


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def words(size: int) -> str:
    return "x" * (size - 2)  # its quotes count


def accept(check: Check, value: object, allowed: Caps = CAPS) -> None:
    check("field", Raw(json.dumps(value).encode()), allowed)


def refuse(check: Check, value: object, allowed: Caps = CAPS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        accept(check, value, allowed)
    assert caught.value.param == "field"
    assert str(caught.value).startswith("`field")
    return str(caught.value)


def judged(check: Check, value: bytes) -> str | None:
    """Which field a refusal names, or that there is none."""
    try:
        check("field", Raw(value), CAPS)
    except InvalidRequest as exc:
        return exc.param
    return "accepted"


JUDGED = ("accepted", "field")

BOUNDARIES: list[tuple[Check, Caps, object, object]] = [
    (caps.choices, Caps(), 8, 9),
    (caps.choices, Caps(n=1), 1, 2),
    (caps.choices, Caps(), 1, 0),
    (caps.choices, Caps(), None, -1),
    (caps.logprobs, Caps(), 20, 21),
    (caps.logprobs, Caps(logprobs=0), 0, 1),
    (caps.logprobs, Caps(logprobs=0), False, True),
    (caps.logprobs, Caps(logprobs=1), True, 2),
    (caps.logprobs, Caps(), None, -1),
    (caps.prompt_logprobs, Caps(), 0, 1),
    (caps.prompt_logprobs, Caps(prompt_logprobs=5), 5, 6),
    (caps.prompt_logprobs, Caps(), None, -1),
    (caps.beam_search, Caps(), False, True),
    (caps.beam_search, Caps(), None, "true"),
    (caps.tools, Caps(tools=2), [{}, {}], [{}] * 3),
    (caps.tools, Caps(), [nested(SCHEMA_DEPTH)], [{}, nested(SCHEMA_DEPTH + 1)]),
    (caps.schema, Caps(schema=100), words(100), words(101)),
    (caps.schema, Caps(), nested(SCHEMA_DEPTH), nested(SCHEMA_DEPTH + 1)),
    (
        caps.schema,
        Caps(),
        [{}, [{}], "[[[[" * 40] * 40,
        [[[[{"a": nested(SCHEMA_DEPTH - 4)}]]]],
    ),
    (caps.messages, Caps(messages=2), [{}, {}], [{}] * 3),
    (caps.prompts, Caps(prompts=2), ["a", "b"], ["a", "b", "c"]),
    (caps.prompts, Caps(prompts=1), [1, 2, 3], [[1], [2]]),
    (caps.prompts, Caps(prompts=1), "text", ["a", "b"]),
    (caps.inputs, Caps(inputs=2), [[1, 2, 3], [4]], [[1], [2], [3]]),
    (caps.inputs, Caps(inputs=1), [], ["a", "b"]),
    (caps.encoding, Caps(), "base64", "bytes"),
    (caps.encoding, Caps(), "float", "bytes_only"),
    (caps.encoding, Caps(), None, 1),
    (caps.word_list, Caps(), ["a"] * LONGEST_LIST, ["a"] * (LONGEST_LIST + 1)),
    (caps.word_list, Caps(), words(LONGEST_WORDS), words(LONGEST_WORDS + 1)),
    (caps.token_list, Caps(), [1] * LONGEST_LIST, [1] * (LONGEST_LIST + 1)),
    (
        caps.token_map,
        Caps(),
        {str(n): 1 for n in range(LONGEST_LIST)},
        {str(n): 1 for n in range(LONGEST_LIST + 1)},
    ),
    (caps.template_arguments, Caps(), {"enable_thinking": False}, {"chat_template": "x"}),
    (caps.template_arguments, Caps(), {"a": "x", "b": 1.5, "c": None}, {"a": {}}),
    (caps.template_arguments, Caps(), {}, {"a": []}),
    (caps.template_arguments, Caps(), None, {"tokenize": None}),
    (caps.template_arguments, Caps(), None, {"add_generation_prompt": True}),
    (caps.template_arguments, Caps(), None, {"continue_final_message": True}),
]


@pytest.mark.parametrize(
    ("check", "allowed", "inside", "outside"),
    BOUNDARIES,
    ids=[f"{check.__name__}-{n}" for n, (check, *_) in enumerate(BOUNDARIES)],
)
def test_a_cap_holds_on_both_its_sides(
    check: Check, allowed: Caps, inside: object, outside: object
) -> None:
    accept(check, inside, allowed)
    refuse(check, outside, allowed)


CHECKS: list[Check] = sorted({check for check, *_ in BOUNDARIES}, key=lambda check: check.__name__)


@pytest.mark.parametrize("size", [1, 300_000])
def test_more_messages_than_allowed_are_not_looked_into(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of 32 MiB has room for millions of them, and the event loop waits for each."""
    monkeypatch.setattr(media, "possible_in", lambda content: pytest.fail("looked into"))
    refuse(caps.messages, [{"content": []}] * 3 + [{"content": "x" * size}], Caps(messages=3))


def test_a_large_value_is_counted_before_anything_is_made_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(media, "none_in", lambda value, most: pytest.fail("made of each"))
    refuse(caps.messages, [{"content": "x" * 300_000}] * 2, Caps(messages=1))


def test_a_large_value_of_text_alone_passes() -> None:
    accept(caps.messages, [{"content": "x" * 300_000}] * 2, Caps(messages=2))


@pytest.mark.parametrize("check", [caps.choices, caps.logprobs, caps.prompts, caps.tools])
def test_a_refusal_names_the_field_what_was_sent_and_the_cap(check: Check) -> None:
    allowed = Caps(n=1, logprobs=1, prompts=1, tools=1)
    value: object = 7 if check in (caps.choices, caps.logprobs) else [{}] * 7
    message = refuse(check, value, allowed)
    assert " 7" in message
    assert message.endswith("is over this gateway's cap of 1.")


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (caps.choices, "8"),
        (caps.choices, True),
        (caps.choices, 1.5),
        (caps.choices, 10**30),
        (caps.logprobs, "1"),
        (caps.logprobs, [1]),
        (caps.prompt_logprobs, "1"),
        (caps.tools, {}),
        (caps.messages, "x"),
        (caps.word_list, 1),
        (caps.token_list, {}),
        (caps.token_map, []),
        (caps.template_arguments, "x"),
    ],
)
def test_a_value_of_another_type_is_refused(check: Check, value: object) -> None:
    assert "field" in refuse(check, value)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"content":['])
def test_no_depth_brings_a_check_down(check: Check, opening: str) -> None:
    assert judged(check, opening.encode() * 50_000) in JUDGED


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.sampled_from(CHECKS), _json)
def test_a_check_accepts_or_refuses_and_does_nothing_else(check: Check, value: object) -> None:
    assert judged(check, json.dumps(value).encode()) in JUDGED


@pytest.mark.parametrize("check", [caps.messages, caps.system, caps.inputs])
def test_a_key_that_is_no_unicode_is_refused_or_left_to_the_engine(check: Check) -> None:
    values = [rb'[{"content":[{"\ud800":1}]}]', rb'[{"\ud800":1}]', rb'[{"content":"\ud800"}]']
    for value in values:
        assert judged(check, value) in JUDGED


def test_brackets_inside_words_do_not_nest() -> None:
    accept(caps.schema, {"pattern": '[["\\[{' * 100, 'a"[[[': "]"})


def test_a_schema_is_measured_in_bytes_not_characters() -> None:
    value = Raw('"éé"'.encode())
    caps.schema("field", value, Caps(schema=6))
    with pytest.raises(InvalidRequest, match="6 bytes"):
        caps.schema("field", value, Caps(schema=5))


@pytest.mark.parametrize(("value", "number"), [(b"null", None), (b"0", 0), (b"96", 96)])
def test_an_output_limit_is_read(value: bytes, number: int | None) -> None:
    assert caps.output_tokens("max_tokens", Raw(value)) == number


@pytest.mark.parametrize("value", [b"-1", b'"8"', b"true", b"1.5", b"[]"])
def test_an_output_limit_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        caps.output_tokens("max_tokens", Raw(value))
    assert caught.value.param == "max_tokens"


def test_a_type_error_says_what_was_expected() -> None:
    with pytest.raises(InvalidRequest, match=r"^`n`: Expected `int \| null`, got `str`\.$"):
        caps.decode("n", Raw(b'"x"'), msgspec.json.Decoder(int | None))


def depth(document: object) -> int:
    if isinstance(document, dict):
        return 1 + max(map(depth, document.values()), default=0)
    if isinstance(document, list):
        return 1 + max(map(depth, document), default=0)
    return 0


@given(
    st.recursive(
        st.text(alphabet='[]{}"\\a\né') | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[{"\\'), inner),
    ),
    st.integers(0, 8),
    st.booleans(),
)
def test_depth_is_that_of_the_document_whatever_its_texts_hold(
    document: object, limit: int, ascii_only: bool
) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only).encode()
    assert caps.deeper_than(limit, text) == (depth(document) > limit)


@pytest.mark.parametrize("inner", ["[]", "{}", '{"[":[]}', '["\\\\","\\"]",[[]]]', '"[[["'])
@pytest.mark.parametrize("wide", [1, 10_000])
def test_depth_of_a_large_document_is_exact(inner: str, wide: int) -> None:
    each = depth(json.loads(inner))
    for deep in (0, 5, 150):
        text = "[" * deep + f"[{','.join([inner] * wide)}]" + "]" * deep
        assert not caps.deeper_than(deep + 1 + each, text.encode())
        assert caps.deeper_than(deep + each, text.encode())


@pytest.mark.parametrize("space", [0, 1, 500])
def test_a_list_of_ids_is_one_prompt_wherever_it_begins(space: int) -> None:
    value = Raw(b"[" + b" " * space + b"1,2,3]")
    caps.prompts("field", value, Caps(prompts=1))


@given(
    st.recursive(
        st.text(alphabet='[]{}"\\a\né') | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[{"\\'), inner),
    ),
    st.integers(1, 7),
)
def test_depth_is_the_same_in_whatever_pieces_it_comes(document: object, size: int) -> None:
    text = json.dumps(document).encode()
    nesting = caps.Nesting()
    for at in range(0, len(text), size):
        nesting.feed(text[at : at + size])
    assert nesting.deepest == depth(document)

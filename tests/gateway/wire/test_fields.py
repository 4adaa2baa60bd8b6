"""The table of fields: every field an engine has is in exactly one list, and each list holds."""

import json
from typing import Any

import pytest
from msgspec import Raw

from gateway.errors import InvalidRequest
from gateway.settings import Caps
from gateway.terms import PRIVILEGED
from gateway.wire.fields import FIELDS, checked, user
from gateway.wire.media import NOTHING
from tests.gateway.wire import RECORDED, raw

#: What the engine's own schema names, per path.
ENGINE: dict[str, list[str]] = json.loads((RECORDED / "openapi_fields.json").read_bytes())
#: Of the OpenAI API, and harmless to an engine that does not know it.
BEYOND = {"/v1/completions": {"best_of"}}

PATHS = pytest.mark.parametrize("path", sorted(FIELDS))


CAPS = Caps()


def sent(
    path: str, fields: dict[str, Any], allowed: Caps = CAPS, *, keep: bool = False
) -> set[str]:
    """The names of what passes on."""
    return set(checked(path, raw(**fields), allowed, keep_unknown=keep)[0])


def test_the_recorded_schema_has_every_path() -> None:
    assert set(ENGINE) == set(FIELDS)


@PATHS
def test_every_field_of_the_engine_is_in_exactly_one_list(path: str) -> None:
    listed, engine = set(FIELDS[path]), set(ENGINE[path])
    assert engine - listed - PRIVILEGED == set(), "in no list"
    assert listed & PRIVILEGED == set(), "in two lists"
    assert listed - engine == BEYOND.get(path, set()), "not a field of the engine"


def test_every_privileged_field_is_one_of_the_engine() -> None:
    assert set().union(*ENGINE.values()) >= PRIVILEGED - {"uuid"}  # which stands in messages


@PATHS
@pytest.mark.parametrize("name", sorted(PRIVILEGED))
@pytest.mark.parametrize("keep", [False, True])
def test_a_privileged_field_needs_the_configurations_leave(
    path: str, name: str, keep: bool
) -> None:
    with pytest.raises(InvalidRequest, match=f"`{name}` is not allowed") as caught:
        sent(path, {name: None}, keep=keep)
    assert caught.value.param == name
    assert sent(path, {name: 1}, Caps(privileged={name: "allow"}), keep=keep) == {name}


@PATHS
def test_leave_for_one_privileged_field_is_for_no_other(path: str) -> None:
    with pytest.raises(InvalidRequest, match="`priority`"):
        sent(path, {"cache_salt": "s", "priority": 1}, Caps(privileged={"cache_salt": "allow"}))


@PATHS
def test_every_field_that_passes_does_so_with_its_bytes(path: str) -> None:
    passing = [name for name, check in FIELDS[path].items() if check is None]
    value = Raw(b' {"a" : [1.50]}')
    given = dict.fromkeys(passing, value)
    assert checked(path, given, Caps(), keep_unknown=False) == (given, NOTHING)


@PATHS
def test_a_null_is_as_good_as_an_absent_field(path: str) -> None:
    fields = dict.fromkeys(FIELDS[path])
    assert sent(path, fields) == set(fields)


@PATHS
@pytest.mark.parametrize("name", ["guided_json", "", "MODEL", "model ", "x" * 500])
def test_an_unknown_field_is_dropped_refused_or_kept(path: str, name: str) -> None:
    fields = {"model": "m", name: 1}
    assert sent(path, fields) == {"model"}
    assert sent(path, fields, keep=True) == {"model", name}
    strict = Caps(unknown_fields="refuse")
    assert sent(path, fields, strict, keep=True) == {"model", name}
    with pytest.raises(InvalidRequest, match="Unknown field") as caught:
        sent(path, fields, strict)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"n": 9}),
        ("/v1/chat/completions", {"top_logprobs": 21}),
        ("/v1/chat/completions", {"prompt_logprobs": 1}),
        ("/v1/chat/completions", {"use_beam_search": True}),
        ("/v1/chat/completions", {"tools": [{}] * 257}),
        ("/v1/chat/completions", {"messages": [{}] * 4097}),
        ("/v1/chat/completions", {"chat_template_kwargs": {"chat_template": "x"}}),
        ("/v1/chat/completions", {"logit_bias": {str(n): 1 for n in range(4097)}}),
        ("/v1/chat/completions", {"response_format": "x" * (64 << 10)}),
        ("/v1/chat/completions", {"structured_outputs": "x" * (64 << 10)}),
        ("/v1/completions", {"n": 9}),
        ("/v1/completions", {"best_of": 9}),
        ("/v1/completions", {"logprobs": 21}),
        ("/v1/completions", {"prompt": [""] * 17}),
        ("/v1/completions", {"stop": [""] * 4097}),
        ("/v1/completions", {"bad_words": [""] * 4097}),
        ("/v1/completions", {"allowed_token_ids": [1] * 4097}),
        ("/v1/completions", {"stop_token_ids": [1] * 4097}),
        ("/v1/completions", {"logprob_token_ids": [1] * 4097}),
        ("/v1/embeddings", {"input": [""] * 2049}),
        ("/v1/embeddings", {"encoding_format": "bytes"}),
        ("/v1/embeddings", {"messages": [{}] * 4097}),
        ("/v1/embeddings", {"chat_template_kwargs": {"tokenize": False}}),
        ("/v1/messages", {"messages": [{}] * 4097}),
        ("/v1/messages", {"tools": [{}] * 257}),
        ("/v1/messages", {"stop_sequences": [""] * 4097}),
        ("/v1/messages", {"output_config": "x" * (64 << 10)}),
        ("/v1/messages", {"chat_template_kwargs": {"chat_template": "x"}}),
        ("/v1/messages", {"system": [{"image_url": "http://h"}]}),
        ("/v1/messages/count_tokens", {"messages": [{}] * 4097}),
        ("/v1/messages/count_tokens", {"tools": [{}] * 257}),
        ("/v1/messages/count_tokens", {"system": [{"image_url": "http://h"}]}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_the_table_has_a_cap_where_it_must(path: str, fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(InvalidRequest, match=f"`{name}") as caught:
        sent(path, fields)
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, ""),
        ({"user": "bo"}, "bo"),
        ({"metadata": {"user_id": "bo", "more": 1}}, "bo"),
        ({"user": "bo", "metadata": {"user_id": "cy"}}, "bo"),
        ({"user": "", "metadata": {"user_id": "cy"}}, "cy"),
        ({"user": None, "metadata": None}, ""),
        ({"metadata": {}}, ""),
        ({"user": 7}, ""),
        ({"user": ["bo"]}, ""),
        ({"metadata": "bo"}, ""),
        ({"metadata": {"user_id": 7}}, ""),
    ],
)
def test_a_callers_own_user_is_found_in_either_dialect(fields: dict[str, Any], name: str) -> None:
    assert user(raw(**fields)) == name


def test_a_user_written_in_another_way_is_the_same_one() -> None:
    assert (
        user({"user": Raw(b'"b\\u00f6"')}) == user({"user": Raw('"b\u00f6"'.encode())}) == "b\u00f6"
    )


def test_what_cannot_be_a_user_is_left_to_the_engine() -> None:
    assert user({"user": Raw(b'"\\ud800"')}) == ""
    assert user({"metadata": Raw(b"[" * 10_000 + b"]" * 10_000)}) == ""

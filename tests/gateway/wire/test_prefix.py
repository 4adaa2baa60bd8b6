"""A conversation's turns are told apart from any other's, and from nothing else."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gateway.wire.fields import FIELDS
from gateway.wire.prefix import affinity

CHAT, MESSAGES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/completions"
HI = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = [{"type": "function", "function": {"name": "look"}}]
EPHEMERAL = {"cache_control": {"type": "ephemeral"}}


def key(path: str = CHAT, **fields: Any) -> bytes:
    sent = {name: Raw(json.dumps(value).encode()) for name, value in fields.items()}
    return affinity(path, sent)


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


_contents = st.text(max_size=20) | st.lists(
    st.builds(text, st.text(max_size=20)), min_size=1, max_size=3
)
_roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
_messages = st.lists(st.fixed_dictionaries({"role": _roles, "content": _contents}), max_size=4)


@given(
    path=st.sampled_from([CHAT, MESSAGES]),
    before=st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": _contents})),
    said=_contents,
    later=_messages,
    more=st.dictionaries(
        st.sampled_from(["stream", "max_tokens", "temperature", "model", "metadata", "thinking"]),
        st.integers() | st.text() | st.none(),
    ),
)
def test_later_messages_and_other_fields_never_change_it(
    path: str, before: list[Any], said: Any, later: list[Any], more: dict[str, Any]
) -> None:
    first = [*before[:15], {"role": "user", "content": said}]
    known = key(path, messages=first)
    assert len(known) == 16
    assert key(path, messages=[*first, *later], **more) == known


@given(_messages, _messages)
def test_what_has_a_key_keeps_it_however_it_goes_on(said: list[Any], later: list[Any]) -> None:
    known = key(messages=said)
    assert known == (key(messages=said + later) if any(m["role"] == "user" for m in said) else b"")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_another_beginning_is_another_conversation(path: str) -> None:
    fields: list[dict[str, Any]] = [
        {"messages": [HI]},
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"messages": [SYSTEM, HI]},
        {"messages": [{"role": "assistant", "content": "Be brief."}, HI]},
        {"messages": [HI], "tools": TOOLS},
        {"messages": [HI], "system": "Be brief."},
        {"messages": [HI], "system": [text("Be brief."), text("Be kind.")]},
        {"messages": [{"role": "user", "content": [text("Hi"), text("there")]}]},
        {"messages": [{"role": "user", "content": [text("Hi"), {"type": "image", "source": "a"}]}]},
        {"messages": [{"role": "user", "content": [text("Hi"), {"type": "image", "source": "b"}]}]},
    ]
    keys = [key(path, **each) for each in fields]
    assert all(keys)
    assert len(set(keys)) == len(keys)


def test_marks_for_a_cache_may_move_from_message_to_message() -> None:
    marked = {"role": "user", "content": [text("Hi", **EPHEMERAL)]}
    first = key(MESSAGES, system=[text("Be brief.", **EPHEMERAL)], messages=[marked])
    later = [HI, {"role": "assistant", "content": "Yes?"}, marked]
    assert key(MESSAGES, system="Be brief.", messages=later) == first
    picture = {"type": "image", "source": "a"}
    bare, with_mark = ({"role": "user", "content": [p]} for p in (picture, picture | EPHEMERAL))
    assert key(MESSAGES, messages=[with_mark]) == key(MESSAGES, messages=[bare])


@pytest.mark.parametrize("place", ["system", "message"])
def test_what_the_engine_strips_is_not_looked_at(place: str) -> None:
    def turn(number: int) -> bytes:
        system = [text(f"x-anthropic-billing-header: cch={number};"), text("Be brief.")]
        if place == "system":
            return key(MESSAGES, system=system, messages=[HI])
        return key(MESSAGES, messages=[{"role": "system", "content": system}, HI])

    assert turn(1) == turn(2) != b""


def test_the_name_a_caller_gives_a_conversation_goes_before_its_messages() -> None:
    named = key(messages=[HI], prompt_cache_key="one")
    assert named == key(messages=[SYSTEM], prompt_cache_key="one")
    assert named == key(COMPLETIONS, prompt="Once", prompt_cache_key="one")
    assert named != key(messages=[HI], prompt_cache_key="two")
    for nothing in ("", None, 7):
        assert key(messages=[HI], prompt_cache_key=nothing) == key(messages=[HI])


def test_who_the_user_is_is_no_conversation() -> None:
    assert key(MESSAGES, messages=[SYSTEM], metadata={"user_id": "ann"}) == b""
    assert key(messages=[HI], user="ann") == key(messages=[HI], user="bob")


def test_a_prompt_is_known_by_its_first_kilobyte_as_it_cannot_change_any_more() -> None:
    long = "x" * 1024
    assert key(COMPLETIONS, prompt=long) == key(COMPLETIONS, prompt=long + "y") != b""
    assert key(COMPLETIONS, prompt="z" + long) != key(COMPLETIONS, prompt=long)
    assert key(COMPLETIONS, prompt="x" * 1022) == b""
    ids = list(range(1000))
    assert key(COMPLETIONS, prompt=ids) == key(COMPLETIONS, prompt=[*ids, 7]) != b""


@pytest.mark.parametrize("path", FIELDS.keys() - {CHAT, MESSAGES, COMPLETIONS})
def test_what_has_no_turns_has_no_conversation(path: str) -> None:
    assert key(path, messages=[HI], input="Hi", prompt_cache_key="one") == b""


@pytest.mark.parametrize(
    "written",
    [
        "",
        "7",
        "null",
        "[7]",
        "[{]",
        '[{"role":7,"content":"Hi"}]',
        '[{"role":"user","content":[7]}]',
    ]
    + ["[" * 5000 + "]" * 5000, '[{"role":"user","content":[' + "[" * 5000 + "]" * 5000 + "]}]"],
)
def test_what_is_wrong_with_a_request_is_the_engines_to_say(written: str) -> None:
    assert affinity(CHAT, {"messages": Raw(written.encode())}) == b""
    assert affinity(CHAT, {}) == b""


@pytest.mark.parametrize(
    "content", ["Hi", None, 7, {}, [], [text("Hi")], [{"type": "image"}], [text("Hi"), {"text": 7}]]
)
def test_any_first_message_of_a_user_has_a_key(content: Any) -> None:
    first = [{"role": "user", "content": content}]
    assert key(messages=first) == key(messages=[*first, SYSTEM]) != b""


def test_only_so_much_of_a_text_is_hashed_and_what_follows_it_still_counts() -> None:
    system, more = "x" * (16 * 1024), "y" * (1 << 20)
    known = key(MESSAGES, system=system, messages=[HI])
    assert key(MESSAGES, system=system + more, messages=[HI]) == known
    assert key(MESSAGES, system=system, messages=[SYSTEM, HI]) != known


def test_a_user_who_is_silent_for_long_has_no_conversation_yet() -> None:
    assert key(messages=[*[SYSTEM] * 15, HI]) == key(messages=[*[SYSTEM] * 15, HI, HI]) != b""
    assert key(messages=[*[SYSTEM] * 16, HI]) == b""


def test_a_request_of_many_megabytes_costs_little() -> None:
    picture = {"role": "user", "content": [{"type": "image", "source": "A" * (8 << 20)}]}
    sent = {"messages": Raw(json.dumps([HI, *[picture] * 2]).encode())}
    began = time.process_time()
    assert affinity(CHAT, sent) == key(messages=[HI])
    assert time.process_time() - began < 1

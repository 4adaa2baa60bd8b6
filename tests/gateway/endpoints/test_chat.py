"""Chat: its two names for the output limit, and usage in its streams."""

from typing import Any

import orjson
import pytest

from gateway.endpoints.chat import Chat
from gateway.errors import InvalidRequest
from gateway.settings import Caps, MaxTokens
from gateway.terms import Size
from tests.gateway.endpoints import CAPS, route, sized, upstream

CAP = Caps(max_tokens=MaxTokens(cap=100))


def test_both_names_of_the_limit_are_clamped() -> None:
    body = upstream(Chat(), CAP, model="m", messages=[], max_tokens=500, max_completion_tokens=400)
    assert (body["max_tokens"], body["max_completion_tokens"]) == (100, 100)


def test_the_larger_of_two_limits_cannot_hide_behind_the_smaller() -> None:
    refuse = Caps(max_tokens=MaxTokens(cap=100, over="refuse"))
    with pytest.raises(InvalidRequest) as caught:
        upstream(Chat(), refuse, model="m", messages=[], max_tokens=500, max_completion_tokens=1)
    assert caught.value.param == "max_tokens"


def test_the_cap_is_given_under_the_name_of_today() -> None:
    body = upstream(Chat(), CAP, model="m", messages=[])
    assert body["max_completion_tokens"] == 100
    assert "max_tokens" not in body


@pytest.mark.parametrize("asked", [True, False])
def test_usage_is_asked_for_only_of_servers_that_tell_it(asked: bool) -> None:
    ask = Chat().read(orjson.dumps({"model": "m", "messages": [], "stream": True}))
    wire = Chat().translator(ask, route(usage_in_streams=asked), CAPS)
    assert (b"include_usage" in wire.request("upstream")) == asked


def test_a_template_may_be_given_plain_arguments() -> None:
    arguments = {"enable_thinking": False}
    body = upstream(Chat(), model="m", messages=[], chat_template_kwargs=arguments)
    assert body["chat_template_kwargs"] == arguments
    with pytest.raises(InvalidRequest, match="chat_template"):
        upstream(Chat(), model="m", messages=[], chat_template_kwargs={"chat_template": "x"})


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": None, "max_tokens": 50}, 50),
        ({"max_completion_tokens": 400, "max_tokens": 1}, 400),
        ({"max_completion_tokens": 0}, 0),
    ],
)
def test_a_small_limit_cannot_hide_the_one_that_the_engine_takes(
    limits: dict[str, Any], expected: int | None
) -> None:
    assert sized(Chat(), messages=[], **limits).output_limit == expected


def test_the_limit_is_what_the_caps_leave_of_it() -> None:
    assert sized(Chat(), CAP, messages=[], max_tokens=500).output_limit == 100
    assert sized(Chat(), CAP, messages=[], max_tokens=5).output_limit == 5
    assert sized(Chat(), CAP, messages=[]).output_limit == 100


def test_each_choice_weighs_one() -> None:
    assert sized(Chat(), messages=[], n=8) == Size(len("[]"), answers=8)

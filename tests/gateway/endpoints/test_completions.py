"""Completions: prompts in their four shapes, and usage in its streams."""

from typing import Any

import orjson
import pytest

from gateway.endpoints.completions import Completions
from gateway.errors import InvalidRequest
from gateway.settings import Caps, MaxTokens
from gateway.terms import Size
from tests.gateway.endpoints import CAPS, route, sized, upstream


@pytest.mark.parametrize("prompt", ["x", ["x", "y"], [1, 2], [[1], [2]]])
def test_a_prompt_passes_in_each_of_its_shapes(prompt: object) -> None:
    assert upstream(Completions(), model="m", prompt=prompt)["prompt"] == prompt


ECHOED: dict[str, Any] = {"model": "m", "prompt": "x", "echo": True}


@pytest.mark.parametrize("more", [{}, {"prompt_logprobs": None}])
def test_an_echo_is_no_way_past_the_cap_on_prompt_logprobs(more: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="prompt_logprobs") as caught:
        upstream(Completions(), logprobs=1, **ECHOED, **more)
    assert caught.value.param == "logprobs"
    allowed = Caps(prompt_logprobs=5)
    assert upstream(Completions(), allowed, logprobs=5, **ECHOED, **more)["logprobs"] == 5
    with pytest.raises(InvalidRequest, match="prompt_logprobs"):
        upstream(Completions(), allowed, logprobs=6, **ECHOED, **more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": None},
        {"logprobs": 0},
        {"logprobs": 5, "prompt_logprobs": 0},
        {"logprobs": 5, "echo": False},
        {"logprobs": 5, "echo": None},
    ],
)
def test_an_echo_without_logprobs_of_the_prompt_passes(more: dict[str, Any]) -> None:
    assert upstream(Completions(), **{**ECHOED, **more})["prompt"] == "x"


def test_the_cap_is_given_under_the_only_name_it_has() -> None:
    body = upstream(Completions(), Caps(max_tokens=MaxTokens(cap=9)), model="m", prompt="x")
    assert body["max_tokens"] == 9
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize("asked", [True, False])
def test_usage_is_asked_for_only_of_servers_that_tell_it(asked: bool) -> None:
    ask = Completions().read(orjson.dumps({"model": "m", "prompt": "x", "stream": True}))
    wire = Completions().translator(ask, route(usage_in_streams=asked), CAPS)
    assert (b"include_usage" in wire.request("upstream")) == asked


def test_each_choice_of_each_prompt_weighs_one() -> None:
    size = sized(Completions(), prompt=[[1, 2], [3]], n=3, max_tokens=7)
    assert size == Size(0, 3, output_limit=7, answers=6)

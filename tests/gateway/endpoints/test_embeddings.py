"""Embeddings: texts, token ids or messages, never a stream, never a limit of output."""

import pytest

from gateway.endpoints.embeddings import Embeddings
from gateway.errors import InvalidRequest
from gateway.settings import Caps, MaxTokens
from gateway.terms import Size
from tests.gateway.endpoints import sized, upstream


@pytest.mark.parametrize("given", ["x", ["x", "y"], [1, 2], [[1], [2]]])
def test_an_input_passes_in_each_of_its_shapes(given: object) -> None:
    assert upstream(Embeddings(), model="m", input=given)["input"] == given


def test_messages_stand_for_an_input() -> None:
    talk = [{"role": "user", "content": "hi"}]
    assert upstream(Embeddings(), model="m", messages=talk)["messages"] == talk
    with pytest.raises(InvalidRequest, match="`input` is missing"):
        upstream(Embeddings(), model="m")


def test_embeddings_do_not_stream() -> None:
    with pytest.raises(InvalidRequest, match="does not stream") as caught:
        upstream(Embeddings(), model="m", input="x", stream=True)
    assert caught.value.param == "stream"


def test_no_limit_of_output_is_added() -> None:
    body = upstream(Embeddings(), Caps(max_tokens=MaxTokens(cap=9)), model="m", input="x")
    assert body == {"model": "upstream", "input": "x"}


def test_an_answer_in_bytes_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="`float` or `base64`"):
        upstream(Embeddings(), model="m", input="x", encoding_format="bytes")


def test_an_input_of_messages_brings_no_media_in() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    with pytest.raises(InvalidRequest, match="media URLs are not allowed"):
        upstream(Embeddings(), model="m", input=[{"role": "user", "content": [part]}])


def test_all_inputs_together_weigh_one_and_answer_with_no_token() -> None:
    assert sized(Embeddings(), input=["ab", "c"]) == Size(len('["ab","c"]'), output_limit=0)
    assert sized(Embeddings(), input=[[1, 2], [3]]) == Size(0, 3, output_limit=0)

"""Counting tokens: a request like that of messages, without what would generate."""

import pytest

from gateway.endpoints import ENDPOINTS
from gateway.endpoints.count_tokens import CountTokens
from gateway.errors import InvalidRequest
from gateway.settings import Caps, MaxTokens
from gateway.terms import Size
from tests.gateway.endpoints import sized, upstream


def test_a_request_passes_without_what_generates() -> None:
    body = upstream(CountTokens(), model="m", messages=[], system="s", max_tokens=5, temperature=1)
    assert body == {"model": "upstream", "messages": [], "system": "s"}


def test_no_limit_of_output_is_added() -> None:
    body = upstream(CountTokens(), Caps(max_tokens=MaxTokens(cap=9)), model="m", messages=[])
    assert body == {"model": "upstream", "messages": []}


def test_counting_does_not_stream() -> None:
    with pytest.raises(InvalidRequest, match="does not stream"):
        upstream(CountTokens(), model="m", messages=[], stream=True)


def test_counting_costs_a_request_and_no_tokens() -> None:
    assert sized(CountTokens(), messages=[]) == Size(len("[]"), output_limit=0)
    assert [e.path for e in ENDPOINTS if not e.charges_tokens] == [CountTokens.path]

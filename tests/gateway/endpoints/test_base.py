"""What every JSON endpoint does with a request: its shape, its model, its cap on the output."""

import sys
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.endpoints import ENDPOINTS
from gateway.endpoints.base import ANTHROPIC, OPENAI, Endpoint, speech
from gateway.errors import InvalidRequest, NotFound, Overloaded
from gateway.settings import Caps, MaxTokens
from gateway.wire.fields import FIELDS
from tests.gateway.endpoints import route, upstream

ALL = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
STREAMING = [e for e in ENDPOINTS if e.path not in ("/v1/embeddings", "/v1/messages/count_tokens")]
LIMITED = pytest.mark.parametrize("endpoint", STREAMING, ids=lambda endpoint: endpoint.path)

#: What makes a request of any endpoint.
WHOLE = {"model": "m", "messages": [], "prompt": "x", "input": "x"}


def whole(endpoint: Endpoint, **more: Any) -> dict[str, Any]:
    known = FIELDS[endpoint.path]
    return {name: value for name, value in WHOLE.items() if name in known} | more


def read(endpoint: Endpoint, body: bytes) -> str | None:
    """The code of the refusal, or None where the request is read."""
    try:
        endpoint.read(body)
    except InvalidRequest as exc:
        return exc.code
    return None


def test_each_path_is_served_once_and_has_its_fields() -> None:
    assert sorted(endpoint.path for endpoint in ENDPOINTS) == sorted(FIELDS)


@ALL
def test_a_whole_request_is_read(endpoint: Endpoint) -> None:
    ask = endpoint.read(orjson.dumps(whole(endpoint)))
    assert (ask.model, ask.stream, ask.wants_usage) == ("m", False, False)


@ALL
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b'{"model":"m"',
        b'{"model":"m"}x',
        b"{'model':1}",
        b'{"a":NaN}',
        b'{"a":\xff}',
        b'{"\\ud800":1}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=range(14),
)
def test_what_is_no_json_object_is_refused(endpoint: Endpoint, body: bytes) -> None:
    assert read(endpoint, body) == "invalid_json"


@ALL
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python has a stack for it")
def test_what_nests_deeper_than_python_goes_is_refused(endpoint: Endpoint) -> None:
    body = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert read(endpoint, body) == "invalid_json"


@ALL
@settings(deadline=None)
@given(body=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(endpoint: Endpoint, body: bytes) -> None:
    assert read(endpoint, body) in ("invalid_json", "missing_required_parameter")


@ALL
def test_a_model_is_needed_and_is_a_text(endpoint: Endpoint) -> None:
    fields = whole(endpoint)
    del fields["model"]
    with pytest.raises(InvalidRequest, match="`model` is missing") as caught:
        endpoint.read(orjson.dumps(fields))
    assert (caught.value.param, caught.value.code) == ("model", "missing_required_parameter")
    odds: list[object] = [None, 1, ["m"], {}]
    for odd in odds:
        with pytest.raises(InvalidRequest, match="`model`"):
            endpoint.read(orjson.dumps(whole(endpoint, model=odd)))


@ALL
def test_a_request_is_nothing_without_its_content(endpoint: Endpoint) -> None:
    with pytest.raises(InvalidRequest, match="is missing") as caught:
        endpoint.read(b'{"model":"m"}')
    assert caught.value.param in WHOLE


@LIMITED
@pytest.mark.parametrize(("sent", "stream"), [(True, True), (False, False), (None, False)])
def test_a_stream_is_one_where_it_is_asked_for(
    endpoint: Endpoint, sent: object, stream: bool
) -> None:
    assert endpoint.read(orjson.dumps(whole(endpoint, stream=sent))).stream == stream


@ALL
@pytest.mark.parametrize("odd", ["true", 1, {}])
def test_a_stream_is_asked_for_with_a_boolean(endpoint: Endpoint, odd: object) -> None:
    with pytest.raises(InvalidRequest, match="`stream`"):
        endpoint.read(orjson.dumps(whole(endpoint, stream=odd)))


@LIMITED
@pytest.mark.parametrize(
    ("options", "wants"),
    [
        (None, False),
        ({}, False),
        ({"include_usage": None}, False),
        ({"include_usage": False}, False),
        ({"include_usage": True}, True),
        ({"include_usage": True, "x": 1}, True),
    ],
)
def test_usage_is_wanted_where_it_is_asked_for(
    endpoint: Endpoint, options: object, wants: bool
) -> None:
    ask = endpoint.read(orjson.dumps(whole(endpoint, stream=True, stream_options=options)))
    assert ask.wants_usage == wants
    plain = endpoint.read(orjson.dumps(whole(endpoint, stream_options=options)))
    assert not plain.wants_usage


@LIMITED
@pytest.mark.parametrize("odd", ["x", [], {"include_usage": "yes"}])
def test_stream_options_of_another_shape_are_refused(endpoint: Endpoint, odd: object) -> None:
    with pytest.raises(InvalidRequest, match="`stream_options`"):
        endpoint.read(orjson.dumps(whole(endpoint, stream=True, stream_options=odd)))


@ALL
def test_the_last_of_two_equal_keys_is_the_only_one_that_passes(endpoint: Endpoint) -> None:
    body = orjson.dumps(whole(endpoint))[:-1] + b',"user":"a","user":"b","model":"n","model":"o"}'
    ask = endpoint.read(body)
    assert ask.model == "o"
    sent = endpoint.translator(ask, route(), Caps()).request("upstream")
    assert sent.count(b'"model"') == 1
    assert b'"a"' not in sent


@ALL
def test_a_key_is_what_it_means_not_how_it_is_spelled(endpoint: Endpoint) -> None:
    body = orjson.dumps(whole(endpoint))[:-1] + rb',"\u0070riority":1}'
    with pytest.raises(InvalidRequest, match="`priority` is not allowed"):
        endpoint.translator(endpoint.read(body), route(), Caps())


@ALL
def test_the_server_is_asked_under_its_own_name(endpoint: Endpoint) -> None:
    assert upstream(endpoint, **whole(endpoint))["model"] == "upstream"


@ALL
def test_an_unknown_field_stays_here_and_is_counted(endpoint: Endpoint) -> None:
    ask = endpoint.read(orjson.dumps(whole(endpoint, odd=1)))
    wire = endpoint.translator(ask, route(), Caps())
    assert b"odd" not in wire.request("upstream")
    assert wire.dropped == 1


def test_a_server_whose_fields_we_do_not_know_gets_them_all() -> None:
    for endpoint in ENDPOINTS[:3]:
        assert upstream(endpoint, kind="openai", **whole(endpoint, odd=1))["odd"] == 1


def test_a_server_is_not_asked_for_what_it_does_not_speak() -> None:
    for endpoint in ENDPOINTS[3:]:
        with pytest.raises(InvalidRequest, match="does not speak") as caught:
            upstream(endpoint, kind="openai", **whole(endpoint))
        assert caught.value.param == "model"


CLAMP = Caps(max_tokens=MaxTokens(cap=100))
REFUSE = Caps(max_tokens=MaxTokens(cap=100, over="refuse"))


@LIMITED
@pytest.mark.parametrize(("sent", "passed"), [(0, 0), (1, 1), (100, 100), (101, 100), (10**9, 100)])
def test_the_output_is_clamped_to_its_cap(endpoint: Endpoint, sent: int, passed: int) -> None:
    body = upstream(endpoint, CLAMP, **whole(endpoint, max_tokens=sent))
    assert body["max_tokens"] == passed
    assert "max_completion_tokens" not in body


@LIMITED
def test_a_request_without_a_limit_is_given_the_cap(endpoint: Endpoint) -> None:
    for fields in (whole(endpoint), whole(endpoint, max_tokens=None)):
        body = upstream(endpoint, CLAMP, **fields)
        assert 100 in (body.get("max_tokens"), body.get("max_completion_tokens"))


@LIMITED
def test_more_than_the_cap_is_refused_where_so_configured(endpoint: Endpoint) -> None:
    assert upstream(endpoint, REFUSE, **whole(endpoint, max_tokens=100))["max_tokens"] == 100
    with pytest.raises(InvalidRequest, match="`max_tokens`: 101 is over this gateway's cap of 100"):
        upstream(endpoint, REFUSE, **whole(endpoint, max_tokens=101))


@LIMITED
@pytest.mark.parametrize("odd", [-1, "8", 1.5, True, []])
def test_an_output_limit_that_is_none_is_refused(endpoint: Endpoint, odd: object) -> None:
    with pytest.raises(InvalidRequest, match="`max_tokens`"):
        upstream(endpoint, **whole(endpoint, max_tokens=odd))


@LIMITED
def test_without_a_cap_the_limit_passes_as_it_is(endpoint: Endpoint) -> None:
    assert upstream(endpoint, **whole(endpoint, max_tokens=10**9))["max_tokens"] == 10**9
    body = upstream(endpoint, **whole(endpoint))
    assert "max_tokens" not in body
    assert "max_completion_tokens" not in body


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messages/batches", ANTHROPIC),
        ("/v1/chat/completions", OPENAI),
        ("/v1/nothing", OPENAI),
        ("/", OPENAI),
    ],
)
def test_a_path_has_its_dialect_even_if_it_does_not_exist(path: str, dialect: object) -> None:
    assert speech(path) is dialect


@ALL
def test_an_endpoint_speaks_its_dialect(endpoint: Endpoint) -> None:
    dialect = speech(endpoint.path)
    exc = Overloaded("Full.")
    assert endpoint.heartbeat == dialect.heartbeat
    assert endpoint.status(exc) == dialect.status(exc)
    assert endpoint.status(exc) == (529 if dialect is ANTHROPIC else 503)
    assert endpoint.status(NotFound("No.")) == 404
    assert endpoint.error_object(exc, "r") == dialect.error_object(exc, "r")
    assert endpoint.error_frame(exc, "r") == dialect.error_frame(exc, "r")

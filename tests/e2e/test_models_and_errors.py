"""Every model list, and every refusal as the exception that the official SDK makes of it."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.e2e.conftest import (
    CHAT,
    CHAT_ALIASES,
    EMBEDDING,
    EMBEDDING_ALIASES,
    LARGEST_BODY,
    RunningGateway,
)
from tests.fakes.client import request

pytestmark = pytest.mark.e2e

NAMES = {CHAT, *CHAT_ALIASES, EMBEDDING, *EMBEDDING_ALIASES}
HELLO = "Say hello."
# Outside English every byte is a token: more of them than the model's whole context.
OVER_LENGTH = [{"role": "user", "content": "é" * 70_000}]


def test_models_are_listed_in_openai_s_shape(openai_client: OpenAI) -> None:
    assert {model.id for model in openai_client.models.list()} == NAMES
    one = openai_client.models.retrieve(CHAT_ALIASES[0])
    assert one.id == CHAT_ALIASES[0]
    assert one.object == "model"


def test_models_are_listed_in_anthropic_s_shape(anthropic_client: Anthropic) -> None:
    assert {model.id for model in anthropic_client.models.list(limit=1000)} == NAMES
    one = anthropic_client.models.retrieve(CHAT)
    assert one.id == CHAT
    assert one.type == "model"
    assert one.display_name


def test_a_key_sees_and_uses_only_its_team_s_models(gateway: RunningGateway) -> None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.other_key, max_retries=0) as client:
        assert {model.id for model in client.models.list()} == {EMBEDDING, *EMBEDDING_ALIASES}
        assert client.embeddings.create(model=EMBEDDING, input="a").data
        for name in (CHAT, CHAT_ALIASES[0], "no-such-model"):
            with pytest.raises(openai.NotFoundError) as caught:
                talk(client, model=name)
            assert caught.value.code == "model_not_found"
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve(name)


def talk(client: OpenAI, **more: Any) -> object:
    given = {"model": CHAT, "messages": [{"role": "user", "content": HELLO}], "max_tokens": 1}
    return client.chat.completions.create(**{**given, **more})


def embed(client: OpenAI, **more: Any) -> object:
    return client.embeddings.create(**{"model": EMBEDDING, "input": HELLO, **more})


def stream(client: OpenAI, **more: Any) -> object:
    return talk(client, stream=True, **more)


@pytest.mark.parametrize(
    ("call", "given", "kind", "param"),
    [
        (talk, {"model": "no-such-model"}, openai.NotFoundError, "model"),
        (embed, {"model": "no-such-model"}, openai.NotFoundError, "model"),
        (talk, {"temperature": "hot"}, openai.BadRequestError, None),
        (talk, {"messages": "hello"}, openai.BadRequestError, "messages"),
        (talk, {"n": 1000}, openai.BadRequestError, "n"),
        (talk, {"extra_body": {"priority": -1}}, openai.BadRequestError, "priority"),
        (talk, {"messages": OVER_LENGTH}, openai.BadRequestError, None),
        (stream, {"messages": OVER_LENGTH}, openai.BadRequestError, None),
        (stream, {"model": "no-such-model"}, openai.NotFoundError, "model"),
        (embed, {"input": HELLO * 1000}, openai.BadRequestError, None),
        (embed, {"encoding_format": "bytes"}, openai.BadRequestError, "encoding_format"),
    ],
    ids=[
        "chat: unknown model",
        "embeddings: unknown model",
        "chat: a field of the wrong type",
        "chat: messages of the wrong type",
        "chat: over a cap",
        "chat: a privileged field",
        "chat: longer than the context",
        "stream: longer than the context",
        "stream: unknown model",
        "embeddings: longer than the context",
        "embeddings: unknown format",
    ],
)
def test_an_openai_refusal_is_its_exception(
    openai_client: OpenAI,
    call: Callable[..., object],
    given: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str | None,
) -> None:
    with pytest.raises(kind) as caught:
        call(openai_client, **given)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert caught.value.request_id in caught.value.message
    assert isinstance(caught.value.code, str)
    if param is not None:
        assert caught.value.param == param


@pytest.mark.parametrize("key", ["fg-nobody-s-key-0123456789", "short", "x" * 400])
def test_a_bad_key_is_an_authentication_error(gateway: RunningGateway, key: str) -> None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            talk(client)
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with Anthropic(base_url=gateway.url, api_key=key, max_retries=0) as claude:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            message(claude)
        assert refused.value.type == "authentication_error"


def message(client: Anthropic, **more: Any) -> object:
    given = {"model": CHAT, "messages": [{"role": "user", "content": HELLO}], "max_tokens": 1}
    return client.messages.create(**{**given, **more})


@pytest.mark.parametrize(
    "given",
    [
        {"extra_body": {"temperature": "hot"}},
        {"messages": "hello"},
        {"messages": OVER_LENGTH},
        {"messages": OVER_LENGTH, "stream": True},
        {"extra_body": {"cache_salt": "a"}},
    ],
    ids=["type", "messages", "length", "length, streamed", "privileged"],
)
def test_a_bad_request_is_anthropic_s_exception(
    anthropic_client: Anthropic, given: dict[str, Any]
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        message(anthropic_client, **given)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id


def test_an_unknown_model_is_anthropic_s_exception(anthropic_client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        message(anthropic_client, model="no-such-model")
    assert caught.value.type == "not_found_error"
    with pytest.raises(anthropic.NotFoundError):
        anthropic_client.models.retrieve("no-such-model")


def test_a_body_over_the_cap_is_too_large_in_both_dialects(
    openai_client: OpenAI, anthropic_client: Anthropic
) -> None:
    huge = [{"role": "user", "content": "a" * LARGEST_BODY}]
    with pytest.raises(openai.APIStatusError) as caught:
        talk(openai_client, messages=huge)
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    with pytest.raises(anthropic.RequestTooLargeError) as refused:
        message(anthropic_client, messages=huge)
    body = refused.value.body
    assert isinstance(body, dict)
    assert body["error"]["type"] == "request_too_large"


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("content-type", "text/plain"),
        ("content-type", "multipart/form-data; boundary=a"),
        ("content-encoding", "gzip"),
    ],
)
async def test_another_content_type_or_encoding_is_a_415(
    gateway: RunningGateway, header: str, value: str
) -> None:
    headers = {**dict(gateway.headers), header: value}
    body = json.dumps({"model": CHAT, "messages": [{"role": "user", "content": HELLO}]}).encode()
    answer = await request(
        gateway.port, "POST", "/v1/chat/completions", list(headers.items()), body
    )
    assert answer.status == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "house-chat"', b"\xff"])
async def test_what_is_no_json_object_is_a_400(gateway: RunningGateway, body: bytes) -> None:
    answer = await request(gateway.port, "POST", "/v1/chat/completions", gateway.headers, body)
    assert answer.status == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_unknown_paths_and_methods_are_json_refusals(gateway: RunningGateway) -> None:
    lost = await request(gateway.port, "POST", "/v1/responses", gateway.headers, b"{}")
    assert (lost.status, lost.json()["error"]["type"]) == (404, "invalid_request_error")
    method = await request(gateway.port, "GET", "/v1/chat/completions", gateway.headers)
    assert (method.status, method.headers.get("allow")) == (405, "POST")

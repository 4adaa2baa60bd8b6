"""The unscripted engine answers in the shapes of the real one."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.client import Client, request
from tests.fakes.engine import Engine
from tests.fakes.posting import ASKED, CHAT, post
from tests.fakes.vllm import WORDS, prompt_tokens

MESSAGES = "/v1/messages"
TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"


def shapes(body: bytes) -> list[Any]:
    """The keys of each document in a body, in order, a repeated one once."""
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n")]
    every = [shape(json.loads(line)) for line in lines if line.startswith(b"{")]
    return [one for one, _ in groupby(every)]


def shape(document: Any) -> Any:
    if isinstance(document, dict):
        return {key: shape(value) for key, value in document.items()}
    return [shape(part) for part in document[:1]] if isinstance(document, list) else None


def data(event: bytes) -> Any:
    return json.loads(event[event.index(b"data: ") + 6 :])


async def test_chat_has_the_shapes_of_the_engine(engine: Engine) -> None:
    whole = await post(engine, CHAT, ASKED, [("x-request-id", "abc")])
    usage = {"prompt_tokens": prompt_tokens(ASKED), "completion_tokens": 3}
    assert whole.json()["id"] == "chatcmpl-abc"
    assert whole.json()["usage"].items() >= usage.items()
    assert whole.json()["choices"][0]["message"]["content"] == "".join(WORDS[:3])
    async with await Client.open(engine.port) as client:
        options = {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
        await client.post(CHAT, {**ASKED, **options})
        status, headers = await client.read_head()
        *events, done = [event async for event in client.read_events()]
    assert (status, headers.get("content-type")) == (200, "text/event-stream; charset=utf-8")
    assert done == b"data: [DONE]\n\n"
    *chunks, last = map(data, events)
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert texts == ["", "", "Hello", "Hello", " from", " from", " the", " the"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-3:]] == [None] + [
        "length"
    ] * 2
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 6


async def test_usage_is_streamed_only_when_asked_for(engine: Engine) -> None:
    for options in ({}, {"stream_options": {"include_usage": False}}):
        answer = await post(engine, CHAT, {**ASKED, "stream": True, **options})
        assert b"usage" not in answer.body
        assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("case", "path"),
    [
        ("chat_plain", CHAT),
        ("chat_stream", CHAT),
        ("chat_stream_usage", CHAT),
        ("chat_stream_n2", CHAT),
        ("completions_stream", "/v1/completions"),
        ("messages_plain", MESSAGES),
        ("messages_stream", MESSAGES),
        ("count_tokens", MESSAGES + "/count_tokens"),
        ("embeddings_float", "/v1/embeddings"),
    ],
)
async def test_every_event_has_the_keys_that_were_recorded(case: str, path: str) -> None:
    folder = TRANSCRIPTS / case
    (recorded,) = folder.glob("upstream.*")
    async with Engine(models=["tiny", "minilm"]) as engine:
        answer = await post(engine, path, json.loads((folder / "request.json").read_bytes()))
    assert shapes(answer.body) == shapes(recorded.read_bytes())


async def test_other_routes_have_the_shapes_of_the_engine(engine: Engine) -> None:
    prompt = {"model": "tiny", "prompt": "Once upon"}
    assert (await post(engine, "/v1/completions", prompt)).json()["choices"][0]["text"] == "".join(
        WORDS
    )
    assert (await post(engine, "/v1/completions", {**prompt, "stream": True})).complete
    inputs = {"model": "tiny", "input": ["a", "b"]}
    vectors = (await post(engine, "/v1/embeddings", inputs)).json()["data"]
    assert [len(vector["embedding"]) for vector in vectors] == [4, 4]
    packed = await post(engine, "/v1/embeddings", {**inputs, "encoding_format": "base64"})
    assert len(packed.json()["data"][1]["embedding"]) == 24
    message = (await post(engine, MESSAGES, ASKED)).json()
    assert message["stop_reason"] == "max_tokens"
    counted = (await post(engine, MESSAGES + "/count_tokens", ASKED)).json()
    assert counted["input_tokens"] == message["usage"]["input_tokens"] == prompt_tokens(ASKED)
    streamed = await post(engine, MESSAGES, {**ASKED, "stream": True})
    names = [event.split(b"\n")[0][7:].decode() for event in streamed.body.split(b"\n\n")[:-1]]
    middle = ["content_block_start", *["content_block_delta"] * 3, "content_block_stop"]
    assert names == ["message_start", *middle, "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        (CHAT, {**ASKED, "model": "no"}, 404, "NotFoundError"),
        (MESSAGES, {**ASKED, "model": "no"}, 404, "NotFoundError"),
        (CHAT, {**ASKED, "stream_options": {"include_usage": True}}, 400, "BadRequestError"),
        (CHAT, [], 400, "Bad Request"),
    ],
)
async def test_refusals_are_those_of_the_engine(
    engine: Engine, path: str, body: Any, status: int, kind: str
) -> None:
    answer = await post(engine, path, body)
    assert answer.status == status
    assert answer.json()["error"]["type"] == kind
    assert ("type" in answer.json()) == (path == MESSAGES)


async def test_a_key_is_asked_for_where_the_engine_does() -> None:
    async with Engine(api_key="k") as engine:
        assert (await post(engine, CHAT, ASKED)).status == 401
        assert (await post(engine, CHAT, ASKED, [("authorization", "Bearer k")])).status == 200
        assert (await request(engine.port, "GET", "/health")).status == 200


async def test_the_schema_names_where_a_cache_salt_may_go(engine: Engine) -> None:
    document = (await request(engine.port, "GET", "/openapi.json")).json()
    salted = {
        name
        for name, schema in document["components"]["schemas"].items()
        if "cache_salt" in schema["properties"]
    }
    assert salted == {
        "AnthropicMessagesRequest",
        "ChatCompletionRequest",
        "CompletionRequest",
        "EmbeddingCompletionRequest",
    }

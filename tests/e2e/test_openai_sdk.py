"""The official openai client works against the gateway as it does against its own vendor."""

import asyncio
import base64
import json
import math
import struct
from itertools import combinations

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionToolParam,
)
from openai.types.shared_params import ResponseFormatJSONSchema

from tests.e2e.conftest import CHAT, CHAT_ALIASES, EMBEDDING

pytestmark = pytest.mark.e2e

HELLO: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say hello."},
]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
FORCED: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "weather"}}
REVIEW: ResponseFormatJSONSchema = {
    "type": "json_schema",
    "json_schema": {
        "name": "review",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "mood": {"enum": ["good", "bad", "mixed"]},
                "spoilers": {"type": "boolean"},
                "tags": {
                    "type": "array",
                    "items": {"enum": ["plot", "cast", "music"]},
                    "minItems": 1,
                    "maxItems": 3,
                },
            },
            "required": ["mood", "spoilers", "tags"],
            "additionalProperties": False,
        },
    },
}
# The model's weights are random: only this makes it go on to the limit.
TO_THE_END = {"ignore_eos": True}


def test_chat_answers_with_text_and_usage(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=CHAT, messages=HELLO, max_tokens=7, extra_body=TO_THE_END
    )
    assert answer.model == CHAT
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.prompt_tokens > 0
    assert answer._request_id is not None


@pytest.mark.parametrize("name", CHAT_ALIASES)
def test_an_alias_is_answered_under_the_alias(openai_client: OpenAI, name: str) -> None:
    answer = openai_client.chat.completions.create(model=name, messages=HELLO, max_tokens=1)
    assert answer.model == name
    chunks = list(
        openai_client.chat.completions.create(model=name, messages=HELLO, max_tokens=2, stream=True)
    )
    assert {chunk.model for chunk in chunks} == {name}


def test_a_stream_comes_token_by_token_and_ends(openai_client: OpenAI) -> None:
    with openai_client.chat.completions.create(
        model=CHAT, messages=HELLO, max_tokens=16, stream=True, extra_body=TO_THE_END
    ) as stream:
        chunks = list(stream)
    assert _text(chunks)
    assert len(chunks) > 8
    assert chunks[-1].choices[0].finish_reason == "length"
    # Nobody asked for usage, so there is neither the event nor the field.
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_an_async_stream_tells_its_usage_when_asked(async_openai: AsyncOpenAI) -> None:
    stream = await async_openai.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=TO_THE_END,
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9
    assert _text(chunks)


def test_a_forced_tool_is_called_with_valid_arguments(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=CHAT, messages=HELLO, tools=[WEATHER], tool_choice=FORCED, max_tokens=96
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert isinstance(calls[0], ChatCompletionMessageFunctionToolCall)
    assert calls[0].function.name == "weather"
    assert set(json.loads(calls[0].function.arguments)) == {"city"}


def test_a_streamed_tool_call_adds_up_to_valid_arguments(openai_client: OpenAI) -> None:
    stream = openai_client.chat.completions.create(
        model=CHAT, messages=HELLO, tools=[WEATHER], tool_choice=FORCED, max_tokens=96, stream=True
    )
    names, arguments, pieces = "", "", 0
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            names += call.function.name or ""
            arguments += call.function.arguments or ""
            pieces += 1
    assert names == "weather"
    assert pieces > 1
    assert set(json.loads(arguments)) == {"city"}


def test_a_tool_s_result_goes_back_to_the_model(openai_client: OpenAI) -> None:
    call: ChatCompletionMessageParam = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    }
    result: ChatCompletionMessageParam = {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "sunny",
    }
    answer = openai_client.chat.completions.create(
        model=CHAT,
        messages=[*HELLO, call, result],
        tools=[WEATHER],
        max_tokens=3,
        extra_body=TO_THE_END,
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_json_schema_is_kept(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=CHAT, messages=HELLO, response_format=REVIEW, max_tokens=96
    )
    review = json.loads(answer.choices[0].message.content or "")
    assert set(review) == {"mood", "spoilers", "tags"}
    assert review["mood"] in ("good", "bad", "mixed")
    assert isinstance(review["spoilers"], bool)
    assert 1 <= len(review["tags"]) <= 3
    assert set(review["tags"]) <= {"plot", "cast", "music"}


def test_logprobs_come_for_every_token(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model=CHAT,
        messages=HELLO,
        max_tokens=4,
        logprobs=True,
        top_logprobs=2,
        extra_body=TO_THE_END,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in logprobs.content)


def test_several_answers_to_one_prompt_differ_and_repeat_with_the_seed(
    openai_client: OpenAI,
) -> None:
    def ask() -> list[str | None]:
        answer = openai_client.chat.completions.create(
            model=CHAT, messages=HELLO, max_tokens=8, n=3, temperature=1, seed=5
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_an_answer_ends_at_a_stop_word(openai_client: OpenAI) -> None:
    def ask(stop: list[str] | None) -> tuple[str, str]:
        answer = openai_client.chat.completions.create(
            model=CHAT,
            messages=HELLO,
            max_tokens=24,
            temperature=0,
            stop=stop,
            extra_body=TO_THE_END,
        )
        return answer.choices[0].message.content or "", answer.choices[0].finish_reason

    whole, _ = ask(None)
    word = whole[len(whole) // 2 :][:3]
    text, reason = ask([word])
    assert text == whole[: whole.index(word)]
    assert reason == "stop"


def test_completions_answer_plain_and_streamed_alike(openai_client: OpenAI) -> None:
    plain = openai_client.completions.create(
        model=CHAT, prompt="Once upon", max_tokens=8, temperature=0, extra_body=TO_THE_END
    )
    streamed = openai_client.completions.create(
        model=CHAT,
        prompt="Once upon",
        max_tokens=8,
        temperature=0,
        stream=True,
        extra_body=TO_THE_END,
    )
    text = "".join(chunk.choices[0].text for chunk in streamed)
    assert plain.choices[0].text == text
    assert plain.model == CHAT
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 8


def test_alike_sentences_are_nearest(openai_client: OpenAI) -> None:
    answer = openai_client.embeddings.create(
        model=EMBEDDING,
        input=[
            "A cat sleeps on the sofa.",
            "A kitten is napping on the couch.",
            "The central bank raised its interest rates.",
        ],
        encoding_format="float",
    )
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert answer.model == EMBEDDING
    pairs = combinations(range(3), 2)
    assert min(pairs, key=lambda pair: math.dist(*(vectors[i] for i in pair))) == (0, 1)
    assert answer.usage.prompt_tokens > 0


def test_embeddings_are_the_same_numbers_in_base64(openai_client: OpenAI) -> None:
    text = "A cat sleeps on the sofa."
    floats = openai_client.embeddings.create(model=EMBEDDING, input=text, encoding_format="float")
    # Without a format the SDK asks for base64 and decodes it itself.
    decoded = openai_client.embeddings.create(model=EMBEDDING, input=text)
    raw = openai_client.embeddings.with_raw_response.create(
        model=EMBEDDING, input=text, encoding_format="base64"
    )
    packed = base64.b64decode(json.loads(raw.text)["data"][0]["embedding"])
    numbers = floats.data[0].embedding
    assert struct.unpack(f"<{len(numbers)}f", packed) == pytest.approx(numbers, abs=1e-6)
    assert decoded.data[0].embedding == pytest.approx(numbers, abs=1e-6)


async def test_many_async_calls_at_once_are_all_answered(async_openai: AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(
            async_openai.chat.completions.create(
                model=CHAT,
                messages=[{"role": "user", "content": f"Count to {number}."}],
                max_tokens=number + 1,
                extra_body=TO_THE_END,
            )
            for number in range(16)
        )
    )
    counts = [answer.usage.completion_tokens for answer in answers if answer.usage]
    assert counts == [number + 1 for number in range(16)]


def _text(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)

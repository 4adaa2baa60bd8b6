"""The official anthropic client works against the gateway as it does against its own vendor."""

import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import (
    MessageParam,
    ToolChoiceToolParam,
    ToolParam,
)

from tests.e2e.conftest import CHAT, CHAT_ALIASES

pytestmark = pytest.mark.e2e

HELLO: list[MessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER: ToolParam = {
    "name": "weather",
    "description": "Weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
# The SDK has no argument for it; the engine has the field.
GREEDY = {"temperature": 0}
FORCED: ToolChoiceToolParam = {"type": "tool", "name": "weather"}


def test_a_message_is_answered_with_text_and_usage(anthropic_client: Anthropic) -> None:
    answer = anthropic_client.messages.create(model=CHAT, messages=HELLO, max_tokens=7)
    assert answer.model == CHAT
    assert answer.role == "assistant"
    assert answer.content[0].type == "text"
    assert answer.stop_reason in ("max_tokens", "end_turn")
    assert 1 <= answer.usage.output_tokens <= 7
    assert answer.usage.input_tokens > 0
    assert answer._request_id is not None


def test_a_system_prompt_reaches_the_model(anthropic_client: Anthropic) -> None:
    without = anthropic_client.messages.create(model=CHAT, messages=HELLO, max_tokens=1)
    given = anthropic_client.messages.create(
        model=CHAT, messages=HELLO, max_tokens=1, system="Answer as a pirate would, always."
    )
    assert given.usage.input_tokens > without.usage.input_tokens + 5


@pytest.mark.parametrize("name", CHAT_ALIASES)
def test_an_alias_is_answered_under_the_alias(anthropic_client: Anthropic, name: str) -> None:
    answer = anthropic_client.messages.create(model=name, messages=HELLO, max_tokens=1)
    assert answer.model == name
    with anthropic_client.messages.stream(model=name, messages=HELLO, max_tokens=2) as stream:
        assert stream.get_final_message().model == name


def test_a_stream_comes_in_order_and_adds_up(anthropic_client: Anthropic) -> None:
    with anthropic_client.messages.stream(
        model=CHAT, messages=HELLO, max_tokens=12, extra_body=GREEDY
    ) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_message()
        text = stream.get_final_text()
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("content_block_delta") > 1
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 12
    plain = anthropic_client.messages.create(
        model=CHAT, messages=HELLO, max_tokens=12, extra_body=GREEDY
    )
    assert [block.text for block in plain.content if block.type == "text"] == [text]


async def test_an_async_stream_adds_up_too(async_anthropic: AsyncAnthropic) -> None:
    async with async_anthropic.messages.stream(
        model=CHAT, messages=HELLO, max_tokens=5, extra_body=GREEDY
    ) as stream:
        pieces = [piece async for piece in stream.text_stream]
        assert await stream.get_final_text() == "".join(pieces)


def test_a_forced_tool_is_used_with_valid_input(anthropic_client: Anthropic) -> None:
    answer = anthropic_client.messages.create(
        model=CHAT, messages=HELLO, max_tokens=96, tools=[WEATHER], tool_choice=FORCED
    )
    block = answer.content[0]
    assert block.type == "tool_use"
    assert block.name == "weather"
    assert set(block.input) == {"city"}
    assert answer.stop_reason == "tool_use"


def test_a_streamed_tool_use_adds_up_to_valid_input(anthropic_client: Anthropic) -> None:
    with anthropic_client.messages.stream(
        model=CHAT, messages=HELLO, max_tokens=96, tools=[WEATHER], tool_choice=FORCED
    ) as stream:
        deltas = [event.delta.type for event in stream if event.type == "content_block_delta"]
        whole = stream.get_final_message()
    assert set(deltas) == {"input_json_delta"}
    block = next(block for block in whole.content if block.type == "tool_use")
    assert set(block.input) == {"city"}
    assert whole.stop_reason == "tool_use"


def test_a_tool_s_result_goes_back_to_the_model(anthropic_client: Anthropic) -> None:
    answer = anthropic_client.messages.create(
        model=CHAT,
        max_tokens=3,
        tools=[WEATHER],
        messages=[
            *HELLO,
            {
                "role": "assistant",
                "content": [
                    {
                        "type": "tool_use",
                        "id": "use_1",
                        "name": "weather",
                        "input": {"city": "Rome"},
                    }
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "use_1", "content": "sunny"}],
            },
        ],
    )
    assert 1 <= answer.usage.output_tokens <= 3


def test_tokens_are_counted_as_the_answer_then_says(anthropic_client: Anthropic) -> None:
    counted = anthropic_client.messages.count_tokens(model=CHAT, messages=HELLO, system="Be brief.")
    answer = anthropic_client.messages.create(
        model=CHAT, messages=HELLO, system="Be brief.", max_tokens=1
    )
    # The count leaves out the mark that opens the answer's turn.
    assert 0 < counted.input_tokens <= answer.usage.input_tokens < counted.input_tokens + 16

"""How large a request is: text in bytes, token ids exactly, media by a table, answers."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gateway.settings import Caps, Media
from gateway.terms import Size
from gateway.wire import size
from gateway.wire.fields import checked
from gateway.wire.media import AUDIO_BYTES_PER_TOKEN, IMAGE_TOKENS, VIDEO_TOKENS

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MESSAGES = "/v1/messages"
SHAPES = {
    CHAT: size.conversation,
    MESSAGES: size.conversation,
    COMPLETIONS: size.completion,
    EMBEDDINGS: size.embedding,
}
OPEN = Caps(prompts=2048, media=Media(urls="allow", bytes=64 << 20))
EIGHT_MB = base64.b64encode(bytes(8 << 20)).decode()


def measured(path: str, **fields: Any) -> Size:
    return measured_json(path, **{name: json.dumps(value) for name, value in fields.items()})


def measured_json(path: str, **fields: str) -> Size:
    """The size of a request whose fields are written like this."""
    sent = {name: Raw(value.encode()) for name, value in fields.items()}
    passed, carried = checked(path, sent, OPEN, keep_unknown=False)
    return SHAPES[path](passed, carried, None)


def user(*parts: object) -> list[object]:
    return [{"role": "user", "content": list(parts)}]


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


WORDS = {"type": "text", "text": "What is this?"}


def test_text_is_the_bytes_that_become_the_prompt() -> None:
    messages, tools = user(WORDS), [{"type": "function", "function": {"name": "f"}}]
    text = len(json.dumps(messages)) + len(json.dumps(tools))
    assert measured(CHAT, model="m", messages=messages, tools=tools, user="ann") == Size(text)
    system = [{"type": "text", "text": "Be brief."}]
    sent = measured(MESSAGES, messages=messages, tools=tools, system=system, max_tokens=5)
    assert sent == Size(text + len(json.dumps(system)))


def test_a_grammar_is_not_part_of_the_prompt() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x" * 1000}}
    assert measured(CHAT, messages=[], response_format=form) == Size(len("[]"))


def test_text_is_counted_in_bytes_not_in_characters() -> None:
    assert measured_json(COMPLETIONS, prompt='"é日"') == Size(2 + 2 + 3)


@pytest.mark.parametrize(
    "part",
    [
        picture(f"data:image/png;base64,{EIGHT_MB}"),
        {"type": "image", "source": {"type": "base64", "media_type": "x", "data": EIGHT_MB}},
        {"type": "tool_result", "content": [picture(EIGHT_MB)]},
    ],
    ids=["openai", "anthropic", "in a tool's result"],
)
def test_an_image_of_8_mb_is_not_two_million_tokens(part: dict[str, Any]) -> None:
    for path in (CHAT, MESSAGES):
        sent = measured(path, messages=user(WORDS, part))
        assert sent.tokens == IMAGE_TOKENS
        assert len(WORDS["text"]) < sent.text_bytes < 300


@pytest.mark.parametrize(("plain", "escaped"), [("/", "\\/"), ("\n", "\\r\\n")])
def test_a_payload_however_it_is_escaped_is_not_text(plain: str, escaped: str) -> None:
    line = "A" * 75 + plain
    written = json.dumps(user(WORDS, picture("@"))).replace("@", line.replace(plain, escaped) * 999)
    sent = measured_json(CHAT, messages=written)
    assert sent.tokens == IMAGE_TOKENS
    assert sent.text_bytes < 300


def test_each_part_is_counted_by_what_it_is() -> None:
    sound, url = base64.b64encode(bytes(64_000)).decode(), "https://h/x"
    heard = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    assert measured(CHAT, messages=user(heard)).tokens == 64_000 // AUDIO_BYTES_PER_TOKEN
    seen = {"type": "video_url", "video_url": {"url": url}}
    assert measured(CHAT, messages=user(seen)).tokens == VIDEO_TOKENS
    far = {"type": "audio_url", "audio_url": {"url": url}}
    assert measured(CHAT, messages=user(far)).tokens > 0
    assert measured(CHAT, messages=user(*[picture(url)] * 3)).tokens == 3 * IMAGE_TOKENS


def test_media_of_several_fields_add_up() -> None:
    parts = user(picture("AAAA"))
    system = [picture("AAAA"), picture("AAAA")]
    assert measured(MESSAGES, messages=parts, system=system).tokens == 3 * IMAGE_TOKENS


def test_words_about_media_are_words() -> None:
    messages = user({"type": "text", "text": json.dumps(picture("data:image/png;base64,AAAA"))})
    assert measured(CHAT, messages=messages) == Size(len(json.dumps(messages)))
    odd = user({"type": "text", "text": "x", "note": 1})  # looked into, and nothing found
    assert measured(CHAT, messages=odd) == Size(len(json.dumps(odd)))


def test_a_url_full_of_backslashes_does_not_make_a_size_negative() -> None:
    assert measured(CHAT, messages=user(picture("\\" * 500))) == Size(0, IMAGE_TOKENS)


def test_each_choice_of_a_chat_weighs_one() -> None:
    assert measured(CHAT, messages=[], n=8).answers == 8
    assert measured(CHAT, messages=[], n=None).answers == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", Size(7)),
        (["a", "b"], Size(10, answers=2)),
        (["a"] * 16, Size(16 * 5, answers=16)),
        (["[1,2],[3]"], Size(13)),
        ([7], Size(0, 1)),
        ([1, 2, 3], Size(0, 3)),
        ([[1, 2, 3]], Size(0, 3)),
        ([[1, 2], [3], [4, 5, 6]], Size(0, 6, answers=3)),
        ([], Size()),
        ([[]], Size()),
    ],
)
def test_a_prompt_is_text_or_ids_one_or_many(prompt: object, expected: Size) -> None:
    assert measured(COMPLETIONS, prompt=prompt) == expected
    embedded = measured(EMBEDDINGS, input=prompt)
    assert embedded == Size(expected.text_bytes, expected.tokens, answers=1)


@given(ids=st.lists(st.lists(st.integers(0, 10**6), min_size=1), min_size=1, max_size=9))
@pytest.mark.parametrize("indent", [None, 2])
def test_ids_are_counted_exactly_however_they_are_written(
    indent: int | None, ids: list[list[int]]
) -> None:
    total = sum(map(len, ids))
    many = measured_json(COMPLETIONS, prompt=json.dumps(ids, indent=indent))
    assert many == Size(0, total, answers=len(ids))
    flat = [n for some in ids for n in some]
    one = measured_json(COMPLETIONS, prompt=json.dumps(flat, indent=indent))
    assert one == Size(0, total)


def test_each_choice_of_each_prompt_weighs_one() -> None:
    assert measured(COMPLETIONS, prompt=["a"] * 3, n=2).answers == 6
    assert measured(COMPLETIONS, prompt=[[1], [2]], n=2, best_of=5).answers == 10
    assert measured(COMPLETIONS, prompt="a", n=4, best_of=None).answers == 4


def test_embedded_messages_are_text_and_media() -> None:
    messages = user(WORDS, picture("AAAA"))
    text = len(json.dumps(messages)) - len("AAAA")
    expected = Size(text, IMAGE_TOKENS)
    assert measured(EMBEDDINGS, messages=messages) == expected
    assert measured(EMBEDDINGS, input=messages) == expected
    nested = measured(EMBEDDINGS, messages=[messages, messages])
    assert nested.tokens == 2 * IMAGE_TOKENS

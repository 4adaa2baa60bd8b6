"""Record what real engines answer, as test material: one folder per case below this one.

Usage, from the root of the tree, with a chat engine and an embeddings engine running:

    python -m tests.transcripts.record --chat http://127.0.0.1:8001 --embed http://127.0.0.1:8002
    python -m tests.transcripts.record --chat ... --embed ... chat_plain error_404

Each <case>/ gets `request.json` (the body sent) and `upstream.sse` or `upstream.json` (the body
that came back, without its chunk framing, otherwise byte for byte). The models must be served as
`tiny` and `minilm`, the chat engine with `--enable-auto-tool-choice --tool-call-parser hermes`.
"""

import argparse
import http.client
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).parent
CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
EMBEDDINGS, COUNT = "/v1/embeddings", "/v1/messages/count_tokens"

_CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 3}},
    "required": ["city"],
    "additionalProperties": False,
}
_AGE = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["age"],
    "additionalProperties": False,
}
_TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}]}
_FIXED: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "seed": 1}
_CHAT = {**_TALK, **_FIXED}
_STREAM = {**_CHAT, "stream": True}
# The messages schema knows no seed: temperature 0 alone settles the answer.
_MESSAGES = {**_TALK, "max_tokens": 8, "temperature": 0}


@dataclass(frozen=True, slots=True)
class Case:
    """One request to record: where it goes, its JSON body, and the status the engine must give."""

    path: str
    body: dict[str, Any] = field(hash=False)
    status: int = 200


CASES = {
    "chat_plain": Case(CHAT, _CHAT),
    "chat_stream": Case(CHAT, _STREAM),
    "chat_stream_usage": Case(CHAT, {**_STREAM, "stream_options": {"include_usage": True}}),
    "chat_stream_n2": Case(CHAT, {**_STREAM, "n": 2, "temperature": 1, "max_tokens": 4}),
    "chat_stream_logprobs": Case(
        CHAT, {**_STREAM, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}
    ),
    "chat_tool_forced_stream": Case(
        CHAT,
        {
            **_STREAM,
            "max_tokens": 24,  # fewer would cut the arguments before their closing brace
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": _CITY}}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    ),
    "chat_json_schema": Case(
        CHAT,
        {
            **_CHAT,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "strict": True, "schema": _AGE},
            },
        },
    ),
    "completions_stream": Case(
        COMPLETIONS, {"model": "tiny", "prompt": "Once upon", **_FIXED, "stream": True}
    ),
    "messages_plain": Case(MESSAGES, _MESSAGES),
    "messages_stream": Case(MESSAGES, {**_MESSAGES, "stream": True}),
    "messages_tools_stream": Case(
        MESSAGES,
        {
            **_MESSAGES,
            "max_tokens": 24,
            "stream": True,
            "tools": [{"name": "weather", "input_schema": _CITY}],
            "tool_choice": {"type": "tool", "name": "weather"},
        },
    ),
    "embeddings_float": Case(EMBEDDINGS, {"model": "minilm", "input": ["hello", "world"]}),
    "embeddings_base64": Case(
        EMBEDDINGS, {"model": "minilm", "input": "hello", "encoding_format": "base64"}
    ),
    "error_400": Case(CHAT, {**_CHAT, "temperature": "hot"}, status=400),
    "error_404": Case(CHAT, {**_CHAT, "model": "no-such-model"}, status=404),
    "count_tokens": Case(COUNT, _TALK),
}


def record(name: str, case: Case, url: str) -> str:
    """Send one case, write its two files, and return a line that says what came.

    Raises SystemExit if the status is not the expected one: a wrong transcript is worse than none.
    """
    body = json.dumps(case.body, indent=1).encode()
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    try:
        connection.request("POST", case.path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status != case.status:
        raise SystemExit(f"{name}: status {answer.status}, not {case.status}: {data[:300]!r}")
    kind = answer.headers.get_content_type()
    suffix = "sse" if kind == "text/event-stream" else "json"
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    (folder / "request.json").write_bytes(body + b"\n")
    (folder / f"upstream.{suffix}").write_bytes(data)
    return f"{name}: {answer.status} {kind} {len(data)} bytes"


def main() -> None:
    """Record the cases named, or all of them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--chat", required=True, help="URL of the chat engine, serving `tiny`")
    options.add_argument("--embed", required=True, help="URL of the engine serving `minilm`")
    options.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    chosen = options.parse_args()
    for name in chosen.cases or CASES:
        case = CASES[name]
        print(record(name, case, chosen.embed if case.path == EMBEDDINGS else chosen.chat))


if __name__ == "__main__":
    main()

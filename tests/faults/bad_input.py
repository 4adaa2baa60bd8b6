"""The corpus of bad input, as data: each row is a control, each case one request and its answer.

A case that is refused names the answer's status and its code (OpenAI paths) or type (Anthropic
paths). A case that passes names the body that upstream must see, the gateway's own `cache_salt`
left out. Rows are made when they are asked for: some cases are large.
"""

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults import bad_http, bad_media
from tests.faults.cases import (
    BEARER,
    BODIES,
    CHAT,
    COUNT,
    EMBEDDINGS,
    HI,
    MESSAGES,
    PATHS,
    TEXT,
    Case,
    call,
    chat,
    passes,
    raw,
    refused,
)


def upstreams() -> Iterator[Case]:
    """T7: only the configuration says where a request goes."""
    elsewhere = "http://127.0.0.1:9/v1"
    fields = ("api_base", "base_url", "custom_host", "custom_llm_provider", "api_key", "provider")
    for name in (*fields, "api_type", "organization", "proxy", "url", "endpoint", "deployment_id"):
        sent = chat(**{name: elsewhere})
        yield passes(f"field {name}", call(sent), BODIES[CHAT])
        yield Case(f"field {name}, refused", call(sent), 400, config="refusing")
    names = ("x-forwarded-host", "x-original-url", "x-rewrite-url", "x-real-host", "x-backend-host")
    more = (
        "x-portkey-custom-host",
        "x-upstream-url",
        "forwarded",
        "x-target-host",
        "x-openai-host",
    )
    for name in (*names, *more):
        yield passes(f"header {name}", call(headers=[(name, elsewhere)]), BODIES[CHAT])
    yield passes("a host of the engine's", call(headers=[("host", "127.0.0.1:9")]), BODIES[CHAT])
    query = f"{CHAT}?api_base={elsewhere}&base_url={elsewhere}"
    yield passes("a query", call(BODIES[CHAT], query), BODIES[CHAT])
    target = f"POST {elsewhere}/chat/completions HTTP/1.1"
    yield refused("a target", raw(target, "host: 127.0.0.1:9", "authorization: " + BEARER[1]))


_PRIVILEGED = """cache_salt chat_template documents ec_transfer_params kv_transfer_params
media_io_kwargs mm_payload mm_processor_kwargs priority prompt_embeds request_id return_mm_kwargs
routed_experts_prompt_start session_id vllm_xargs watermarking""".split()


def privileged() -> Iterator[Case]:
    """T13: what reaches into the engine or across its callers is refused; unknown fields go."""
    for path in PATHS:
        for name in _PRIVILEGED:
            for given in (1, None, "x", {"a": 1}):
                yield refused(f"{path} {name} {given}", call(BODIES[path] | {name: given}, path))
        for name in (
            "chat_template",
            "tokenize",
            "add_generation_prompt",
            "continue_final_message",
        ):
            fields: dict[str, Any] = {"chat_template_kwargs": {name: False}}
            if path != TEXT:
                yield refused(f"{path} kwargs {name}", call(BODIES[path] | fields, path))
        structures: tuple[Any, ...] = ({"a": {}}, {"a": [1]}, [1], "x", 1)
        for value in structures:
            fields = {"chat_template_kwargs": value}
            if path != TEXT:
                yield refused(f"{path} kwargs {value}", call(BODIES[path] | fields, path))
    text = json.dumps(chat(priority=1))
    yield refused("an escaped name", call(text.replace("priority", r"pr\u0069ority").encode()))
    yield refused("a name twice", call(text.replace("{", '{"priority":null,', 1).encode()))
    scalars = chat(chat_template_kwargs={"enable_thinking": False, "a": "b", "c": None, "d": 1.5})
    yield passes("scalar arguments", call(scalars), scalars)
    trusted = chat(priority=7)
    yield passes("a field that is allowed", call(trusted), trusted, "trusting")
    salted = chat(cache_salt="of-another-team")
    yield passes("an allowed salt is ours all the same", call(salted), BODIES[CHAT], "trusting")
    chosen = random.Random(13)
    for at in range(100):
        odd = {_word(chosen): chosen.choice(_ODD_VALUES) for _ in range(20)}
        path = chosen.choice(PATHS)
        yield passes(f"odd fields {at}", call(odd | BODIES[path], path), BODIES[path])
        yield Case(
            f"odd fields {at}, refused", call(odd | BODIES[path], path), 400, config="refusing"
        )


_ODD_VALUES: list[Any] = [1, None, "x", [1], {"a": {}}]


def _word(chosen: random.Random) -> str:
    return "x" + "".join(chosen.choices('abcdef_-. "\\/\u00e9\x01\U0001f600', k=12))


def _boundaries() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """For each cap: its name, the path, what is just within it and what is just over it."""
    yield "n", CHAT, {"n": 8}, {"n": 9}
    yield "n at least", TEXT, {"n": 1}, {"n": 0}
    yield "best_of", TEXT, {"best_of": 8}, {"best_of": 9}
    yield "logprobs", TEXT, {"logprobs": 20}, {"logprobs": 21}
    yield "top_logprobs", CHAT, {"top_logprobs": 20}, {"top_logprobs": 21}
    yield "prompt_logprobs", CHAT, {"prompt_logprobs": 0}, {"prompt_logprobs": 1}
    yield "prompt_logprobs of all", TEXT, {"prompt_logprobs": None}, {"prompt_logprobs": -1}
    yield "use_beam_search", CHAT, {"use_beam_search": False}, {"use_beam_search": True}
    yield "messages", CHAT, {"messages": HI * 4096}, {"messages": HI * 4097}
    yield "messages, counted", COUNT, {"messages": HI * 4096}, {"messages": HI * 4097}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    yield "tools", CHAT, {"tools": [tool] * 256}, {"tools": [tool] * 257}
    yield (
        "tools of messages",
        MESSAGES,
        {"tools": [{"name": "f"}] * 256},
        {"tools": [{"name": "f"}] * 257},
    )
    yield "depth of tools", CHAT, {"tools": [_nested(32)]}, {"tools": [_nested(33)]}
    yield "inputs", EMBEDDINGS, {"input": ["a"] * 2048}, {"input": ["a"] * 2049}
    yield "inputs of tokens", EMBEDDINGS, {"input": [[1]] * 2048}, {"input": [[1]] * 2049}
    yield "tokens of an input", EMBEDDINGS, {"input": [1] * 5000}, {"input": [[1]] * 5000}
    yield "prompts", TEXT, {"prompt": ["a"] * 16}, {"prompt": ["a"] * 17}
    for name, path in (
        ("response_format", CHAT),
        ("structured_outputs", TEXT),
        ("output_config", MESSAGES),
    ):
        yield f"bytes of {name}", path, {name: _sized(64 * 1024)}, {name: _sized(64 * 1024 + 1)}
        yield f"depth of {name}", path, {name: _nested(32)}, {name: _nested(33)}
    yield "encoding_format", EMBEDDINGS, {"encoding_format": "base64"}, {"encoding_format": "bytes"}
    for name in ("allowed_token_ids", "stop_token_ids", "logprob_token_ids"):
        yield name, CHAT, {name: [1] * 4096}, {name: [1] * 4097}
    yield "logit_bias", CHAT, {"logit_bias": _map(4096)}, {"logit_bias": _map(4097)}
    for name, path in (("stop", CHAT), ("bad_words", TEXT), ("stop_sequences", MESSAGES)):
        yield name, path, {name: ["a"] * 4096}, {name: ["a"] * 4097}
        yield f"bytes of {name}", path, {name: "a" * 65_534}, {name: "a" * 65_535}


def greed() -> Iterator[Case]:
    """T14: each cap, from both sides."""
    for name, path, within, over in _boundaries():
        yield passes(f"{name} within", _compact(path, within), BODIES[path] | within)
        yield refused(f"{name} over", _compact(path, over))
    wrong: tuple[Any, ...] = ("9", 9.5, [9], {}, True, 1e30, 10**30)
    for value in wrong:
        yield refused(f"n of {value!r}", call(chat(n=value)))
        yield Case(f"max_tokens of {value!r}", call(chat(max_tokens=value)), 400, config="strict")
    limits = {CHAT: "max_completion_tokens", TEXT: "max_tokens", MESSAGES: "max_tokens"}
    for path, name in limits.items():
        least = {key: value for key, value in BODIES[path].items() if key != "max_tokens"}
        for value, clamped in ((10, 10), (11, 10), (None, 10), (1 << 40, 10)):
            sent = call(least | {name: value}, path)
            yield passes(f"{path} {name} {value}", sent, least | {name: clamped}, "clamping")
        yield passes(f"{path} no limit", call(least, path), least | {name: 10}, "clamping")
        yield Case(f"{path} 11", call(least | {name: 11}, path), 400, config="strict")
        yield Case(f"{path} -1", call(least | {name: -1}, path), 400, config="strict")
    older = call(chat(max_tokens=99, max_completion_tokens=9))
    both = chat(max_tokens=10, max_completion_tokens=9)
    yield passes("both limits", older, both, "clamping")


def _compact(path: str, fields: dict[str, Any]) -> bytes:
    return call(json.dumps(BODIES[path] | fields, separators=(",", ":")).encode(), path)


def _nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth - 1):
        inner = {"a": inner}
    return inner


def _sized(size: int) -> dict[str, str]:
    return {"a": "x" * (size - len('{"a":""}'))}


def _map(size: int) -> dict[str, int]:
    return {str(at): 1 for at in range(size)}


#: Values that are no JSON, or none that two readers would read alike.
_NO_VALUES = (
    "NaN", "Infinity", "-Infinity", "nan", "01", "-01", "1.", ".5", "+1", "1e", "1e+", "0x1",
    "1_0", "tru", "True", "None", "undefined", "'a'", '"a', '"\\q"', '"\\u12"', '"\\ud800"',
    '"\\udc00"', "-", '"\\ud800\\u0041"', '"a\nb"', '"a\tb"', '"\x00"', '"\x1f"', "[1,]", "[,1]",
    "[1 2]", "[1", "[1}", '{"a":1,}', '{"a"}', '{"a" 1}', "{a:1}", "{1:1}", '{"a":1 "b":2}',
    "{,}", "/*x*/1", "1//x", "1;",
)  # fmt: skip
_NO_OBJECTS = ("[]", "[{}]", "1", '"a"', "null", "true", "{} {}", "{}x", "[{}", "", " ", "\x00")


def documents() -> Iterator[Case]:
    """T20: a corpus of documents that are no JSON object of ours, each a 400."""
    text = '{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
    for value in _NO_VALUES:
        for name, document in {
            "at the top": text[:-1] + f',"temperature":{value}}}',
            "nested": text.replace('"hi"', value),
            "in an unknown field": text[:-1] + f',"x":[{value}]}}',
        }.items():
            yield refused(f"{value!a} {name}", call(document.encode()), 400, "invalid_json")
    for document in _NO_OBJECTS:
        yield refused(f"document {document!a}", call(document.encode()), 400, "invalid_json")
        sent = call(document.encode(), MESSAGES)
        yield refused(f"document {document!a} to {MESSAGES}", sent)
    for end in range(1, len(text)):
        yield refused(f"cut after {end}", call(text[:end].encode()), 400, "invalid_json")
    for coding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        yield refused(coding, call(text.encode(coding)), 400, "invalid_json")
    for name, broken in _BYTES.items():
        sent = call(text.encode().replace(b"hi", broken))
        yield refused(name, sent, 400, "invalid_json")
    chosen = random.Random(20)
    for at in range(100):
        place = chosen.randrange(len(text))
        document = text[:place] + chosen.choice('{}[]:,"\\x\x00') + text[place + 1 :]
        if not _is_json(document):
            yield refused(
                f"broken {at}: {document!a}", call(document.encode()), 400, "invalid_json"
            )
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for depth in (2_000, 100_000):
            bomb = opening * depth + "1" + closing * depth
            sent = call((text[:-1] + f',"x":{bomb}}}').encode())
            yield refused(f"{depth} times {opening}", sent, 400, "invalid_json")
            yield refused(
                f"{depth} times {opening}, left open",
                call((opening * depth).encode()),
                400,
                "invalid_json",
            )
    yield from _ambiguous(text)
    yield from _of_wrong_types()


_BYTES = {
    "a byte that is none": b"\xff",
    "half a character": b"\xc3",
    "an overlong slash": b"\xc0\xaf",
    "a surrogate in UTF-8": b"\xed\xa0\x80",
    "past the last character": b"\xf4\x90\x80\x80",
}


def _ambiguous(text: str) -> Iterator[Case]:
    """The model that was checked is the model that is asked for."""
    twice = text.replace("{", '{"model":"another",', 1)
    yield passes("the last model of two counts", call(twice.encode()), BODIES[CHAT])
    yield refused(
        "and is checked", call((text[:-1] + ',"model":"another"}').encode()), 404, "model_not_found"
    )
    escaped = text[:-1] + r',"mod\u0065l":"another"}'
    yield refused("however it is spelt", call(escaped.encode()), 404, "model_not_found")
    yield passes(
        "an escaped value", call(text.replace("tiny", r"t\u0069ny").encode()), BODIES[CHAT]
    )
    quoted = '"model":"another"}'
    content = json.dumps(chat(messages=[{"role": "user", "content": quoted}]))
    yield passes("a name inside a text", call(content.encode()), json.loads(content))


def _of_wrong_types() -> Iterator[Case]:
    values: tuple[Any, ...] = (1, None, [], {}, True, 1.5)
    for path in PATHS:
        for value in values:
            yield refused(f"{path} model {value}", call(BODIES[path] | {"model": value}, path))
            if value not in (None, True):
                yield refused(
                    f"{path} stream {value}", call(BODIES[path] | {"stream": value}, path)
                )
        for name in ("model", "messages", "prompt", "input"):
            body = {key: value for key, value in BODIES[path].items() if key != name}
            if body != BODIES[path]:
                missing = "missing_required_parameter" if "/messages" not in path else None
                yield refused(f"{path} without {name}", call(body, path), 400, missing)
    for path in (EMBEDDINGS, COUNT):
        yield refused(f"{path} streams", call(BODIES[path] | {"stream": True}, path))


def _is_json(document: str) -> bool:
    try:
        json.loads(document, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return False
    return True


def models() -> Iterator[Case]:
    """T21: a name is one of the table, exactly, and nothing else is made of it."""
    names = (
        "../x", "../../etc/passwd", "a\nb", "tiny\n", "\x00", "tiny\x00", " tiny", "tiny ",
        "TINY", "tiny/", "./tiny", "tiny/../tiny", "tiny?x", "tiny#x", "tiny%00", "t%69ny", "",
        " ", "*", "tiny*", "%s%n", "{tiny}", "${tiny}", "{{7*7}}", "'; DROP TABLE models;--",
        "<script>alert(1)</script>", "\u202eynit", "tıny", "ｔiny", "tiny\u200b", "\U0001f600",
        "__class__", "other", "a" * 129, "a" * 100_000, "a" * 10_000_000, "\r\nx: y",
    )  # fmt: skip
    for name in names:
        for path in (CHAT, MESSAGES, EMBEDDINGS):
            code = "not_found_error" if "/messages" in path else "model_not_found"
            sent = call(BODIES[path] | {"model": name}, path)
            yield refused(f"{path} {name[:20]!a}", sent, 404, code)


ROWS: dict[str, Callable[[], Iterator[Case]]] = {
    "T1": bad_http.hosts,
    "T2": bad_http.keys,
    "T7": upstreams,
    "T8": bad_media.urls,
    "T9": bad_media.bombs,
    "T10": bad_http.paths,
    "T11": bad_http.headers,
    "T12": bad_http.identities,
    "T13": privileged,
    "T14": greed,
    "T17": bad_http.smuggling,
    "T18": bad_http.floods,
    "T19": bad_http.bodies,
    "T20": documents,
    "T21": models,
}

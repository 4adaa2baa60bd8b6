"""The one table of request fields: each passes, is capped, or is privileged.

A privileged field is refused unless the configuration allows it by name. A field in no list is
unknown: dropped, refused or passed as `request.unknown_fields` and the server's kind say.
The lists follow the request schemas of vLLM 0.32 (`/openapi.json`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Raw

from gateway.errors import InvalidRequest
from gateway.settings import Caps
from gateway.terms import PRIVILEGED
from gateway.wire import caps
from gateway.wire.caps import Check
from gateway.wire.media import NOTHING, Carried


def _table(passing: str, **capped: Check) -> Mapping[str, Check | None]:
    return {**dict.fromkeys(passing.split()), **capped}


_GENERATING = """
    add_special_tokens echo frequency_penalty ignore_eos include_stop_str_in_output length_penalty
    min_p min_tokens model presence_penalty repetition_detection repetition_penalty
    return_token_ids return_token_offsets return_tokens_as_token_ids seed skip_special_tokens
    spaces_between_special_tokens stream stream_options temperature
    thinking_token_budget top_k top_p truncate_prompt_tokens truncation_side user
"""
_GENERATING_CAPS: dict[str, Check] = {
    "allowed_token_ids": caps.token_list,
    "bad_words": caps.word_list,
    "logit_bias": caps.token_map,
    "logprob_token_ids": caps.token_list,
    "n": caps.choices,
    "prompt_logprobs": caps.prompt_logprobs,
    "response_format": caps.schema,
    "stop": caps.word_list,
    "stop_token_ids": caps.token_list,
    "structured_outputs": caps.schema,
    "use_beam_search": caps.beam_search,
}

#: For each path, its fields: a check for a capped one, None for one that passes.
FIELDS: dict[str, Mapping[str, Check | None]] = {
    "/v1/chat/completions": _table(
        _GENERATING
        + """add_generation_prompt continue_final_message include_reasoning logprobs max_tokens
        max_completion_tokens parallel_tool_calls reasoning_effort return_prompt_text tool_choice
        """,
        **_GENERATING_CAPS,
        chat_template_kwargs=caps.template_arguments,
        messages=caps.messages,
        tools=caps.tools,
        top_logprobs=caps.logprobs,
    ),
    "/v1/completions": _table(
        _GENERATING + "max_tokens suffix",
        **_GENERATING_CAPS,
        best_of=caps.choices,
        logprobs=caps.logprobs,
        prompt=caps.prompts,
    ),
    "/v1/embeddings": _table(
        """add_generation_prompt add_special_tokens continue_final_message dimensions embed_dtype
        endianness model padding truncate_prompt_tokens truncation_side use_activation user""",
        chat_template_kwargs=caps.template_arguments,
        encoding_format=caps.encoding,
        input=caps.inputs,
        messages=caps.messages,
    ),
    "/v1/messages": _table(
        "max_tokens metadata model stream temperature thinking tool_choice top_k top_p",
        chat_template_kwargs=caps.template_arguments,
        messages=caps.messages,
        output_config=caps.schema,
        stop_sequences=caps.word_list,
        system=caps.system,
        tools=caps.tools,
    ),
    "/v1/messages/count_tokens": _table(
        "model thinking tool_choice",
        chat_template_kwargs=caps.template_arguments,
        messages=caps.messages,
        output_config=caps.schema,
        system=caps.system,
        tools=caps.tools,
    ),
}


class _Metadata(msgspec.Struct):
    user_id: str | None = None


_text = msgspec.json.Decoder(str | None)
_metadata = msgspec.json.Decoder(_Metadata | None)


def user(sent: Mapping[str, Raw]) -> str:
    """Whom the caller names as its user: `user`, as OpenAI's clients do, or `metadata.user_id`, as
    Anthropic's do. Empty where neither is a text: what is wrong with it is the engine's to say.
    """
    try:
        told = _text.decode(sent["user"]) if "user" in sent else None
        metadata = _metadata.decode(sent["metadata"]) if "metadata" in sent else None
    except (msgspec.DecodeError, RecursionError):
        return ""
    return told or (metadata.user_id if metadata else None) or ""


def checked(
    path: str, sent: Mapping[str, Raw], allowed: Caps, *, keep_unknown: bool
) -> tuple[dict[str, Raw], Carried]:
    """The fields that may go to the server, and the media they carry; unknown fields are left
    out, or kept for a server whose fields we do not know.

    Raises InvalidRequest for a privileged field, one over its cap, and an unknown one where the
    configuration refuses them.
    """
    table = FIELDS[path]
    known = sent.keys() <= table.keys()
    passed = dict(sent) if known else _passed(table, sent, allowed, keep_unknown=keep_unknown)
    carried = NOTHING
    for name, value in passed.items():
        check = table.get(name)
        if check is None:
            continue
        found = check(name, value, allowed)
        if found is not None:
            carried = Carried(carried.bytes + found.bytes, carried.tokens + found.tokens)
    return passed, carried


def _passed(
    table: Mapping[str, Check | None],
    sent: Mapping[str, Raw],
    allowed: Caps,
    *,
    keep_unknown: bool,
) -> dict[str, Raw]:
    """What is left of fields of which some are not in the table."""
    passed: dict[str, Raw] = {}
    for name, value in sent.items():
        if name in PRIVILEGED:
            if name not in allowed.privileged:
                raise InvalidRequest(f"`{name}` is not allowed on this gateway.", name)
        elif name not in table and not keep_unknown:
            if allowed.unknown_fields == "refuse":
                raise InvalidRequest(f"Unknown field `{name[:64]}`.", name[:64])
            continue
        passed[name] = value
    return passed

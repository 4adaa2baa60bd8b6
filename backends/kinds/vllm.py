"""vLLM: it speaks both dialects itself, and tells its request fields in `/openapi.json`."""

from __future__ import annotations

from backends.kinds.base import OpenAIFamily


class VLLM(OpenAIFamily):
    name = "vllm"
    figures: str | None = "/metrics"
    paths = frozenset(
        {
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/messages",
            "/v1/messages/count_tokens",
        }
    )

"""Any server that is compatible with the OpenAI API and promises no more than that."""

from __future__ import annotations

from backends.kinds.base import OpenAIFamily


class OpenAI(OpenAIFamily):
    name = "openai"
    paths = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

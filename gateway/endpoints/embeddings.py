"""POST /v1/embeddings."""

from __future__ import annotations

from msgspec import Raw

from gateway.endpoints.base import Reading, Spoken
from gateway.errors import InvalidRequest
from gateway.route import Route
from gateway.settings import Caps
from gateway.terms import Ask
from gateway.wire.openai import OpenAITranslator
from gateway.wire.size import embedding


class Embeddings(Reading, Spoken):
    path = "/v1/embeddings"
    required = "input"
    streams = False
    measure = staticmethod(embedding)

    def translator(self, ask: Ask, route: Route, allowed: Caps) -> OpenAITranslator:
        return OpenAITranslator(ask, *self.allowed_fields(ask, route, allowed))

    def _require(self, sent: dict[str, Raw]) -> None:
        if "input" not in sent and "messages" not in sent:  # vLLM embeds conversations too
            raise InvalidRequest("`input` is missing.", "input", "missing_required_parameter")

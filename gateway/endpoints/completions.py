"""POST /v1/completions."""

from __future__ import annotations

from gateway.endpoints.base import Reading, Spoken
from gateway.route import Route
from gateway.settings import Caps
from gateway.terms import Ask
from gateway.wire import caps
from gateway.wire.openai import OpenAITranslator
from gateway.wire.size import completion


class Completions(Reading, Spoken):
    path = "/v1/completions"
    required = "prompt"
    output_limits = ("max_tokens",)
    measure = staticmethod(completion)

    def translator(self, ask: Ask, route: Route, allowed: Caps) -> OpenAITranslator:
        passed, size = self.allowed_fields(ask, route, allowed)
        caps.echoed(passed, allowed)
        return OpenAITranslator(ask, passed, size, ask_for_usage=route.usage_in_streams)

"""POST /v1/messages: vLLM speaks it itself."""

from __future__ import annotations

from gateway.endpoints.base import Reading, SpokenToAnthropic
from gateway.route import Route
from gateway.settings import Caps
from gateway.terms import Ask
from gateway.wire.anthropic import AnthropicTranslator


class Messages(Reading, SpokenToAnthropic):
    path = "/v1/messages"
    required = "messages"
    output_limits = ("max_tokens",)

    def translator(self, ask: Ask, route: Route, allowed: Caps) -> AnthropicTranslator:
        return AnthropicTranslator(ask, *self.allowed_fields(ask, route, allowed))

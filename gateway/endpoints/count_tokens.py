"""POST /v1/messages/count_tokens."""

from __future__ import annotations

from gateway.endpoints.base import Reading, SpokenToAnthropic
from gateway.route import Route
from gateway.settings import Caps
from gateway.terms import Ask
from gateway.wire.anthropic import AnthropicTranslator


class CountTokens(Reading, SpokenToAnthropic):
    path = "/v1/messages/count_tokens"
    required = "messages"
    streams = False
    charges_tokens = False

    def translator(self, ask: Ask, route: Route, allowed: Caps) -> AnthropicTranslator:
        return AnthropicTranslator(ask, *self.allowed_fields(ask, route, allowed))

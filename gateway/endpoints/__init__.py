"""The API paths that model servers answer, one a file."""

from __future__ import annotations

from gateway.endpoints.base import Endpoint
from gateway.endpoints.chat import Chat
from gateway.endpoints.completions import Completions
from gateway.endpoints.count_tokens import CountTokens
from gateway.endpoints.embeddings import Embeddings
from gateway.endpoints.messages import Messages

ENDPOINTS: tuple[Endpoint, ...] = (
    Chat(),
    Completions(),
    Embeddings(),
    Messages(),
    CountTokens(),
)

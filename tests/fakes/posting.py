"""A chat request, and posting it to a scripted engine with nothing in between."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tests.fakes.client import Answer, request
from tests.fakes.engine import Engine

JSON = [("content-type", "application/json")]
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 3,
    "messages": [{"role": "user", "content": "hi"}],
}


async def post(engine: Engine, path: str, body: Any, headers: Iterable[Any] = ()) -> Answer:
    return await request(
        engine.port, "POST", path, [*JSON, *headers], json.dumps(body).encode(), patience=5
    )

"""GET /v1/models and /v1/models/{id}: what this key may use, in the dialect of who asks."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from gateway.errors import ModelNotFound
from gateway.route import Routes
from gateway.terms import Head, Principal

PATH = "/v1/models"


def answer(head: Head, routes: Routes, principal: Principal, started: int) -> dict[str, Any]:
    """The list, or one model; `started` (seconds since the epoch) stands for its creation.

    Raises ModelNotFound.
    """
    anthropic = b"anthropic-version" in head.fields
    shape = _anthropic if anthropic else _openai
    name = unquote(head.path[len(PATH) :].strip("/"))
    lengths = routes.visible(principal)
    if name:
        if name not in lengths:
            raise ModelNotFound(name)
        return shape(name, lengths[name], started)
    models = [shape(name, length, started) for name, length in lengths.items()]
    return _anthropic_list(models) if anthropic else {"object": "list", "data": models}


def _openai(name: str, length: int | None, started: int) -> dict[str, Any]:
    model: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": started,
        "owned_by": "fairgate",
    }
    if length is not None:
        model["max_model_len"] = length
    return model


def _anthropic(name: str, length: int | None, started: int) -> dict[str, Any]:
    created = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    model = {"type": "model", "id": name, "display_name": name, "created_at": created}
    if length is not None:
        model["max_model_len"] = str(length)
    return model


def _anthropic_list(models: Iterable[dict[str, Any]]) -> dict[str, Any]:
    listed = list(models)
    return {
        "data": listed,
        "first_id": listed[0]["id"] if listed else None,
        "last_id": listed[-1]["id"] if listed else None,
        "has_more": False,
    }

"""What a server says of itself: the models it serves, and the request fields it knows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from backends.base import Replica
from backends.errors import BadAnswer, Refused
from backends.kinds.base import probe
from backends.transport import Transport

_SMALL = 1 << 20
_SCHEMA = 16 << 20
#: What a name may be: it is told in a header.
_NAME = re.compile(r"[\x21-\x7e]{1,128}\Z")
#: A probe is asked of an engine that may be busy: slow is not gone.
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Served:
    """One model of a server; `max_model_len` in tokens where it says so."""

    name: str
    max_model_len: int | None


async def models(transport: Transport, replica: Replica) -> list[Served]:
    """What `GET /v1/models` lists. Raises BackendError."""
    document = await _get(transport, replica, "/v1/models", _SMALL)
    listed = document.get("data")
    if not isinstance(listed, list):
        raise BadAnswer("/v1/models is not a list of models")
    served = []
    for model in listed:
        name = model.get("id") if isinstance(model, dict) else None
        if isinstance(name, str) and _NAME.match(name):
            length = model.get("max_model_len")
            served.append(Served(name, length if isinstance(length, int) else None))
    return served


async def fields(transport: Transport, replica: Replica) -> dict[str, frozenset[str]]:
    """The request fields of each POST path, from `/openapi.json`. Raises BackendError."""
    document = await _get(transport, replica, "/openapi.json", _SCHEMA)
    try:
        return _read(document)
    except (AttributeError, TypeError):
        raise BadAnswer("/openapi.json is not an OpenAPI document") from None


def _read(document: dict[str, Any]) -> dict[str, frozenset[str]]:
    schemas = document.get("components", {}).get("schemas", {})
    known = {}
    for path, methods in document.get("paths", {}).items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        if schema:
            known[path] = frozenset(_properties(schema, schemas, 0))
    return known


def _properties(schema: dict[str, Any], schemas: dict[str, Any], depth: int) -> Iterator[str]:
    if depth > 8:
        return
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        yield from _properties(schemas.get(name, {}), schemas, depth + 1)
    yield from schema.get("properties", {})
    for joined in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(joined, ()):
            yield from _properties(part, schemas, depth + 1)


async def _get(transport: Transport, replica: Replica, target: str, limit: int) -> dict[str, Any]:
    status, body = await transport.fetch(
        replica, probe(target, replica), limit=limit, timeout=_PATIENCE
    )
    if status != 200:
        raise Refused(status)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadAnswer(f"{target} is not JSON") from None
    if not isinstance(document, dict):
        raise BadAnswer(f"{target} is not an object")
    return document

"""Asking servers what they are: what is asked, and when each is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson

from backends import capability as record
from backends.base import Replica
from backends.capability import Capability, Served
from backends.errors import BackendError, BadAnswer, Refused
from backends.kinds.base import probe
from backends.transport import Transport

_SMALL = 1 << 20
_SCHEMA = 16 << 20
#: It is asked of an engine that may be busy: slow is not gone.
_PATIENCE = 10.0
#: Seconds until a server is asked again: one that has not answered yet, and one that has.
_SOON = 2.0
_LATER = 60.0


async def capability(transport: Transport, replica: Replica) -> Capability:
    """What the server says of itself now. Raises BackendError where it does not list its models.

    Its schema, which may be long, is asked for only where another one is to be expected.
    """
    known = replica.capability
    served = await models(transport, replica)
    version = await _version(transport, replica)
    same = (served, version) == (known.models, known.version)
    found = replace(known, models=served, version=version)
    if known.routes and version and same:
        return found
    try:
        document = await _get(transport, replica, "/openapi.json", _SCHEMA)
        return replace(found, routes=record.routes(document), fields=record.fields(document))
    except BackendError:
        if same:
            return found
    except (AttributeError, TypeError):
        pass  # not an OpenAPI document
    return replace(found, routes=frozenset(), fields={})


async def models(transport: Transport, replica: Replica) -> tuple[Served, ...]:
    """What `GET /v1/models` lists. Raises BackendError."""
    document = await _get(transport, replica, "/v1/models", _SMALL)
    try:
        return record.models(document)
    except TypeError:
        raise BadAnswer("/v1/models is not a list of models") from None


async def _version(transport: Transport, replica: Replica) -> str:
    try:
        return record.version(await _get(transport, replica, "/version", _SMALL))
    except BackendError:
        return ""  # a server without that page; what it is stays unknown


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


async def pause(
    replica: Replica, *, answered: bool, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Wait until the server is worth asking again: soon where it did not answer, else after a
    while, or as soon as it is back from having been out of service: it may be another one by then.
    """
    waited, away = 0.0, False
    while True:
        await sleep(_SOON)
        waited += _SOON
        away = away or not replica.health.sound
        if not answered or waited >= _LATER or (away and replica.health.sound):
            return

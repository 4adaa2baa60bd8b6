"""Every request field that the running engine knows is in the gateway's table, or privileged."""

from typing import Any

import pytest

from gateway.terms import PRIVILEGED
from gateway.wire.fields import FIELDS
from tests.e2e.engines import Engines

pytestmark = pytest.mark.e2e


async def test_every_field_of_the_engine_is_in_the_table(engines: Engines) -> None:
    missing: dict[str, set[str]] = {}
    seen: set[str] = set()
    for engine in (engines.chat, engines.embedding):
        document = await engine.openapi()
        for path, table in FIELDS.items():
            known = _fields(document, path)
            if known:
                seen.add(path)
                missing.setdefault(path, set()).update(known - set(table) - PRIVILEGED)
    assert seen == set(FIELDS)
    assert {path: sorted(names) for path, names in missing.items() if names} == {}


async def test_no_privileged_field_is_in_the_table() -> None:
    assert all(not PRIVILEGED & set(table) for table in FIELDS.values())


def _fields(document: dict[str, Any], path: str) -> set[str]:
    """The top-level fields of what a path takes; none where the engine lacks the path."""
    operation = document["paths"].get(path)
    if operation is None:
        return set()
    schema = operation["post"]["requestBody"]["content"]["application/json"]["schema"]
    return _properties(document, schema)


def _properties(document: dict[str, Any], schema: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
    found = set(schema.get("properties", ()))
    for word in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(word, ()):
            found |= _properties(document, part)
    return found

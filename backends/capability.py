"""The record of what a server said of itself: its models, its routes and their fields, its version.

Pure: documents come in parsed. What a server did not say is not known, and nothing is held against
it for that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: What a name may be: it is told in a header. A version is shown to people.
_NAME = re.compile(r"[\x21-\x7e]{1,128}\Z")


@dataclass(frozen=True, slots=True)
class Served:
    """One model of a server; `max_model_len` in tokens where it says so."""

    name: str
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class Capability:
    """Empty is not known, in each of them. `fields` are those of a request, by route."""

    models: tuple[Served, ...] = ()
    routes: frozenset[str] = frozenset()
    fields: Mapping[str, frozenset[str]] = field(default_factory=dict)
    version: str = ""

    def speaks(self, path: str) -> bool:
        """Whether nothing is known against asking it for `path`."""
        return not self.routes or path in self.routes

    def lacks(self, path: str, name: str) -> bool:
        """Whether the fields of `path` are known and `name` is not among them."""
        known = self.fields.get(path)
        return known is not None and name not in known


UNKNOWN = Capability()


def models(document: dict[str, Any]) -> tuple[Served, ...]:
    """Those of a `/v1/models`, each once. Raises TypeError where that is no list of models."""
    listed = document.get("data")
    if not isinstance(listed, list):
        raise TypeError("no list of models")
    served: dict[str, Served] = {}
    for model in listed:
        name = model.get("id") if isinstance(model, dict) else None
        if isinstance(name, str) and _NAME.match(name):
            length = model.get("max_model_len")
            served.setdefault(name, Served(name, length if isinstance(length, int) else None))
    return tuple(served.values())


def version(document: dict[str, Any]) -> str:
    """That of a `/version`; empty where it says none."""
    told = document.get("version")
    return told if isinstance(told, str) and _NAME.match(told) else ""


def routes(document: dict[str, Any]) -> frozenset[str]:
    """The POST paths of an OpenAPI document. Raises AttributeError where it is another shape."""
    paths = document.get("paths", {})
    return frozenset(path for path, methods in paths.items() if "post" in methods)


def fields(document: dict[str, Any]) -> dict[str, frozenset[str]]:
    """The request fields of each POST path of an OpenAPI document.

    Raises AttributeError or TypeError where it is another shape.
    """
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

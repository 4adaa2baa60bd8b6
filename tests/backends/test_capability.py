"""What is read out of a server's documents, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest

from backends import capability
from backends.capability import UNKNOWN, Capability, Served

CHAT = "/v1/chat/completions"


def test_what_is_not_known_is_held_against_nobody() -> None:
    assert UNKNOWN.speaks(CHAT)
    assert not UNKNOWN.lacks(CHAT, "cache_salt")


def test_a_known_record_says_what_is_missing() -> None:
    known = Capability(routes=frozenset({CHAT}), fields={CHAT: frozenset({"model"})})
    assert known.speaks(CHAT)
    assert not known.speaks("/v1/messages")
    assert known.lacks(CHAT, "cache_salt")
    assert not known.lacks(CHAT, "model")
    assert not known.lacks("/v1/messages", "cache_salt")


def test_what_is_no_model_is_left_out_and_each_is_there_once() -> None:
    odd: list[Any] = [1, None, {}, {"id": 5}, {"id": "a\r\nb"}, {"id": "x" * 129}]
    odd += [{"id": "a", "max_model_len": "x"}, {"id": "b", "max_model_len": 7}, {"id": "a"}]
    assert capability.models({"data": odd}) == (Served("a", None), Served("b", 7))


@pytest.mark.parametrize("document", [{}, {"data": {}}, {"data": None}, {"data": "tiny"}])
def test_a_list_that_is_none_is_refused(document: Any) -> None:
    with pytest.raises(TypeError):
        capability.models(document)


@pytest.mark.parametrize(
    ("told", "version"),
    [("0.32.0", "0.32.0"), ("", ""), (None, ""), (5, ""), ("a\nb", ""), ("x" * 129, "")],
)
def test_a_version_is_one_short_word(told: Any, version: str) -> None:
    assert capability.version({"version": told}) == version


def test_routes_are_the_paths_that_take_a_request() -> None:
    document: dict[str, Any] = {"paths": {"/v1/a": {"post": {}}, "/v1/b": {"get": {}}, "/v1/c": {}}}
    assert capability.routes(document) == {"/v1/a"}
    assert capability.routes({}) == frozenset()


def schema(body: Any, schemas: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": body}}
    return {
        "paths": {"/v1/x": {"post": {"requestBody": {"content": content}}, "get": {}}},
        "components": {"schemas": schemas},
    }


def test_fields_of_joined_schemas_are_found() -> None:
    body = {"anyOf": [{"$ref": "#/components/schemas/A"}, {"properties": {"b": {}}}]}
    document = schema(body, {"A": {"allOf": [{"properties": {"a": {}}}]}})
    assert capability.fields(document) == {"/v1/x": {"a", "b"}}


def test_a_schema_that_holds_itself_ends() -> None:
    loop = {"properties": {"a": {}}, "allOf": [{"$ref": "#/components/schemas/A"}]}
    document = schema({"$ref": "#/components/schemas/A"}, {"A": loop})
    assert capability.fields(document) == {"/v1/x": {"a"}}

"""The list of models: what this key may use, in the dialect of who asks."""

from typing import Any

import pytest

from gateway.endpoints import models
from gateway.errors import ModelNotFound
from gateway.route import Routes
from gateway.terms import Head, Principal
from tests.gateway.endpoints import route

STARTED = 1_795_229_078
ALL = Principal("ann", "search")
NONE = Principal("bob", "search", frozenset())
ROUTES = Routes({"tiny": route(max_model_len=131072), "org/alias": route()})


def get(path: str = "/v1/models", *, to: Principal = ALL, anthropic: bool = False) -> Any:
    fields = {b"anthropic-version": b"2023-06-01"} if anthropic else {}
    return models.answer(Head("GET", path, fields), ROUTES, to, STARTED)


TINY = {
    "id": "tiny",
    "object": "model",
    "created": STARTED,
    "owned_by": "fairgate",
    "max_model_len": 131072,
}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/"])
def test_openai_clients_get_openais_list_aliases_included(path: str) -> None:
    listed = get(path)
    assert listed["object"] == "list"
    assert listed["data"][0] == TINY
    assert [model["id"] for model in listed["data"]] == ["tiny", "org/alias"]
    assert "max_model_len" not in listed["data"][1]


def test_anthropic_clients_get_anthropics_list() -> None:
    listed = get(anthropic=True)
    assert (listed["first_id"], listed["last_id"]) == ("tiny", "org/alias")
    assert listed["has_more"] is False
    assert listed["data"][1] == {
        "type": "model",
        "id": "org/alias",
        "display_name": "org/alias",
        "created_at": "2026-11-21T02:44:38Z",
    }


def test_one_model_is_given_by_its_name() -> None:
    assert get("/v1/models/tiny") == TINY
    assert get("/v1/models/tiny", anthropic=True)["type"] == "model"


@pytest.mark.parametrize("path", ["/v1/models/org/alias", "/v1/models/org%2Falias"])
def test_a_name_with_a_slash_is_found(path: str) -> None:
    assert get(path)["id"] == "org/alias"


def test_a_key_sees_only_what_it_may_use() -> None:
    assert get(to=NONE) == {"object": "list", "data": []}
    empty = get(to=NONE, anthropic=True)
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)
    some = Principal("cy", "search", frozenset({"tiny"}))
    assert len(get(to=some)["data"]) == 2, "an alias goes by the model it stands for"


def test_a_model_one_may_not_use_and_one_that_is_not_there_are_the_same() -> None:
    with pytest.raises(ModelNotFound) as hidden:
        get("/v1/models/tiny", to=NONE)
    with pytest.raises(ModelNotFound) as missing:
        get("/v1/models/tinx", to=NONE)
    assert str(hidden.value).replace("tiny", "tinx") == str(missing.value)

"""Names → routes: permission, aliases, and one answer for what is not there and not allowed."""

import pytest

from gateway.errors import ModelNotFound
from gateway.route import Routes
from gateway.settings import Caps
from gateway.terms import Principal
from tests.gateway.pools import pool, replica, route

ANYONE = Principal("ann", "search")


def routes() -> Routes:
    llama, other = route(model="llama"), route(model="other")
    return Routes({"llama": llama, "gpt-4o": llama, "other": other})


def test_an_alias_leads_where_its_model_does() -> None:
    table = routes()
    assert table.resolve("gpt-4o", ANYONE) is table.resolve("llama", ANYONE)
    assert table.resolve("other", ANYONE).model == "other"


@pytest.mark.parametrize("name", ["other", "missing", "", "LLAMA", "llama "])
def test_a_name_not_allowed_is_refused_like_one_that_does_not_exist(name: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        routes().resolve(name, Principal("ann", "search", frozenset({"llama"})))
    assert str(refused.value) == str(ModelNotFound(name))


def test_permission_goes_by_the_model_that_an_alias_stands_for() -> None:
    table = routes()
    assert (
        table.resolve("gpt-4o", Principal("ann", "search", frozenset({"llama"}))).model == "llama"
    )
    with pytest.raises(ModelNotFound):
        table.resolve("gpt-4o", Principal("ann", "search", frozenset({"gpt-4o"})))


def test_a_key_sees_its_models_with_their_aliases_and_no_other() -> None:
    seen = dict(routes().visible(Principal("ann", "search", frozenset({"llama"}))))
    assert set(seen) == {"llama", "gpt-4o"}
    assert set(dict(routes().visible(ANYONE))) == {"llama", "gpt-4o", "other"}


def test_a_pool_with_aliases_is_listed_once() -> None:
    table = routes()
    assert [each.name for each in table.pools()] == ["llama", "other"]


def test_a_team_with_caps_of_its_own_has_them_and_others_the_models() -> None:
    shared = pool("llama", replica())
    told = route(shared, caps=Caps(n=2), caps_by_team={"search": Caps(n=9)})
    assert (told.caps_for("search").n, told.caps_for("ads").n) == (9, 2)

"""Names → routes: permission, aliases, splits, fallbacks, and one answer for what is not there and
not allowed."""

import sys
from collections import Counter
from subprocess import run
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ModelNotFound
from gateway.route import Routes, Split
from gateway.settings import Caps
from gateway.terms import Ask, Principal
from tests.gateway.pools import pool, replica, route
from tests.gateway.wire import raw

ANYONE = Principal("ann", "search")
OWNERS = [(f"key-{n % 50}", f"user-{n}") for n in range(2000)]


def ask(name: str, **fields: Any) -> Ask:
    return Ask(name, False, raw(**fields))


def routes() -> Routes:
    llama, other = route(model="llama"), route(model="other")
    return Routes({"llama": llama, "gpt-4o": llama, "other": other})


def test_an_alias_leads_where_its_model_does() -> None:
    table = routes()
    assert table.resolve(ask("gpt-4o"), ANYONE) is table.resolve(ask("llama"), ANYONE)
    assert table.resolve(ask("other"), ANYONE).model == "other"


@pytest.mark.parametrize("name", ["other", "missing", "", "LLAMA", "llama "])
def test_a_name_not_allowed_is_refused_like_one_that_does_not_exist(name: str) -> None:
    with pytest.raises(ModelNotFound) as refused:
        routes().resolve(ask(name), Principal("ann", "search", frozenset({"llama"})))
    assert str(refused.value) == str(ModelNotFound(name))


def test_permission_goes_by_the_model_that_an_alias_stands_for() -> None:
    table = routes()
    assert (
        table.resolve(ask("gpt-4o"), Principal("ann", "search", frozenset({"llama"}))).model
        == "llama"
    )
    with pytest.raises(ModelNotFound):
        table.resolve(ask("gpt-4o"), Principal("ann", "search", frozenset({"gpt-4o"})))


def test_a_key_sees_its_models_with_their_aliases_and_no_other() -> None:
    seen = routes().visible(Principal("ann", "search", frozenset({"llama"})))
    assert set(seen) == {"llama", "gpt-4o"}
    assert set(routes().visible(ANYONE)) == {"llama", "gpt-4o", "other"}


def test_a_pool_with_aliases_is_listed_once() -> None:
    table = routes()
    assert [each.name for each in table.pools()] == ["llama", "other"]


def test_a_team_with_caps_of_its_own_has_them_and_others_the_models() -> None:
    shared = pool("llama", replica())
    told = route(shared, caps=Caps(n=2), caps_by_team={"search": Caps(n=9)})
    assert (told.caps_for("search").n, told.caps_for("ads").n) == (9, 2)


# Splits


def splitting(*lengths: int | None) -> Routes:
    table = {f"m{n}": route(model=f"m{n}", max_model_len=each) for n, each in enumerate(lengths)}
    split = Split("chat", dict.fromkeys(table, 1))
    return Routes(table, {"chat": split, "gpt": split})


def shares(split: Split) -> Counter[str]:
    return Counter(split.side(*owner) for owner in OWNERS)


@pytest.mark.parametrize(
    "sides", [{"a": 90, "b": 10}, {"b": 10, "a": 90}, {"a": 1}, {"a": 1, "b": 2, "c": 7}]
)
def test_each_side_has_its_share_of_many_users(sides: dict[str, int]) -> None:
    told, whole = shares(Split("chat", sides)), sum(sides.values())
    for side, weight in sides.items():
        assert told[side] / len(OWNERS) == pytest.approx(weight / whole, abs=0.02)


def test_keys_that_name_no_user_are_shared_out_as_users_are() -> None:
    split = Split("chat", {"a": 90, "b": 10})
    told = Counter(split.side(f"key-{n}", "") for n in range(2000))
    assert told["b"] / 2000 == pytest.approx(0.1, abs=0.02)


def test_a_changed_weight_moves_no_more_users_than_it_must() -> None:
    before, after = Split("chat", {"a": 5, "b": 4, "c": 1}), Split("chat", {"a": 5, "b": 4, "c": 4})
    moved = Counter(
        (before.side(*owner), after.side(*owner))
        for owner in OWNERS
        if before.side(*owner) != after.side(*owner)
    )
    assert {to for _, to in moved} == {"c"}
    assert sum(moved.values()) / len(OWNERS) == pytest.approx(4 / 13 - 1 / 10, abs=0.02)


def test_two_splits_share_out_the_same_users_each_on_its_own() -> None:
    one, other = Split("chat", {"a": 1, "b": 1}), Split("summarise", {"a": 1, "b": 1})
    both = Counter((one.side(*owner), other.side(*owner)) for owner in OWNERS)
    assert len(both) == 4
    assert min(both.values()) / len(OWNERS) == pytest.approx(0.25, abs=0.04)


@given(key=st.text(max_size=64), user=st.text(max_size=64).filter(lambda text: text.isprintable()))
def test_an_owner_stays_on_its_side_whatever_the_order_of_the_sides(key: str, user: str) -> None:
    key = key.encode("utf-8", "replace").decode()
    one, other = Split("chat", {"a": 3, "b": 2}), Split("chat", {"b": 2, "a": 3})
    assert one.side(key, user) == one.side(key, user) == other.side(key, user)


def test_another_process_chooses_the_same_sides() -> None:
    script = (
        "from gateway.route import Split\n"
        "split = Split('chat', {'a': 60, 'b': 40})\n"
        "print(''.join(split.side('ann', f'user-{n}') for n in range(200)))"
    )
    told = run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    split = Split("chat", {"a": 60, "b": 40})
    assert told.strip() == "".join(split.side("ann", f"user-{n}") for n in range(200))
    assert set(told.strip()) == {"a", "b"}


def test_a_key_and_its_user_are_told_apart_however_they_are_cut() -> None:
    split = Split("chat", {f"m{n}": 1 for n in range(100)})
    sides = {split.side(key, user) for key, user in (("ab", "c"), ("a", "bc"), ("abc", ""))}
    assert len(sides) > 1


def test_a_split_leads_to_one_side_for_each_key_and_user() -> None:
    table, split = splitting(None, None), Split("chat", {"m0": 1, "m1": 1})
    for key, user in OWNERS[:50]:
        who = Principal(key, "search")
        for fields in ({"user": user}, {"metadata": {"user_id": user}}):
            assert table.resolve(ask("chat", **fields), who).model == split.side(key, user)
            assert table.resolve(ask("gpt", **fields), who).model == split.side(key, user)
        assert table.resolve(ask("chat"), who).model == split.side(key, "")


def test_a_split_needs_permission_for_its_own_name_and_for_no_other() -> None:
    table = splitting(None, None)
    for name in ("chat", "gpt"):
        chosen = table.resolve(ask(name), Principal("ann", "search", frozenset({"chat"})))
        assert chosen.model in ("m0", "m1")
        with pytest.raises(ModelNotFound):
            table.resolve(ask(name), Principal("ann", "search", frozenset({"m0", "m1"})))
    with pytest.raises(ModelNotFound):
        table.resolve(ask("m0"), Principal("ann", "search", frozenset({"chat"})))


@pytest.mark.parametrize(
    ("lengths", "length"),
    [((4096, 1024), 1024), ((1024, 4096), 1024), ((None, 4096), 4096), ((None, None), None)],
)
def test_a_split_is_as_long_as_the_shortest_of_its_sides(
    lengths: tuple[int | None, ...], length: int | None
) -> None:
    only = Principal("ann", "search", frozenset({"chat"}))
    assert splitting(*lengths).visible(only) == {"chat": length, "gpt": length}
    assert set(splitting(*lengths).visible(ANYONE)) == {"m0", "m1", "chat", "gpt"}


# Fallbacks


def test_fallbacks_come_in_their_order_and_without_their_own() -> None:
    table = {
        "a": route(model="a", fallback=("c", "b")),
        "b": route(model="b", fallback=("a",)),
        "c": route(model="c"),
    }
    assert [each.model for each in Routes(table).fallbacks(table["a"])] == ["c", "b"]
    assert list(Routes(table).fallbacks(table["c"])) == []

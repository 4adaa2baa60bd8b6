"""Families: every file is registered, and every entry is what its Protocol says."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest

from backends import kinds, policies
from backends.base import Kind, Policy
from backends.kinds import KINDS
from backends.policies import POLICIES
from gateway import endpoints
from gateway.endpoints import ENDPOINTS
from gateway.endpoints.base import Endpoint
from gateway.settings import Model
from gateway.terms import PRIVILEGED
from gateway.wire.fields import FIELDS

#: Answered by the gateway itself, so no endpoint of a model server.
OUR_OWN = {"gateway.endpoints.models"}

MEMBERS: list[tuple[Any, Any]] = [
    *((Endpoint, entry) for entry in ENDPOINTS),
    *((Kind, entry) for entry in KINDS.values()),
    *((Policy, make()) for make in POLICIES.values()),
]


def files_of(family: ModuleType) -> set[str]:
    """The modules of a family, without what they share."""
    names = {module.name for module in pkgutil.iter_modules(family.__path__)} - {"base"}
    return {f"{family.__name__}.{name}" for name in names} - OUR_OWN


@pytest.mark.parametrize(
    ("family", "entries"),
    [(endpoints, ENDPOINTS), (kinds, KINDS.values()), (policies, POLICIES.values())],
    ids=["endpoints", "kinds", "policies"],
)
def test_every_file_of_a_family_is_registered(family: ModuleType, entries: Iterator[Any]) -> None:
    classes = [entry if isinstance(entry, type) else type(entry) for entry in entries]
    assert {each.__module__ for each in classes} == files_of(family)
    for name in files_of(family):
        importlib.import_module(name)


@pytest.mark.parametrize(("protocol", "entry"), MEMBERS, ids=lambda each: getattr(each, "name", ""))
def test_an_entry_has_what_its_protocol_says(protocol: Any, entry: Any) -> None:
    for name in get_type_hints(protocol):
        assert hasattr(entry, name), name
    methods = [name for name, value in vars(protocol).items() if inspect.isfunction(value)]
    for name in (name for name in methods if not name.startswith("_")):
        promised = list(inspect.signature(getattr(protocol, name)).parameters.values())[1:]
        given = list(inspect.signature(getattr(entry, name)).parameters.values())
        assert [(p.name, p.kind) for p in given] == [(p.name, p.kind) for p in promised], name


def test_every_path_is_registered_once_and_has_its_fields() -> None:
    paths = [endpoint.path for endpoint in ENDPOINTS]
    assert len(set(paths)) == len(paths)
    assert set(FIELDS) == set(paths)
    for path in paths:
        assert "model" in FIELDS[path]
        assert not PRIVILEGED & set(FIELDS[path])
    for kind in KINDS.values():
        assert kind.paths <= set(paths)


def test_an_entry_is_found_by_its_own_name_and_the_configuration_knows_it() -> None:
    assert all(kind.name == name for name, kind in KINDS.items())
    hints = get_type_hints(Model)
    assert set(KINDS) == set(get_args(hints["kind"]))
    assert set(POLICIES) == set(get_args(hints["policy"]))

"""What each failure is worth: another try elsewhere or not, and the label it is counted by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends import errors
from backends.errors import BackendError, Refused, StreamFailed


def every(kind: type[BackendError] = BackendError) -> Iterator[type[BackendError]]:
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield below
            yield from every(below)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert errors.__doc__ is not None
    for kind in every():
        assert kind.__name__ in errors.__doc__


def test_every_failure_is_counted_under_a_name_of_its_own() -> None:
    reasons = [kind.reason for kind in every()]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize(
    ("exc", "elsewhere"),
    [
        (errors.NoReplica(), False),
        (errors.ConnectFailed(), True),
        (errors.ConnectionBroken(), True),
        (errors.BadAnswer(), True),
        (errors.StreamTruncated(), True),
        (errors.UpstreamTimeout(), False),
        (errors.FirstEventTimeout(), True),
        (StreamFailed("m", 400), False),
        (StreamFailed("m", 500), True),
        (StreamFailed("m"), True),
        (Refused(400), False),
        (Refused(404), False),
        (Refused(429), True),
        (Refused(500), True),
        (Refused(503), True),
    ],
)
def test_another_replica_is_worth_a_try(exc: BackendError, elsewhere: bool) -> None:
    assert exc.elsewhere is elsewhere


def test_what_the_engine_said_is_not_in_the_text_of_a_refusal() -> None:
    assert "prompt" not in str(Refused(400, "your prompt was: ..."))

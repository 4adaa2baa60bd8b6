"""What is known of a replica, said in one place."""

from __future__ import annotations

import ssl

import pytest

from backends.base import Origin, Replica


@pytest.mark.parametrize(
    ("concurrency", "in_flight", "full"),
    [(None, 10_000, False), (2, 1, False), (2, 2, True), (2, 3, True)],
)
def test_a_replica_is_full_at_its_concurrency(
    concurrency: int | None, in_flight: int, full: bool
) -> None:
    replica = Replica("u", Origin("h", 80), concurrency=concurrency, in_flight=in_flight)
    assert replica.full is full


def test_replicas_with_equal_fields_are_two() -> None:
    one, two = Replica("u", Origin("h", 80)), Replica("u", Origin("h", 80))
    assert one != two
    assert len({one, two}) == 2


def test_origins_are_equal_by_what_they_say() -> None:
    assert Origin("h", 80) == Origin("h", 80)
    assert str(Origin("h", 80)) == "http://h:80"
    assert str(Origin("h", 443, ssl.create_default_context())) == "https://h:443"

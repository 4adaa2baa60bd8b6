"""When a store is given up, and when it is asked again."""

from gateway.limits.breaker import Breaker


def test_three_failures_in_a_row_open_it_and_only_the_third_says_so() -> None:
    breaker = Breaker()
    assert [breaker.failed() for _ in range(4)] == [False, False, True, False]
    assert breaker.open


def test_a_success_between_begins_the_row_anew() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed()
        breaker.failed()
        assert not breaker.open
        for _ in range(3):
            breaker.succeeded()


def test_half_of_the_last_twenty_open_it() -> None:
    breaker = Breaker()
    for _ in range(9):
        breaker.succeeded()
        assert not breaker.failed()
    breaker.succeeded()
    assert breaker.failed()


def test_what_is_longer_ago_than_twenty_calls_does_not_count() -> None:
    breaker = Breaker()
    for _ in range(9):
        breaker.succeeded()
        breaker.failed()
    for _ in range(20):
        breaker.succeeded()
    for _ in range(9):
        assert not breaker.failed()
        breaker.succeeded()
    assert not breaker.open


def test_it_opens_at_once_where_it_must() -> None:
    breaker = Breaker()
    assert breaker.failed(at_once=True)
    assert breaker.open
    assert not breaker.failed(at_once=True), "it was open"


def test_closed_again_it_has_forgotten_what_was() -> None:
    breaker = Breaker()
    for _ in range(12):
        breaker.failed()
    breaker.close()
    assert not breaker.open
    assert [breaker.failed() for _ in range(3)] == [False, False, True]

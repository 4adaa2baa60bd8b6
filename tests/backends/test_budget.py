"""The retry budget: a fifth of the requests, and the callers' own retries out of the same purse."""

from backends.budget import RetryBudget


def granted(budget: RetryBudget, asked: int) -> int:
    return sum(budget.take() for _ in range(asked))


def test_a_pool_that_nobody_used_yet_has_a_few() -> None:
    assert granted(RetryBudget(), 10) == 3


def test_a_fifth_of_the_requests_may_be_sent_again() -> None:
    budget = RetryBudget()
    granted(budget, 10)
    for _ in range(50):
        budget.request(again=False)
    assert granted(budget, 50) == 10


def test_no_more_is_saved_than_a_fifth_of_a_hundred() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.request(again=False)
    assert granted(budget, 100) == 20


def test_where_every_request_fails_the_tries_stay_below_six_fifths() -> None:
    budget, tries = RetryBudget(), 0
    for _ in range(1000):
        budget.request(again=False)
        tries += 1 + budget.take()
    assert tries <= 1.2 * 1000 + 3


def test_the_callers_own_retries_are_paid_for() -> None:
    budget = RetryBudget()
    for _ in range(10):
        budget.request(again=False)
    for _ in range(5):
        budget.request(again=True)
    assert granted(budget, 10) == 0

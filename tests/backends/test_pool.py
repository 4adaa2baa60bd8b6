"""What a pool decides: who may be asked, whether again, and what an answer says of its engine."""

from __future__ import annotations

from typing import Any

import pytest

from backends import errors
from backends.base import Demand, Replica
from backends.errors import BackendError, ConnectFailed, Refused
from backends.health import Standing
from backends.kinds import KINDS
from backends.policies import POLICIES
from backends.pool import Means, Pool, evict, heard
from backends.quarantine import Quarantine
from tests.fakes.clock import Seconds
from tests.fakes.flying import Flying, Waiting
from tests.gateway.pools import Unwatched, replica


@pytest.fixture
def clock() -> Seconds:
    return Seconds()


def pool_of(clock: Seconds, *replicas: Replica) -> Pool:
    nothing: Any = None
    means = Means(nothing, Unwatched(), Quarantine(b"secret", clock), clock)
    return Pool("tiny", KINDS["vllm"], replicas, POLICIES["round_robin"](), means)


def three() -> list[Replica]:
    return [replica(f"http://gpu{n}:8000") for n in (1, 2, 3)]


def chosen(pool: Pool, times: int = 12) -> set[str]:
    picked = (pool.pick(Demand(), ()) for _ in range(times))
    return {each.url[10:11] for each in picked if each is not None}


def test_who_is_ejected_full_or_drained_is_not_chosen(clock: Seconds) -> None:
    one, two, three_ = three()
    pool = pool_of(clock, one, two, three_)
    one.health.stalled(clock.now, "silent")
    assert chosen(pool) == {"2", "3"}
    two.concurrency = two.in_flight = 1
    assert chosen(pool) == {"3"}
    three_.drained = True
    assert chosen(pool) == {"1"}  # the least bad: judgement alone empties no pool
    one.drained = True
    assert chosen(pool) == set()


def test_where_none_is_well_the_one_whose_ejection_ends_first_is_asked(clock: Seconds) -> None:
    one, two, three_ = three()
    pool = pool_of(clock, one, two, three_)
    one.health.told(clock.now, "unreachable")
    two.health.stalled(clock.now, "silent")
    clock.now += 7
    two.health.stalled(clock.now, "silent")
    three_.health.stalled(clock.now, "silent")
    assert chosen(pool) == {"3"}


def test_on_probation_one_request_at_a_time_finds_out(clock: Seconds) -> None:
    one, two, _ = three()
    pool = pool_of(clock, one, two)
    one.health.stalled(clock.now, "silent")
    clock.now += 7
    assert chosen(pool) == {"1", "2"}
    one.in_flight = 1
    assert chosen(pool) == {"1", "2"}, "a stream of before its ejection is no trial"
    one.trials = 1
    assert chosen(pool) == {"2"}


def test_after_a_failure_only_another_that_is_well_is_tried(clock: Seconds) -> None:
    one, two, _ = three()
    pool = pool_of(clock, one, two)
    two.health.stalled(clock.now, "silent")
    assert pool.pick(Demand(), [one], Refused(500)) is None
    assert pool.pick(Demand(), [one], ConnectFailed("refused")) is two


def test_one_that_has_no_room_is_not_the_second_try_of_another_without(clock: Seconds) -> None:
    one, two, _ = three()
    pool = pool_of(clock, one, two)
    pool.judge(two, Refused(503))
    assert pool.pick(Demand(), [one], Refused(503)) is None
    assert pool.pick(Demand(), [one], Refused(500)) is two
    clock.now += 1.1
    assert pool.pick(Demand(), [one], Refused(503)) is two


@pytest.mark.parametrize(
    "exc", [errors.EngineDied("x"), errors.EngineStuck("x"), ConnectFailed("")]
)
def test_what_an_engine_out_of_service_had_may_always_be_sent_again(
    clock: Seconds, exc: BackendError
) -> None:
    pool = pool_of(clock, *three())
    assert all(pool.may_retry(exc) for _ in range(100))


def test_other_failures_are_sent_again_as_the_budget_allows(clock: Seconds) -> None:
    pool = pool_of(clock, *three())
    assert [pool.may_retry(Refused(500)) for _ in range(5)] == [True, True, True, False, False]
    assert not pool.may_retry(Refused(400))


@pytest.mark.parametrize(
    ("failure", "times", "standing"),
    [
        (ConnectFailed("refused"), 2, Standing.UP),
        (ConnectFailed("refused"), 3, Standing.EJECTED),
        (Refused(500), 4, Standing.UP),
        (Refused(500), 5, Standing.EJECTED),
        (errors.StreamTruncated("cut"), 5, Standing.EJECTED),
        (errors.EngineDied("gone"), 1, Standing.EJECTED),
        (errors.UpstreamTimeout("silent"), 1, Standing.EJECTED),
        (errors.FirstEventTimeout("silent"), 1, Standing.EJECTED),
        (errors.DeadlinePassed("the caller's"), 50, Standing.UP),
        (Refused(400), 50, Standing.UP),
        (Refused(422), 50, Standing.UP),
        (Refused(404), 50, Standing.UP),
        (Refused(405), 50, Standing.UP),
        (Refused(401), 5, Standing.EJECTED),
        (Refused(503), 50, Standing.UP),
        (Refused(429), 50, Standing.UP),
        (errors.EngineStuck("judged already"), 50, Standing.UP),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_speaks_against_an_engine(
    clock: Seconds, failure: BackendError, times: int, standing: Standing
) -> None:
    one, two, _ = three()
    pool = pool_of(clock, one, two)
    for _ in range(times):
        pool.judge(one, failure)
    assert one.health.standing(clock.now) is standing


def test_a_good_answer_between_failures_keeps_it_in(clock: Seconds) -> None:
    one, *_ = three()
    pool = pool_of(clock, one)
    for _ in range(10):
        for _ in range(4):
            pool.judge(one, Refused(500))
        pool.judge(one, None)
    assert one.health.standing(clock.now) is Standing.UP
    assert one.last_error is None


def test_one_slow_answer_says_little_while_others_flow(clock: Seconds) -> None:
    one, *_ = three()
    pool = pool_of(clock, one)
    one.flights[Flying()] = Waiting(clock.now - 9)
    pool.judge(one, errors.UpstreamTimeout("silent"))
    assert one.health.standing(clock.now) is Standing.UP
    clock.now += 2
    pool.judge(one, errors.UpstreamTimeout("silent"))
    assert one.health.standing(clock.now) is Standing.EJECTED


def test_what_waits_for_a_first_event_is_taken_from_an_engine_that_stalls(clock: Seconds) -> None:
    one, *_ = three()
    pool = pool_of(clock, one)
    waiting, committed = Flying(), Flying()
    one.flights[waiting] = Waiting(clock.now - 60)
    one.flights[committed] = Waiting(clock.now - 60, movable=False)
    assert heard(one) == clock.now - 60
    pool.judge(one, errors.FirstEventTimeout("no event within 300 s"))
    assert [type(exc) for exc in waiting.failures] == [errors.EngineStuck]
    assert committed.failures == []


def test_a_dead_engine_blames_what_it_had(clock: Seconds) -> None:
    pool = pool_of(clock, *three())
    for each in pool.replicas[:2]:
        pool.means.quarantine.suspect(each, b"{}")
        pool.judge(each, ConnectFailed("refused"))
    with pytest.raises(errors.KillsEngines):
        pool.means.quarantine.check(b"{}")


def test_evicting_nothing_harms_nobody() -> None:
    one, *_ = three()
    evict(one, "stuck")
    assert heard(one) is None


def test_a_server_that_refuses_the_gateway_itself_is_told_of_but_not_for_each_request(
    clock: Seconds, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, _ = three()
    pool = pool_of(clock, one, two)
    for replica_, status in ((one, 401), (one, 404), (two, 401), (one, 400), (one, 422)):
        for _ in range(3):
            pool.judge(replica_, Refused(status))
            pool.judge(replica_, None)
    refused = [r.getMessage() for r in caplog.records if "callers get 502" in r.getMessage()]
    assert refused[0] == (
        "tiny: http://gpu1:8000 answers 401 to requests (our credential is missing or wrong), and "
        "callers get 502: run check --probe"
    )
    assert "answers 404 to requests (no such model or path there)" in refused[1]
    assert len(refused) == 3
    clock.now += 601
    pool.judge(one, Refused(401))
    assert len([r for r in caplog.records if "callers get 502" in r.getMessage()]) == 4

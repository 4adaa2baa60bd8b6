"""What one who finds no room is told: when there may be some, by how fast requests leave."""

from backends.pace import Pace


def at_rate(a_second: int, seconds: int = 20) -> tuple[Pace, float]:
    pace, now = Pace(), 100.0
    for _ in range(seconds * a_second):
        now += 1 / a_second
        pace.ended(now)
    return pace, now


def test_while_nothing_is_known_it_is_a_second() -> None:
    assert Pace().wait(100.0) == 1.0


def test_a_fast_pool_has_room_in_a_second() -> None:
    pace, now = at_rate(50)
    assert pace.wait(now) == 1.0


def test_who_is_refused_later_waits_longer() -> None:
    pace, now = at_rate(2)
    waits = [pace.wait(now + 0.001 * n) for n in range(10)]
    assert waits == sorted(waits)
    assert 3.5 < waits[-1] < 7


def test_no_wait_is_longer_than_a_minute() -> None:
    pace, now = at_rate(1)
    assert max(pace.wait(now) for _ in range(1000)) == 60.0


def test_those_refused_a_while_ago_are_not_waited_for() -> None:
    pace, now = at_rate(5)
    for _ in range(100):
        pace.wait(now)
    assert pace.wait(now + 5) < 2


def test_a_rate_that_changed_is_learned() -> None:
    pace, now = at_rate(50)
    for _ in range(30):
        now += 1.0
        pace.ended(now)
    assert max(pace.wait(now) for _ in range(10)) > 5

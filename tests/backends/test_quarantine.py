"""A body in flight at two engine deaths is not sent again; others are not touched."""

from __future__ import annotations

import logging

import pytest

from backends.base import Replica
from backends.errors import KillsEngines
from backends.quarantine import Quarantine
from tests.fakes.clock import Seconds
from tests.gateway.pools import replica

ONE, TWO, THREE = (replica(f"http://gpu{n}:8000") for n in (1, 2, 3))
BODY = b'{"messages":[{"role":"user","content":"the prompt that kills"}]}'


class Case:
    """A quarantine. Mutable state: what it told other processes."""

    def __init__(self) -> None:
        self.clock = Seconds()
        self.told: list[tuple[str, str]] = []
        self.quarantine = Quarantine(b"secret", self.clock, self._tell)

    def _tell(self, fingerprint: str, url: str) -> None:
        self.told.append((fingerprint, url))

    def refused(self, body: bytes = BODY) -> bool:
        try:
            self.quarantine.check(body)
        except KillsEngines:
            return True
        return False

    def killed(self, *engines: Replica) -> None:
        for engine in engines:
            self.quarantine.suspect(engine, BODY)
            self.quarantine.died(engine)


@pytest.fixture
def case() -> Case:
    return Case()


def test_one_death_is_no_proof(case: Case) -> None:
    case.killed(ONE)
    assert not case.refused()


def test_two_deaths_are_enough(case: Case) -> None:
    case.killed(ONE, TWO)
    assert case.refused()
    assert not case.refused(BODY + b" ")


def test_one_engine_that_died_twice_counts_twice(case: Case) -> None:
    case.killed(ONE)
    case.clock.now += 30
    case.killed(ONE)
    assert case.refused()


def test_many_requests_with_one_body_at_one_death_are_one_death(case: Case) -> None:
    for _ in range(20):
        case.killed(ONE)
        case.clock.now += 0.01
    assert not case.refused()


def test_ten_minutes_later_it_may_be_sent_again(case: Case) -> None:
    case.killed(ONE, TWO)
    case.clock.now += 599
    assert case.refused()
    case.clock.now += 2
    assert not case.refused()


def test_what_failed_long_before_the_death_is_not_to_blame(case: Case) -> None:
    for engine in (ONE, TWO):
        case.quarantine.suspect(engine, BODY)
    case.clock.now += 11
    for engine in (ONE, TWO):
        case.quarantine.died(engine)
    assert not case.refused()


def test_an_engine_that_lives_on_blames_nobody(case: Case) -> None:
    for engine in (ONE, TWO, THREE):
        case.quarantine.suspect(engine, BODY)
    assert not case.refused()


def test_other_processes_are_told_and_can_tell(case: Case) -> None:
    case.killed(ONE, TWO)
    other = Case()
    for fingerprint, url in case.told:
        other.quarantine.blame(fingerprint, url)
    assert other.refused()
    assert not other.refused(b"{}")


def test_what_comes_back_from_others_is_not_counted_again(case: Case) -> None:
    case.killed(ONE)
    for fingerprint, url in case.told * 3:
        case.quarantine.blame(fingerprint, url)
    assert not case.refused()


def test_another_secret_has_other_fingerprints() -> None:
    made = []
    for secret in (b"one", b"two"):
        case = Case()
        case.quarantine = Quarantine(secret, Seconds(), case._tell)
        case.killed(ONE)
        made += case.told
    assert len(set(made)) == 2


def test_the_log_has_the_fingerprint_and_nothing_of_the_prompt(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        case.killed(ONE, TWO)
    first, second = (record.getMessage() for record in caplog.records)
    made = f"body with the fingerprint {case.told[0][0]} (no request id) was in flight when"
    assert first == f"a {made} http://gpu1:8000 died"
    assert second.startswith(f"the {made} http://gpu2:8000 died, too")
    assert second.endswith("it is refused from now on")
    assert "prompt" not in caplog.text


def test_suspects_and_bodies_are_bounded(case: Case) -> None:
    for number in range(12_000):
        body = b"%d" % number
        case.quarantine.suspect(ONE, body)
        if number % 1000 == 999:
            case.quarantine.died(ONE)
    assert len(case.quarantine._deaths) == 10_000
    for number in range(5_000):
        case.quarantine.suspect(TWO, b"%d" % number)
    assert len(case.quarantine._suspects[TWO.url]) == 1_000


def test_what_no_longer_counts_is_let_go_of(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    # Engines that come and go, each with a URL of its own, as pods have them.
    for n in range(50):
        case.quarantine.suspect(replica(f"http://10.0.0.{n}:8000"), BODY)
        case.clock.now += 60
    assert len(case.quarantine._suspects) == 1
    case.killed(ONE)
    case.clock.now += 590
    case.quarantine.blame("another", ONE.url)
    case.clock.now += 20
    hashed: list[bytes] = []

    def fingerprint(body: bytes) -> str:
        hashed.append(body)
        return ""

    monkeypatch.setattr(case.quarantine, "_fingerprint", fingerprint)
    assert not case.refused()
    assert list(case.quarantine._deaths) == ["another"]
    case.clock.now += 600
    hashed.clear()
    assert not case.refused()
    assert hashed == [], "long after the last death every request pays for it"


def test_one_that_failed_again_just_now_is_the_last_to_be_forgotten(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.quarantine._MOST_SUSPECTS", 2)
    for body in (BODY, b"a", BODY, b"b"):
        case.quarantine.suspect(ONE, body)
    case.quarantine.died(ONE)
    case.killed(TWO)
    assert case.refused()

"""Policies over many requests, in virtual time. With `-s` the figures are printed."""

from __future__ import annotations

import math
import random

import pytest

from backends.base import Demand, Replica
from backends.policies import POLICIES
from tests.backends.policies.engines import READING, Job, World

SEEDS = (1, 2, 3)
#: What a gateway expects of an answer before it has learned better.
EXPECTED = 512


# Engines of different speeds

SPEEDS = (100.0, 100.0, 200.0, 400.0)
ANSWER, PROMPT, REQUESTS = 100, 400, 4000


def p99_under_poisson(policy: str, load: float, seed: int) -> float:
    """Seconds that 99 of 100 requests take at most; all weights are 1, no answer's length known."""
    draw = random.Random(seed)
    world = World(POLICIES[policy](), SPEEDS, slots=16, knee=4)
    latencies: list[float] = []

    def request() -> None:
        output = math.ceil(draw.expovariate(1 / ANSWER))
        demand = Demand("team", math.ceil(draw.expovariate(1 / PROMPT)), EXPECTED)
        world.send(demand, output, lambda job: latencies.append(job.ended - job.sent))

    rate = load * sum(SPEEDS) / (ANSWER + PROMPT / READING)
    when = 0.0
    for _ in range(REQUESTS):
        when += draw.expovariate(rate)
        world.at(when, request)
    world.run()
    assert len(latencies) == REQUESTS
    return sorted(latencies)[REQUESTS * 99 // 100]


@pytest.mark.parametrize("seed", SEEDS)
def test_least_busy_finds_out_how_fast_replicas_are(seed: int) -> None:
    least_busy, in_turn = (p99_under_poisson(p, 0.6, seed) for p in ("least_busy", "round_robin"))
    print(f"\np99 at 60 %: least busy {least_busy:.1f} s, in turn {in_turn:.1f} s")
    assert least_busy <= 0.7 * in_turn


# Conversations

CONVERSATIONS, TURNS = 400, 10
#: Fewer requests under way than this, in the mean of all replicas, and the mean is chance.
MEANINGFUL = 16
TICK = 0.1


class Talks:
    """Agents that begin within half a minute, each waiting a second between an answer and the next
    turn, whose prompt is all that was said before.

    Mutable state: the world's; `last`, who had each conversation's turn before; how many `turns`
    after the first there were, and how many of them a replica was `kept` for; since when each
    replica is `over` 1.25 times the mean, and the longest that any was.
    """

    def __init__(self, policy: str, replicas: int, seed: int) -> None:
        self.draw = random.Random(seed)
        self.world = World(POLICIES[policy](), [2400.0] * replicas, slots=256, knee=128)
        self.last: dict[bytes, Replica | None] = {}
        self.turns = self.kept = self.samples = 0
        self.over: dict[Replica, float] = {}
        self.longest = 0.0
        for _ in range(CONVERSATIONS):
            key, first = self.draw.randbytes(16), 1500 + round(self.draw.expovariate(1 / 500))
            self._turn_at(self.draw.uniform(0, 30), key, 1, first)
        self.world.every(TICK, self._sample, until=1000)
        self.world.run()

    def _turn_at(self, when: float, key: bytes, turn: int, prompt: int) -> None:
        self.world.at(when, lambda: self._turn(key, turn, prompt))

    def _turn(self, key: bytes, turn: int, prompt: int) -> None:
        output = math.ceil(self.draw.lognormvariate(math.log(250), 0.6))

        def then(job: Job) -> None:
            if turn < TURNS:
                pause = self.draw.expovariate(1.0)
                more = 50 + round(self.draw.expovariate(1 / 150))
                self._turn_at(job.ended + pause, key, turn + 1, prompt + output + more)

        job = self.world.send(Demand("team", prompt, EXPECTED, key), output, then)
        if turn > 1:
            self.turns += 1
            self.kept += job.replica is self.last[key]
        self.last[key] = job.replica

    def _sample(self) -> None:
        replicas, now = self.world.replicas, self.world.now
        if sum(replica.in_flight for replica in replicas) < MEANINGFUL * len(replicas):
            self.over.clear()
            return
        self.samples += 1
        mean = sum(replica.work for replica in replicas) / len(replicas)
        for replica in replicas:
            if replica.work > 1.25 * mean:
                self.longest = max(self.longest, now - self.over.setdefault(replica, now))
            else:
                self.over.pop(replica, None)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("replicas", [4, 8])
def test_turns_go_where_their_conversation_is_and_nobody_has_too_much(
    replicas: int, seed: int
) -> None:
    talks = Talks("prefix_affinity", replicas, seed)
    other = Talks("least_busy", replicas, seed)
    print(
        f"\n{replicas} replicas: {talks.kept / talks.turns:.1%} of turns kept (least busy "
        f"{other.kept / other.turns:.1%}), over 1.25 x the mean for at most {talks.longest:.1f} s "
        f"of {talks.samples * TICK:.0f} s"
    )
    assert talks.turns == CONVERSATIONS * (TURNS - 1)
    assert talks.samples * TICK > 60
    assert talks.kept >= 0.95 * talks.turns
    assert talks.longest <= 1

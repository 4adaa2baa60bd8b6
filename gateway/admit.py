"""Step 4: may it run now. Every rule is decided at once; what was taken is settled at the end."""

from __future__ import annotations

import math
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from msgspec import Struct

from backends.base import Demand
from gateway.errors import (
    GatewayError,
    LimitsUnavailable,
    PoolFull,
    QuotaSpent,
    RateLimited,
    TooLargeForLimit,
)
from gateway.estimate import Estimates, weighed
from gateway.limits.base import (
    SECOND,
    Claim,
    Counter,
    Decision,
    Form,
    Level,
    Line,
    Rule,
    Settled,
    Unavailable,
)
from gateway.limits.rulebook import Rulebook
from gateway.route import Route
from gateway.terms import UNLIMITED, Principal, Size, Standing, Standings, Usage

#: The longest wait a refusal tells, in seconds; after a longer one it says not to retry.
_LONGEST_WAIT = 60
#: What is added to a wait at random, so that all who were refused do not come back at once.
_JITTER = 0.2
_SPENT = ("day", "month")
DEGRADED = b"x-fairgate-limits: degraded\r\n"
_SLOTS = Form.SLOTS


class Plan:
    """The rules of one key on one model, in the order of a claim's lines: on requests, on tokens,
    slots. `requests` and `one_slot` are such lines, the latter for a request of one answer.
    """

    __slots__ = ("by_request", "one_slot", "requests", "slots", "tokens")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.by_request = tuple(r for r in rules if r.counted == "requests")
        self.tokens = tuple(r for r in rules if r.counted == "tokens")
        self.slots = tuple(r for r in rules if r.form is _SLOTS)
        self.requests = tuple((r, 1) for r in self.by_request)
        self.one_slot = tuple((r, 1) for r in self.slots)

    def standings(self, decision: Decision) -> Standings:
        """The tightest rule on requests and that on tokens, by what a claim's decision told."""
        levels, at, first = decision.levels, decision.at, len(self.by_request)
        return _tightest(self.by_request, levels, 0, at), _tightest(self.tokens, levels, first, at)


class Permit(Struct, eq=False):
    """What an admitted request holds until it ends. `headers` are for its answer; `demand` is what
    it asks of a replica.

    Mutable state: `claim`, what was granted, and what was told of that; `_used`, what it is charged
    for, once that is known.
    """

    _admission: Admission
    _key: str
    _route: Route | None
    _size: Size
    _plan: Plan
    demand: Demand
    claim: Claim | None = None
    decision: Decision | None = None
    headers: bytes = b""
    _used: Usage | None = None

    def standings(self) -> Standings:
        """How the caller stands with its limits, for the answer."""
        return UNLIMITED if self.decision is None else self._plan.standings(self.decision)

    def settle(self, usage: Usage, events: int) -> Usage:
        """Charge what was used, by the engine's word or by the `events` relayed; what that is.

        Never waits. A second time it changes nothing.
        """
        if self._used is None:
            self._used = self._counted(usage, events)
            weight = 0.0 if self._route is None else self._route.cached_token_weight
            self._close(weighed(self._used, weight), 1)
        return self._used

    def refund(self) -> None:
        """It was not served, through no fault of the caller's: it costs nothing."""
        if self._used is None:
            self._used = Usage()
            self._close(0, 0)

    def _counted(self, usage: Usage, events: int) -> Usage:
        if self._route is None:
            return usage
        estimates, model = self._admission.estimates, self._route.model
        if usage.exact:
            estimates.learn(self._key, model, self._size, usage, events)
            return usage
        return estimates.counted(model, self._size, events, usage)

    def _close(self, tokens: int, requests: int) -> None:
        claim, decision = self.claim, self.decision
        if claim is None or decision is None:
            return
        lines: list[Settled] = []
        for rule, amount in claim.lines:
            if rule.counted == "tokens":
                lines.append((rule, amount, tokens))
            elif rule.form is _SLOTS:
                lines.append((rule, amount, 0))
            elif requests != amount:
                lines.append((rule, amount, requests))
        self._admission.counter.settle(claim, lines, decision.at)


class Admission:
    """Mutable state: the plans made so far, one for each key and model that was asked for."""

    def __init__(self, rulebook: Rulebook, estimates: Estimates, counter: Counter) -> None:
        self.estimates = estimates
        self.counter = counter
        self._rulebook = rulebook
        self._plans: dict[tuple[str, str | None], Plan] = {}

    def admit(
        self, request_id: str, principal: Principal, route: Route, size: Size, *, tokens: bool
    ) -> Coroutine[Any, Any, Permit]:
        """What the request may hold, once awaited; without `tokens` it costs a request and no more.

        Raises a GatewayError when a rule refuses; then nothing is held or consumed.
        """
        plan = self._plan(principal, route.model)
        lines = plan.requests
        if tokens:
            prompt = self.estimates.prompt(route.model, size)
            output = self.estimates.output(principal.key, route.model, size)
            demand = Demand(principal.team, prompt, output)
            if plan.tokens or plan.slots:
                lines = _lines(plan, prompt, prompt + output, size.answers)
        else:
            demand = Demand(principal.team)
        permit = Permit(self, principal.key, route, size, plan, demand)
        return self._decided(request_id, plan, lines, permit)

    def count(self, request_id: str, principal: Principal) -> Coroutine[Any, Any, Permit]:
        """Admit a request that no engine sees, such as one for the list of models."""
        plan = self._plan(principal, None)
        permit = Permit(self, principal.key, None, Size(), plan, Demand())
        return self._decided(request_id, plan, plan.requests, permit)

    def _plan(self, principal: Principal, model: str | None) -> Plan:
        plan = self._plans.get((principal.key, model))
        if plan is None:
            plan = Plan(self._rulebook.of(principal, model))
            self._plans[principal.key, model] = plan
        return plan

    async def _decided(
        self, request_id: str, plan: Plan, lines: tuple[Line, ...], permit: Permit
    ) -> Permit:
        """The permit, holding what `lines` claim."""
        if not lines:
            return permit
        claim = Claim(request_id, lines)
        try:
            decision = await self.counter.decide(claim)
        except Unavailable:
            raise LimitsUnavailable from None
        if decision.refused is not None:
            raise self._refusal(plan, claim, decision)
        permit.claim, permit.decision = claim, decision
        if self.counter.degraded:
            permit.headers = DEGRADED
        return permit

    def _refusal(self, plan: Plan, claim: Claim, decision: Decision) -> GatewayError:
        assert decision.refused is not None
        rule = claim.lines[decision.refused][0]
        seconds = decision.wait / SECOND
        refusal = _refused(rule, f"{rule}; {_again(seconds)}")
        refusal.limited_by = rule.label
        refusal.standings = plan.standings(decision)
        if rule.form is _SLOTS:
            # Slots are told only where they refuse.
            left = decision.levels[decision.refused][0], decision.wait
            refusal.standings = _tightest((rule,), (left,), 0, decision.at), refusal.standings[1]
            refusal.retry_after = seconds * (1 - _JITTER * random.random())
        elif seconds > _LONGEST_WAIT:
            refusal.retry_after = _LONGEST_WAIT
            refusal.should_retry = False  # type: ignore[misc]  # this one's wait is too long
        else:
            jittered = seconds * (1 + _JITTER * random.random())
            refusal.retry_after = min(jittered, _LONGEST_WAIT)
        if self.counter.degraded:
            refusal.headers = ((b"x-fairgate-limits", b"degraded"),)
        return refusal


def _lines(plan: Plan, prompt: int, tokens: int, answers: int) -> tuple[Line, ...]:
    lines = plan.requests
    for rule in plan.tokens:
        burst = rule.burst
        if prompt > burst:
            raise _too_large(rule, f"its prompt alone has about {prompt:,} tokens")
        # Above what there can be at once, the rest becomes a debt when it is used.
        lines += ((rule, tokens if tokens < burst else burst),)
    if answers == 1:
        return lines + plan.one_slot
    for rule in plan.slots:
        if answers > rule.limit:
            raise _too_large(rule, f"it asks for {answers} answers at once")
        lines += ((rule, answers),)
    return lines


def _refused(rule: Rule, message: str) -> GatewayError:
    if rule.scope == "model":
        return PoolFull(message)
    if rule.window in _SPENT:
        return QuotaSpent(message)
    return RateLimited(message, "tokens" if rule.counted == "tokens" else "requests")


def _too_large(rule: Rule, why: str) -> TooLargeForLimit:
    most = "" if rule.burst == rule.limit else f", at most {rule.burst:,} at once"
    refusal = TooLargeForLimit(f"This request can never pass a limit, {rule}{most}: {why}.")
    refusal.limited_by = rule.label
    return refusal


def _again(seconds: float) -> str:
    """When it is worth another try, as people say it."""
    whole = math.ceil(seconds)
    if whole < 120:
        return f"try again in {whole} s"
    if whole < 2 * 3600:
        return f"try again in {math.ceil(whole / 60)} min"
    if whole < 48 * 3600:
        return f"try again in {math.ceil(whole / 3600)} h"
    return f"try again in {math.ceil(whole / 86400)} days"


def _tightest(
    rules: Sequence[Rule], levels: Sequence[Level], place: int, at: int
) -> Standing | None:
    """How the caller stands `at` a time with that of some rules that leaves least; their levels
    begin at `place`. None where there are none.
    """
    if not rules or place >= len(levels):
        return None
    tightest, (left, reset) = rules[0], levels[place]
    for rule in rules[1:]:
        place += 1
        level = levels[place]
        if level[0] * tightest.burst < left * rule.burst:
            tightest, (left, reset) = rule, level
    return Standing(tightest.burst, left, -(-reset // 1000), -(-(at + reset) // SECOND))

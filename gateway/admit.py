"""Step 4: may it run now. Every rule is decided at once; what was taken is settled at the end."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

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
    Rule,
    Settled,
    Unavailable,
)
from gateway.limits.rulebook import Rulebook
from gateway.route import Route
from gateway.terms import Principal, Size, Standing, Standings, Usage

#: The longest wait a refusal tells, in seconds; after a longer one it says not to retry.
_LONGEST_WAIT = 60
#: What is added to a wait at random, so that all who were refused do not come back at once.
_JITTER = 0.2
_SPENT = ("day", "month")
DEGRADED = b"x-fairgate-limits: degraded\r\n"


class Plan:
    """The rules of one key on one model, in the order of a claim's lines."""

    __slots__ = ("requests", "slots", "tokens")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.requests = tuple((r, 1) for r in rules if r.counted == "requests")
        self.tokens = tuple(r for r in rules if r.counted == "tokens")
        self.slots = tuple(r for r in rules if r.form is Form.SLOTS)


class Permit:
    """What an admitted request holds until it ends. `standings` and `headers` are for its answer;
    `demand` is what it asks of a replica.

    Mutable state: `_used`, what it is charged for, once that is known.
    """

    __slots__ = (
        *("_admission", "_claim", "_key", "_route", "_since", "_size", "_used"),
        *("demand", "headers", "standings"),
    )

    def __init__(
        self,
        admission: Admission,
        key: str,
        route: Route | None,
        size: Size,
        claim: Claim | None,
        since: int,
    ) -> None:
        self.demand = Demand()
        self.headers = b""
        self.standings: Standings = (None, None)
        self._admission = admission
        self._key = key
        self._route = route
        self._size = size
        self._claim = claim
        self._since = since
        self._used: Usage | None = None

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
        claim = self._claim
        if claim is None:
            return
        lines: list[Settled] = []
        for rule, amount in claim.lines:
            if rule.counted == "tokens":
                lines.append((rule, amount, tokens))
            elif rule.form is Form.SLOTS:
                lines.append((rule, amount, 0))
            elif requests != amount:
                lines.append((rule, amount, requests))
        self._admission.counter.settle(claim, lines, self._since)


class Admission:
    """Mutable state: the plans made so far, one for each key and model that was asked for."""

    def __init__(self, rulebook: Rulebook, estimates: Estimates, counter: Counter) -> None:
        self.estimates = estimates
        self.counter = counter
        self._rulebook = rulebook
        self._plans: dict[tuple[str, str | None], Plan] = {}

    async def admit(
        self, request_id: str, principal: Principal, route: Route, size: Size, *, tokens: bool
    ) -> Permit:
        """What the request may hold; without `tokens` it costs a request and no more.

        Raises a GatewayError when a rule refuses; then nothing is held or consumed.
        """
        plan = self._plan(principal, route.model)
        demand, lines = Demand(principal.team), plan.requests
        if tokens:
            prompt = self.estimates.prompt(route.model, size)
            output = self.estimates.output(principal.key, route.model, size)
            demand = Demand(principal.team, prompt, output)
            if plan.tokens or plan.slots:
                lines = _lines(plan, demand, size)
        permit = await self._decided(request_id, principal, route, size, lines)
        permit.demand = demand
        return permit

    async def count(self, request_id: str, principal: Principal) -> Permit:
        """Admit a request that no engine sees, such as one for the list of models."""
        plan = self._plan(principal, None)
        return await self._decided(request_id, principal, None, Size(), plan.requests)

    def _plan(self, principal: Principal, model: str | None) -> Plan:
        plan = self._plans.get((principal.key, model))
        if plan is None:
            plan = Plan(self._rulebook.of(principal, model))
            self._plans[principal.key, model] = plan
        return plan

    async def _decided(
        self,
        request_id: str,
        principal: Principal,
        route: Route | None,
        size: Size,
        lines: tuple[tuple[Rule, int], ...],
    ) -> Permit:
        if not lines:
            return Permit(self, principal.key, route, size, None, 0)
        claim = Claim(request_id, lines)
        try:
            decision = await self.counter.decide(claim)
        except Unavailable:
            raise LimitsUnavailable from None
        if decision.refused is not None:
            raise self._refusal(claim, decision)
        permit = Permit(self, principal.key, route, size, claim, decision.at)
        permit.standings = _standings(claim, decision)
        if self.counter.degraded:
            permit.headers = DEGRADED
        return permit

    def _refusal(self, claim: Claim, decision: Decision) -> GatewayError:
        assert decision.refused is not None
        rule = claim.lines[decision.refused][0]
        seconds = decision.wait / SECOND
        refusal = _refused(rule, f"{rule}; {_again(seconds)}")
        refusal.limited_by = rule.label
        refusal.standings = _standings(claim, decision, rule)
        if rule.form is Form.SLOTS:
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


def _lines(plan: Plan, demand: Demand, size: Size) -> tuple[tuple[Rule, int], ...]:
    lines = list(plan.requests)
    for rule in plan.tokens:
        if demand.prompt_tokens > rule.burst:
            raise _too_large(rule, f"its prompt alone has about {demand.prompt_tokens:,} tokens")
        # Above what there can be at once, the rest becomes a debt when it is used.
        lines.append((rule, min(demand.tokens, rule.burst)))
    for rule in plan.slots:
        if size.answers > rule.limit:
            raise _too_large(rule, f"it asks for {size.answers} answers at once")
        lines.append((rule, size.answers))
    return tuple(lines)


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


def _standings(claim: Claim, decision: Decision, refusing: Rule | None = None) -> Standings:
    """The tightest rule on requests and that on tokens; slots only where they refuse."""
    requests: tuple[Rule, Level] | None = None
    tokens: tuple[Rule, Level] | None = None
    for (rule, _), level in zip(claim.lines, decision.levels, strict=False):
        if rule.counted == "tokens":
            if tokens is None or level[0] * tokens[0].burst < tokens[1][0] * rule.burst:
                tokens = (rule, level)
        elif rule.form is Form.SLOTS:
            if rule is refusing:
                requests = (rule, (level[0], decision.wait))
        elif requests is None or level[0] * requests[0].burst < requests[1][0] * rule.burst:
            requests = (rule, level)
    return _standing(requests, decision.at), _standing(tokens, decision.at)


def _standing(of: tuple[Rule, Level] | None, at: int) -> Standing | None:
    if of is None:
        return None
    rule, (left, reset) = of
    return Standing(rule.burst, left, -(-reset // 1000), -(-(at + reset) // SECOND))

"""Step 4: may it run now. Every rule is decided at once; what was taken is settled at the end."""

from __future__ import annotations

from typing import Protocol

from gateway.route import Route
from gateway.terms import Ask, Principal, Usage


class Permit(Protocol):
    """What an admitted request holds until it ends."""

    def settle(self, usage: Usage) -> None:
        """Give back what was reserved and charge what was used. Called once, never waits."""


class Admission(Protocol):
    async def admit(self, principal: Principal, ask: Ask, route: Route) -> Permit:
        """Raises a GatewayError when a rule refuses; then nothing is held."""


class Free:
    """A permit of a gateway without rules: nothing is held."""

    def settle(self, usage: Usage) -> None:
        return None


class Unlimited:
    """Admits everyone: no limit is configured."""

    def __init__(self) -> None:
        self._permit = Free()

    async def admit(self, principal: Principal, ask: Ask, route: Route) -> Permit:
        return self._permit

"""Admission without rules: everyone passes, and nothing is held."""

from gateway.admit import Unlimited
from gateway.terms import Ask, Principal, Usage
from tests.gateway.pools import route


async def test_everyone_is_admitted_where_no_limit_is_configured() -> None:
    admission = Unlimited()
    ask = Ask("llama", False, {})
    first = await admission.admit(Principal("ann", "search"), ask, route())
    second = await admission.admit(Principal("bob", "ads"), ask, route())
    first.settle(Usage(prompt=10**9))
    second.settle(Usage())
    assert await admission.admit(Principal("ann", "search"), ask, route())

"""`fairgate drain` and `fairgate undrain`: take a replica out of service, and in again."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import click

from gateway.operator.port import Failed, answered, asked, asks, port
from gateway.operator.shown import counted
from gateway.units import Address

#: How often a replica that empties is looked at, in seconds.
_EVERY = 0.5
_FOR_EVER = float("inf")


class _Drain(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--wait URL` is a wait without SECONDS: click would take the URL for them."""
        given = list(args)
        for index, (one, after) in enumerate(pairwise(args)):
            if one == "--wait" and "://" in after:
                given[index] = f"--wait={_FOR_EVER}"
        return super().parse_args(ctx, given)


@click.command(cls=_Drain)
@click.argument("url")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    is_flag=False,
    flag_value=_FOR_EVER,
    metavar="[SECONDS]",
    help="Until nothing is under way there; with SECONDS at most so long.",
)
@asks
def drain(url: str, wait: float | None, admin: str | None, file: str | None) -> None:
    """Send nothing more to the replica at URL; what is under way there goes on.

    It stays out until `fairgate undrain URL`, or until the gateway starts anew. Status 3 when
    something is still under way after --wait SECONDS.
    """
    at = port(admin, file)
    told = asked(at, "POST", _target("drain", url), "pools")
    click.echo(f"{told['url']} is drained: nothing more for {' and '.join(told['pools'])}")
    for pool, fallback in told["alone"].items():
        instead = f"get {' or '.join(fallback)} instead" if fallback else "get 503 now"
        click.echo(f"{pool} has no other replica: its callers {instead}", err=True)
    try:
        asyncio.run(_emptied(at, told, 0.0 if wait is None else wait))
    except KeyboardInterrupt:
        raise Failed(f"not waited for; {told['url']} stays drained") from None
    except TimeoutError as exc:
        if wait is not None:
            raise Failed(f"{exc} after {wait:g} s; it stays drained") from None


@click.command()
@click.argument("url")
@asks
def undrain(url: str, admin: str | None, file: str | None) -> None:
    """Use the replica at URL again."""
    told = asked(port(admin, file), "POST", _target("undrain", url), "pools")
    click.echo(f"{told['url']} is used again for {' and '.join(told['pools'])}")


def _target(name: str, url: str) -> str:
    return f"/{name}?url={quote(url, safe='')}"


async def _emptied(at: Address, told: dict[str, Any], wait: float) -> None:
    """Until nothing is under way there, telling how it goes. Raises TimeoutError and Failed."""
    deadline = time.monotonic() + wait
    said = ""
    while True:
        left = _left(told)
        if left and left != said:
            click.echo(left)
            said = left
        if not left:
            click.echo(f"nothing is under way at {told['url']}")
            return
        if time.monotonic() >= deadline:
            raise TimeoutError(left)
        await asyncio.sleep(min(_EVERY, max(0.0, deadline - time.monotonic())))
        told = await answered(at, "GET", _target("drain", told["url"]), "pools")
        if not told["drained"]:
            raise Failed(f"{told['url']} is not drained any more: somebody took it in again")


def _left(told: dict[str, Any]) -> str:
    """What is still under way there; empty where nothing is."""
    if told["silent"]:
        return f"{counted(told['silent'], 'worker')} did not say what is under way there"
    return f"{counted(told['in_flight'], 'request')} under way there" if told["in_flight"] else ""

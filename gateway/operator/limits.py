"""`fairgate limits`: how each limit stands, and their reset."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click
import orjson
from rich.console import Console
from rich.table import Table

from gateway.operator.port import Failed, Refused, asked, asks, port
from gateway.units import Address

#: The columns of a table that no terminal is there for.
_WIDE = 160


def _owned(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--team", metavar="NAME", help="Those of one team, on all its models."),
        click.option("--key", metavar="NAME", help="Those of one key."),
    ):
        command = option(command)
    return command


@click.group(invoke_without_command=True)
@_owned
@click.option("--json", "raw", is_flag=True, help="What the gateway told, for scripts.")
@asks
@click.pass_context
def limits(
    context: click.Context,
    key: str | None,
    team: str | None,
    raw: bool,
    admin: str | None,
    file: str | None,
) -> None:
    """Show how each limit stands: why was this key refused.

    With --key also those that the key shares: its team's, the models', the gateway's. Where the
    admin port has a key, FAIRGATE_ADMIN_KEY holds it.
    """
    if context.invoked_subcommand is not None:
        if key or team or raw or admin or file:
            raise click.UsageError(f"options come after {context.invoked_subcommand!r}")
        return
    told = _asked(port(admin, file), "GET", f"/limits{_query(key, team)}", "rules")
    if raw:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    else:
        _show(told)


@limits.command("reset")
@_owned
@click.option("--all", "everything", is_flag=True, help="Every rule of the gateway.")
@asks
def reset(
    key: str | None, team: str | None, everything: bool, admin: str | None, file: str | None
) -> None:
    """Forget what the rules of a key or a team have counted, as if nothing had been used.

    Not what the key shares with others, and not requests that are under way.
    """
    if not (key or team or everything):
        raise click.UsageError("wanted --key NAME, --team NAME or --all")
    if everything and (key or team):
        raise click.UsageError("--all stands alone")
    query = "?all=true" if everything else _query(key, team)
    at = port(admin, file)
    told = _asked(at, "POST", f"/limits/reset{query}", "reset")
    for rule in told["reset"]:
        click.echo(f"reset {_name(rule)}")
    if not told["reset"]:
        click.echo("there is no such rule: nothing to reset")
        if key is not None and (of := _team_with_rules(at, key)) is not None:
            click.echo(f"{key} shares the rules of its team: fairgate limits reset --team {of}")


def _asked(at: Address, method: str, target: str, wanted: str) -> dict[str, Any]:
    try:
        return asked(at, method, target, wanted)
    except Refused as exc:
        if exc.status == 503:
            raise Failed(f"the limits are out of reach: {exc.message}") from None
        raise


def _team_with_rules(at: Address, key: str) -> str | None:
    """The team of a key, where it has rules that can be reset."""
    rules = _asked(at, "GET", f"/limits{_query(key, None)}", "rules")["rules"]
    of_team = (r for r in rules if r["scope"] == "team" and r["name"] != "concurrency")
    return next((str(rule["owner"][0]) for rule in of_team), None)


def _query(key: str | None, team: str | None) -> str:
    if key is not None and team is not None:
        raise click.UsageError("one of --key and --team, not both")
    for name, value in (("key", key), ("team", team)):
        if value is not None:
            return f"?{name}={quote(value, safe='')}"
    return ""


# What is shown


def _show(told: dict[str, Any]) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDE
    if told["degraded"]:
        local = told["mode"] == "local"
        now = "this is what one worker counts by itself" if local else f"limits are {told['mode']}"
        console.print(f"Redis is away: {now}.", style="bold red")
    if not told["rules"]:
        console.print("no limit is configured here")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("rule")
    for name in ("limit", "used", "left", "back in"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for rule in told["rules"]:
        spent = rule["left"] == 0
        mark = "" if not spent else "full" if rule["name"] == "concurrency" else "spent"
        table.add_row(*_cells(rule), mark, style="bold red" if spent else None)
    console.print(table)


def _cells(rule: dict[str, Any]) -> tuple[str, str, str, str, str]:
    limit = f"{rule['limit']:,}"
    if rule["burst"] != rule["limit"]:
        limit += f", burst {rule['burst']:,}"
    return _name(rule), limit, f"{rule['used']:,}", f"{rule['left']:,}", _span(rule["reset"])


def _name(rule: dict[str, Any]) -> str:
    """`team search on llama: tokens per minute`, as refusals say it."""
    owner = " on ".join(rule["owner"])
    scope = "team" if rule["scope"] == "team_model" else rule["scope"]
    return f"{scope} {owner}".strip() + f": {rule['name'].replace('_', ' ')}"


def _span(seconds: float) -> str:
    """How long until all of it is back, as people say it; nothing to wait for is a dash."""
    whole = math.ceil(seconds)
    if whole == 0:
        return "-"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{math.ceil(whole / size)} {unit}"
    return f"{whole} s"

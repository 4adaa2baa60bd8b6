"""What people ask a running gateway over its admin port: `fairgate limits`."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import quote

import click
import orjson
from rich.console import Console
from rich.table import Table

from backends.base import Origin, Replica
from backends.errors import BackendError
from backends.transport import Transport
from gateway import config as configuration
from gateway.settings import Config
from gateway.units import Address

_USAGE, _FAILED = 2, 3
_KEY = "FAIRGATE_ADMIN_KEY"
#: How long a gateway may take to answer, in seconds: its workers may have to wait for Redis.
_PATIENCE = 15.0
_LARGEST = 64 << 20
#: The columns of a table that no terminal is there for.
_WIDE = 160


def _asks(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which gateway is meant."""
    for option in (
        click.option(
            "--config", "file", metavar="FILE", help="The gateway's file: its admin_listen."
        ),
        click.option("--admin", metavar="URL", help="Default: http://127.0.0.1:9464."),
    ):
        command = option(command)
    return command


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
@_asks
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
    told = _asked(_port(admin, file), "GET", f"/limits{_query(key, team)}", "rules")
    if raw:
        click.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    else:
        _show(told)


@limits.command("reset")
@_owned
@click.option("--all", "everything", is_flag=True, help="Every rule of the gateway.")
@_asks
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
    told = _asked(_port(admin, file), "POST", f"/limits/reset{query}", "reset")
    for rule in told["reset"]:
        click.echo(f"reset {_name(rule)}")
    if not told["reset"]:
        click.echo("there is no such rule: nothing to reset")


def _query(key: str | None, team: str | None) -> str:
    if key is not None and team is not None:
        raise click.UsageError("one of --key and --team, not both")
    for name, value in (("key", key), ("team", team)):
        if value is not None:
            return f"?{name}={quote(value, safe='')}"
    return ""


# The gateway meant


def _port(admin: str | None, file: str | None) -> Address:
    if admin is not None and file is not None:
        raise click.UsageError("one of --admin and --config, not both")
    if admin is not None:
        try:
            return Address.parse(admin.removeprefix("http://").rstrip("/"))
        except ValueError:
            raise click.UsageError("--admin: wanted a URL such as http://127.0.0.1:9464") from None
    try:
        config = Config() if file is None else configuration.read(file, os.environ)
    except configuration.ConfigError as exc:
        _fail(str(exc), _USAGE)
    if config.admin_listen is None:
        _fail(f"{file}: admin_listen is null: this gateway has no admin port to ask")
    return config.admin_listen


def _asked(at: Address, method: str, target: str, wanted: str) -> dict[str, Any]:
    """What the admin port answers, with a list of what is `wanted`; else ends the command."""
    if at.host is None or at.port is None:
        _fail(f"{at} is a Unix socket; ask it with: curl --unix-socket {at.path} http://x{target}")
    try:
        status, body = asyncio.run(_fetched(at.host, at.port, method, target))
    except BackendError as exc:
        why = str(exc).removeprefix(f"http://{at.host}:{at.port}: ")
        _fail(
            f"no answer from the admin port http://{at} ({why}): is the gateway running, "
            "and is this its admin_listen? Say where with --admin URL or --config FILE"
        )
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if status == 403:
        _fail(f"http://{at} wants its admin key: set {_KEY} to the one of admin_key_sha256")
    name, kind = (wanted, list) if status == 200 else ("error", str)
    if not isinstance(told, dict) or not isinstance(told.get(name), kind):
        _fail(f"http://{at}{target} answered {status}: that is no admin port of fairgate")
    if status == 503:
        _fail(f"the limits are out of reach: {told['error']}")
    if status != 200:
        _fail(told["error"])
    return told


async def _fetched(host: str, port: int, method: str, target: str) -> tuple[int, bytes]:
    replica = Replica(url="", origin=Origin(host, port))
    lines = [f"{method} {target} HTTP/1.1", f"host: {Address(host, port)}", "content-length: 0"]
    if key := os.environ.get(_KEY, "").strip():
        lines.append(f"authorization: Bearer {key}")
    request = "\r\n".join([*lines, "", ""]).encode()
    transport = Transport()
    try:
        return await transport.fetch(replica, request, limit=_LARGEST, timeout=_PATIENCE)
    finally:
        await transport.close()


def _fail(message: str, status: int = _FAILED) -> NoReturn:
    click.echo(f"fairgate: {message}", err=True)
    sys.exit(status)


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

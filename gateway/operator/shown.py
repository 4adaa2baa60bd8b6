"""What `/status` tells, as people read it: whole, or line by line what changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

#: The columns where there is no terminal: nothing is folded, so that a line stays a line.
_WIDE = 1000
_LONGEST = 120
_STYLES = {"up": "green", "slow start": "yellow", "probation": "yellow", "busy": "yellow"}
_NUMBERS = ("in flight", "tokens", "running", "waiting", "KV")


def console() -> Console:
    """Standard output; wide where it is no terminal."""
    made = Console(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _WIDE
    return made


def whole(told: dict[str, Any]) -> RenderableType:
    """Everything: the gateway, its pools with their replicas, and the names that lead there."""
    parts: list[RenderableType] = [Text(summary(told))]
    if told.get("limits_degraded"):
        parts.append(Text("Redis is away: limits are degraded.", style="bold red"))
    if told["pools"]:
        parts += ["", _table(told["pools"])]
    else:
        parts.append(Text("no model is served yet"))
    names = list(_names(told))
    if names:
        parts += ["", *map(Text, names)]
    return Group(*parts)


def summary(told: dict[str, Any]) -> str:
    """`ready, 3 requests under way; worker 4711: 3`."""
    ready = "ready" if told["ready"] else "not ready"
    workers = "; ".join(_worker(worker) for worker in told.get("workers", ()))
    return f"{ready}, {counted(told['live_requests'], 'request')} under way; {workers}"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def changes(before: dict[str, Any], told: dict[str, Any]) -> list[str]:
    """A line for what is another one: the gateway, and each replica that stands otherwise."""
    lines = []
    if _facts(before) != _facts(told):
        degraded = "; limits are degraded: Redis is away" if told.get("limits_degraded") else ""
        lines.append(summary(told) + degraded)
    old, new = _replicas(before), _replicas(told)
    for (pool, url), replica in new.items():
        known = old.get((pool, url))
        if known is not None and _stands(known) == _stands(replica):
            continue
        cells = [_standing(replica), _why(replica), _error(replica)]
        lines.append(f"{pool} {url}: {'; '.join(filter(None, cells))}")
    lines += [f"{pool} {url}: gone" for pool, url in old if (pool, url) not in new]
    return lines


def _facts(told: dict[str, Any]) -> Any:
    workers = [
        (worker["pid"], worker["ready"], worker["restarts"]) for worker in told.get("workers", ())
    ]
    return told.get("ready"), workers, told.get("limits_degraded")


def _replicas(told: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (name, replica["url"]): replica
        for name, pool in told.get("pools", {}).items()
        for replica in pool["replicas"]
    }


def _stands(replica: dict[str, Any]) -> tuple[Any, ...]:
    # Not `why`: it counts seconds down.
    return replica["standing"], replica["chosen"], replica["last_error"]


def _worker(worker: dict[str, Any]) -> str:
    live = worker["live_requests"]
    text = f"worker {worker['pid']}: {'no answer' if live is None else live}"
    if not worker["ready"] and live is not None:
        text += ", not ready"
    return text + (f", restarted {worker['restarts']} ×" if worker["restarts"] else "")


def _table(pools: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("pool", "replica", "standing"):
        table.add_column(name, no_wrap=True)
    for name in _NUMBERS:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("why", "last error"):
        table.add_column(name)
    for name, pool in pools.items():
        shown = name
        for replica in pool["replicas"]:
            table.add_row(
                shown,
                replica["url"],
                Text(_standing(replica), style=_STYLES.get(replica["standing"], "bold red")),
                f"{replica['in_flight']:,}",
                f"{replica['outstanding']:,}",
                _number(replica["running"]),
                _number(replica["waiting"]),
                "-" if replica["kv"] is None else f"{replica['kv']:.0%}",
                _why(replica) or "-",
                _error(replica) or "-",
            )
            shown = ""
        if not pool["replicas"]:
            table.add_row(name, "no replica", Text("", style="bold red"))
    return table


def _standing(replica: dict[str, Any]) -> str:
    """How it stands; one that is asked all the same is the last there is."""
    stands: str = replica["standing"]
    return f"{stands}, the last" if stands == "ejected" and replica["chosen"] else stands


def _why(replica: dict[str, Any]) -> str:
    why: str = replica["why"]
    return "" if why == replica["standing"] else _plain(why)


def _error(replica: dict[str, Any]) -> str:
    """Its last error, without the address, which stands beside it."""
    return _plain((replica["last_error"] or "").removeprefix(f"{replica['url']}: "))


def _number(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _names(told: dict[str, Any]) -> Iterator[str]:
    """The names that are not a pool's own."""
    for name, sides in told.get("splits", {}).items():
        yield f"{name} is split: {', '.join(f'{side} {n}' for side, n in sides.items())}"
    for name, pool in told["pools"].items():
        if pool["aliases"]:
            yield f"{name} is also {', '.join(pool['aliases'])}"


def _plain(text: str) -> str:
    """Text of an engine as a terminal may have it: on one line, without orders to the terminal."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 1]}…"

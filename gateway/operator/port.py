"""The admin port of the gateway that a command is about: which it is, asked, and listened to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from typing import IO, Any, NoReturn

import click
import orjson

from backends.base import Flight, Headers, Origin, Replica
from backends.errors import BackendError
from backends.framing import Framer
from backends.transport import Transport
from gateway import config as configuration
from gateway.settings import Config
from gateway.units import Address
from gateway.wire import sse

_USAGE, _FAILED = 2, 3
_KEY = "FAIRGATE_ADMIN_KEY"
#: How long a gateway may take to answer, in seconds: its workers may have to wait for Redis.
_PATIENCE = 15.0
#: How long one that is listened to may say nothing: it speaks every 10 s.
_SILENCE = 25.0
_POLL_EVERY = 1.0
_LARGEST = 64 << 20


class Failed(click.ClickException):
    """Raised where there is nothing to show; the text says why, and ends the command."""

    exit_code = _FAILED

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"fairgate: {self.message}", err=True)


class Unusable(Failed):
    """Raised where the configuration that is to name the gateway is wrong."""

    exit_code = _USAGE


class Away(Failed):
    """Raised where nothing answers at the address."""


class Refused(Failed):
    """Raised where the gateway answers that it cannot, or will not. `status` is that of HTTP."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


def asks(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which gateway is meant."""
    for option in (
        click.option(
            "--config", "file", metavar="FILE", help="The gateway's file: its admin_listen."
        ),
        click.option("--admin", metavar="URL", help="Default: http://127.0.0.1:9464."),
    ):
        command = option(command)
    return command


def port(admin: str | None, file: str | None) -> Address:
    """The address that these options name. Raises Failed and UsageError."""
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
        raise Unusable(str(exc)) from None
    if config.admin_listen is None:
        raise Failed(f"{file}: admin_listen is null: this gateway has no admin port to ask")
    return config.admin_listen


def asked(at: Address, method: str, target: str, wanted: str, kind: type = list) -> dict[str, Any]:
    """What the admin port answers, with a `kind` under the name `wanted`. Raises Failed."""
    return asyncio.run(answered(at, method, target, wanted, kind))


async def answered(
    at: Address, method: str, target: str, wanted: str, kind: type = list
) -> dict[str, Any]:
    """What the admin port answers, with a `kind` under the name `wanted`. Raises Failed."""
    replica, request = _request(at, method, target)
    transport = Transport()
    try:
        status, body = await transport.fetch(replica, request, limit=_LARGEST, timeout=_PATIENCE)
    except BackendError as exc:
        _is_away(at, exc)
    finally:
        await transport.close()
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        told = None
    if status == 403 and told is None:
        raise Refused(
            403, f"http://{at} wants its admin key: set {_KEY} to the one of admin_key_sha256"
        )
    name, right = (wanted, kind) if status == 200 else ("error", str)
    if not isinstance(told, dict) or not isinstance(told.get(name), right):
        raise Failed(f"http://{at}{target} answered {status}: that is no admin port of fairgate")
    if status != 200:
        raise Refused(status, told["error"])
    return told


async def followed(at: Address) -> AsyncGenerator[dict[str, Any], None]:
    """The status now and whenever it is another one, until nothing answers. Raises Failed.

    Where the gateway has no events, or too many listeners, its status is asked for instead.
    """
    replica, request = _request(at, "GET", "/events")
    transport, newest = Transport(), Newest()
    transfer = transport.send(replica, request, newest)
    try:
        while True:
            try:
                async with asyncio.timeout(_SILENCE):
                    told = await newest.taken()
            except TimeoutError:
                raise Away(f"http://{at} is silent") from None
            if told is not None:
                yield told
            elif newest.streams is False:
                break
            elif newest.ended:
                _is_away(at, newest.failure)
    finally:
        transfer.close()
        await transport.close()
    before: dict[str, Any] = {}
    while True:
        told = await answered(at, "GET", "/status", "pools", dict)
        if told != before:
            yield told
        before = told
        await asyncio.sleep(_POLL_EVERY)


class Newest:
    """A sink that keeps the newest document of a stream of events.

    Mutable state: `streams`, whether events come, None until that is known; `document`, until it
    is taken; `ended`, and `failure`; `_news`, set when any of them changed; `_framer`; `_flight`.
    """

    promised = False
    heard = 0.0

    def __init__(self) -> None:
        self.failure: BackendError | None = None
        self.streams: bool | None = None
        self.document: bytes | None = None
        self.ended = False
        self._news = asyncio.Event()
        self._framer = Framer(_LARGEST)
        self._flight: Flight | None = None

    async def taken(self) -> dict[str, Any] | None:
        """The newest document, once something is new; None where that is something else."""
        if not self.ended:
            await self._news.wait()
            self._news.clear()
        document, self.document = self.document, None
        try:
            told = orjson.loads(document) if document is not None else None
        except orjson.JSONDecodeError:
            return None
        return told if isinstance(told, dict) else None

    def begin(self, flight: Flight, replica: Replica) -> None:
        self._flight = flight

    def sent(self) -> None:
        pass

    def head(self, status: int, headers: Headers) -> None:
        kind = dict(headers).get(b"content-type", b"")
        self.streams = status == 200 and kind.startswith(b"text/event-stream")
        self._news.set()

    def data(self, piece: bytes) -> None:
        if not self.streams:
            return
        try:
            events = sse.split(self._framer.cut(piece))
        except BackendError as exc:
            assert self._flight is not None
            self._flight.fail(exc)
            return
        for event in events:
            if document := sse.payload(event):
                self.document = document
                self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    def broken(self, exc: BackendError) -> None:
        self.failure = exc
        self.end()


def _request(at: Address, method: str, target: str) -> tuple[Replica, bytes]:
    if at.host is None or at.port is None:
        raise Failed(
            f"{at} is a Unix socket; ask it with: curl --unix-socket {at.path} http://x{target}"
        )
    lines = [f"{method} {target} HTTP/1.1", f"host: {at}", "content-length: 0"]
    if key := os.environ.get(_KEY, "").strip():
        lines.append(f"authorization: Bearer {key}")
    replica = Replica(url="", origin=Origin(at.host, at.port))
    return replica, "\r\n".join([*lines, "", ""]).encode()


def _is_away(at: Address, exc: BackendError | None) -> NoReturn:
    why = str(exc or "it ended").removeprefix(f"http://{at}: ")
    raise Away(
        f"no answer from the admin port http://{at} ({why}): is the gateway running, "
        "and is this its admin_listen? Say where with --admin URL or --config FILE"
    ) from None

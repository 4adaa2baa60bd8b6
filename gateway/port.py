"""The data port: the application and its server, on the terms of the newest configuration."""

from __future__ import annotations

import ssl
import time

from gateway.app import App, State
from gateway.door import Door
from gateway.exchange import Gateway
from gateway.front import Front
from gateway.listeners import server
from gateway.settings import Config


class DataPort:
    """Mutable state: what `renew` replaces: whom the application serves with, the door's bounds,
    how long an idle connection is kept, and the certificate.

    `connections` is how many there may be where the configuration says nothing.
    """

    def __init__(self, gateway: Gateway, state: State, connections: int) -> None:
        """Raises CannotStart."""
        config = gateway.config
        self._connections = connections
        self._app = App(gateway, state, time.monotonic)
        self._front: type[Front] = type("ConfiguredFront", (Front,), {"door": self._door(config)})
        self.server = server(
            self._app,
            http=self._front,
            timeout_keep_alive=config.timeouts.keep_alive,
            ssl_certfile=config.tls.cert_file,
            ssl_keyfile=config.tls.key_file,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
        )

    def renew(self, gateway: Gateway) -> None:
        """Serve what comes from now on with another gateway; connections stay open.

        The certificate is read again: `certificate` was asked before whether that will do.
        """
        config = gateway.config
        self._app.serve_with(gateway)
        self._front.door = self._door(config)
        self.server.config.timeout_keep_alive = config.timeouts.keep_alive  # type: ignore[assignment]
        context, tls = self.server.config.ssl, config.tls
        if context is not None and tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)

    @property
    def most(self) -> int:
        """How many connections there may be."""
        return self._front.door.connections

    def _door(self, config: Config) -> Door:
        bounds = config.bounds
        return Door(
            header_timeout=config.timeouts.header,
            header_bytes=bounds.header,
            header_fields=bounds.header_fields,
            connections=bounds.connections or self._connections,
            direct=self._app.direct,
        )


def certificate(config: Config) -> str:
    """Why the data port's certificate and its key are of no use; empty where they are."""
    if config.tls.cert_file is None:
        return ""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            config.tls.cert_file, config.tls.key_file, password=""
        )
    except OSError as exc:  # ssl.SSLError is one
        return f"the certificate or its key: {exc.strerror or exc}"
    return ""

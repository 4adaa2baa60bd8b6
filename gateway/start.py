"""What a worker is told first, and how settings cross to another process."""

from __future__ import annotations

import pickle
from base64 import b64decode, b64encode
from typing import Any

import msgspec

from gateway.settings import Config


class Start(msgspec.Struct):
    """The supervisor's first word. `sockets` are inherited descriptors to listen on.

    `settings` are a packed `Config`.
    """

    settings: str
    secret: str
    sockets: list[int]
    log_level: str

    @classmethod
    def of(cls, config: Config, secret: str, sockets: list[int], log_level: str) -> Start:
        return cls(packed(config), secret, sockets, log_level)

    @property
    def config(self) -> Config:
        config: Config = unpacked(self.settings)
        return config


def packed(settings: Any) -> str:
    """Settings as a text for the channel: they hold types that JSON has not."""
    return b64encode(pickle.dumps(settings)).decode()


def unpacked(text: str) -> Any:
    """What was packed. Both ends are ours: what a stranger wrote is never unpacked."""
    return pickle.loads(b64decode(text))

"""What a worker is told first, and how a configuration crosses to another process."""

from __future__ import annotations

import pickle
from base64 import b64decode, b64encode

import msgspec

from gateway.settings import Config


class Start(msgspec.Struct):
    """The supervisor's first word. `sockets` are inherited descriptors to listen on.

    `settings` are a pickled `Config`: it holds types that JSON has not, and both ends are ours.
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
        return unpacked(self.settings)


def packed(config: Config) -> str:
    return b64encode(pickle.dumps(config)).decode()


def unpacked(settings: str) -> Config:
    config: Config = pickle.loads(b64decode(settings))
    return config

"""The configuration's nouns: what every setting is called, its type and its default.

Nothing here reads a file or the environment: `config` does, and gives these out frozen. A type
marked with `Text` is a plain value here (seconds, bytes, an `Address`) and text in the file.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta, Struct

from gateway.units import (
    NEVER_NULL,
    OVER_GLOBAL,
    Address,
    Bytes,
    BytesOrZero,
    Digest,
    EnvironmentName,
    Label,
    ListenAddress,
    ListenAddresses,
    MediaHost,
    Midnight,
    ModelName,
    Natural,
    Network,
    NonEmpty,
    Origin,
    Positive,
    RedisUrl,
    Seconds,
    SecondsOrZero,
    Text,
    is_address,
    server_url,
    written,
)


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """What every noun of the file is. Its representation never shows a secret."""

    # `internal` fields are filled in by `config` and never read from a file.
    internal: ClassVar[frozenset[str]] = frozenset()
    secrets: ClassVar[frozenset[str]] = frozenset()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        fields = [(name, getattr(self, name)) for name in self.__struct_fields__]
        return [
            (name, "***" if name in self.secrets and value is not None else value)
            for name, value in fields
        ]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({fields})"


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Override(Generic[S]):
    """Some fields of an `S`, typed as they are there; a nested noun is an `Override` itself.

    A dictionary or a list replaces the one it overrides, so that it can also take away.
    """

    given: Mapping[str, Any] = field(default_factory=dict)

    def over(self, base: S) -> S:
        if not self.given:
            return base
        changes = {
            name: value.over(getattr(base, name)) if isinstance(value, Override) else value
            for name, value in self.given.items()
        }
        return msgspec.structs.replace(base, **changes)


class Rate(Settings, frozen=True, kw_only=True):
    """So many in a window, written as a number, or with the size of the bucket."""

    limit: Positive
    burst: Positive | None = None


def _rate(text: str) -> Rate:
    limit = msgspec.convert(text, Positive, strict=False)
    return Rate(limit=limit)


WrittenRate = Annotated[
    Rate,
    Text("a whole number of at least 1, or {limit, burst}", _rate, lambda rate: rate.limit),
]

#: The windows that are buckets, in microseconds. A bucket holds as many fractions of what is
#: counted as drain in one; half of what Redis' scripts count exactly is left for debts.
_BUCKETS = {"second": 10**6, "minute": 60 * 10**6}
_LARGEST_ROOM = 1 << 52

Counted = Literal["requests", "tokens"]
Window = Literal["second", "minute", "hour", "day", "month"]


class Rule(Struct, frozen=True):
    """One rule of a `Limits`. `burst` is the bucket's size, None for a window aligned to UTC."""

    counted: Counted
    window: Window
    limit: int
    burst: int | None


class Limits(Settings, frozen=True, kw_only=True):
    """What may pass. Windows under an hour refill evenly, longer ones are aligned to UTC."""

    requests_per_second: WrittenRate | None = None
    requests_per_minute: WrittenRate | None = None
    requests_per_hour: WrittenRate | None = None
    requests_per_day: WrittenRate | None = None
    requests_per_month: WrittenRate | None = None
    tokens_per_second: WrittenRate | None = None
    tokens_per_minute: WrittenRate | None = None
    tokens_per_hour: WrittenRate | None = None
    tokens_per_day: WrittenRate | None = None
    tokens_per_month: WrittenRate | None = None
    concurrency: Positive | None = None

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule.burst is None:
                continue
            name = f"{rule.counted}_per_{rule.window}"
            if rule.window in ("hour", "day", "month"):
                raise ValueError(f"{name} takes no burst: its window is fixed, not a bucket")
            width = _BUCKETS[rule.window]
            if rule.burst * width // math.gcd(width, rule.limit) > _LARGEST_ROOM:
                raise ValueError(
                    f"{name} is too large to be counted exactly: at most "
                    f"{_LARGEST_ROOM // width:,}, or as much as rounder numbers allow"
                )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rate as a rule; `concurrency` stands apart."""
        return tuple(self._rules())

    def _rules(self) -> Iterator[Rule]:
        counted: Counted
        window: Window
        for counted in ("requests", "tokens"):
            for window in ("second", "minute", "hour", "day", "month"):
                rate: Rate | None = getattr(self, f"{counted}_per_{window}")
                if rate is not None:
                    bucket = rate.limit if window in ("second", "minute") else None
                    yield Rule(counted, window, rate.limit, rate.burst or bucket)


class MaxTokens(Settings, frozen=True, kw_only=True):
    """The cap on the tokens one call may ask for, and what happens above it."""

    cap: Positive | None = None
    over: Literal["clamp", "refuse"] = "clamp"


class Media(Settings, frozen=True, kw_only=True):
    """Images, audio and video in messages. `hosts` are those whose URLs the engine may fetch."""

    urls: Literal["refuse", "allow"] = "refuse"
    hosts: tuple[MediaHost, ...] = ()
    parts: Natural = 16
    bytes: BytesOrZero = 16 << 20


class Caps(Settings, frozen=True, kw_only=True):
    """What one call may ask for, sizes in bytes. Over a cap the call is refused, naming the cap."""

    body: Bytes = 32 << 20
    n: Positive = 8
    inputs: Positive = 2048
    prompts: Positive = 16
    messages: Positive = 4096
    tools: Natural = 256
    schema: BytesOrZero = 64 << 10
    logprobs: Natural = 20
    prompt_logprobs: Natural = 0
    beam_search: bool = False
    max_tokens: MaxTokens = MaxTokens()
    unknown_fields: Literal["drop", "refuse"] = "drop"
    privileged: dict[NonEmpty, Literal["allow"]] = {}
    media: Media = Media()
    isolate_prefix_cache: Literal["team", "key", "off"] = "team"

    def merge(self, partial: "Override[Caps]") -> "Caps":
        """These caps with the given ones in their place."""
        return partial.over(self)


class Timeouts(Settings, frozen=True, kw_only=True):
    """How long each step may take, in seconds."""

    header: Seconds = 10.0
    body: Seconds = 60.0
    keep_alive: SecondsOrZero = 75.0
    connect: Seconds = 1.0
    tls: Seconds = 5.0
    first_event: Seconds = 300.0
    early_commit: Seconds = 30.0
    heartbeat: Seconds = 10.0
    stall: Seconds = 60.0
    client_write: Seconds = 30.0
    total: Seconds = 590.0
    lame_duck: SecondsOrZero = 5.0
    drain: SecondsOrZero = 120.0


class ReplicaSettings(Settings, frozen=True, kw_only=True):
    """A server of a pool, written as its URL, or with its settings; or several, by `dns` or `file`.

    URLs are canonical: the origin where the base path is `/v1`. An address of `dns` has its own URL
    here, and the name it is asked by as `server_name`. Raises `ValueError` on a bad one.
    """

    internal: ClassVar[frozenset[str]] = frozenset({"api_key", "server_name"})
    secrets: ClassVar[frozenset[str]] = frozenset({"api_key"})

    url: NonEmpty = ""
    dns: NonEmpty | None = None
    file: NonEmpty | None = None
    weight: Positive = 1
    concurrency: Positive | None = None
    api_key_env: EnvironmentName | None = None
    ca_file: NonEmpty | None = None
    insecure: bool = False
    api_key: str | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("url", "dns", "file") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"wanted one of url, dns and file; given {' and '.join(given) or 'none'}"
            )
        if self.url:
            msgspec.structs.force_setattr(self, "url", server_url(self.url))
        if self.dns is not None:
            msgspec.structs.force_setattr(self, "dns", server_url(self.dns))
            if is_address(self.host):
                raise ValueError("dns wants a name in its URL; an address stands under url")

    @property
    def place(self) -> str:
        """Where the servers are, as it is written."""
        return self.url or self.dns or f"file {self.file}"

    @property
    def scheme(self) -> str:
        return self._parts.scheme

    @property
    def host(self) -> str:
        """What the server is called: in its URL, in requests and in its certificate."""
        return self.server_name or self._parts.hostname or ""

    @property
    def address(self) -> str:
        """Where it is, where its name is that of several; else empty."""
        return (self._parts.hostname or "") if self.server_name else ""

    @property
    def port(self) -> int:
        return self._parts.port or (443 if self.scheme == "https" else 80)

    @property
    def base(self) -> str:
        """The path before `/chat/completions`, without a slash at its end."""
        return self._parts.path or "/v1"

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url or self.dns or "")


WrittenReplica = Annotated[
    ReplicaSettings,
    Text("a URL or a mapping with url, dns or file", lambda url: ReplicaSettings(url=url)),
]


class Model(Settings, frozen=True, kw_only=True):
    """A name clients use: a pool of replicas, or a split over other names.

    `timeouts` and `request` are whole: the gateway's own, with what the model gives over them.
    """

    kind: Literal["vllm", "openai"] = "vllm"
    replicas: tuple[WrittenReplica, ...] = ()
    upstream_model: NonEmpty | None = None
    aliases: tuple[ModelName, ...] = ()
    policy: Literal["least_busy", "round_robin", "prefix_affinity"] = "least_busy"
    fallback: tuple[ModelName, ...] = ()
    limits: Limits = Limits()
    timeouts: Annotated[Timeouts, OVER_GLOBAL] = Timeouts()
    cached_token_weight: Annotated[float, Meta(ge=0, le=1)] = 0.1
    usage_in_streams: Literal["auto", "off"] = "auto"
    request: Annotated[Caps, OVER_GLOBAL] = Caps()
    split: dict[ModelName, Positive] | None = None


# Absent is every model. An empty key must not come to mean that by accident, so null is refused.
AllowedModels = Annotated[
    tuple[ModelName, ...] | None,
    NEVER_NULL,
    written(type="array", items={"type": "string"}, description="Default: every model."),
]


class Team(Settings, frozen=True, kw_only=True):
    """Those who share limits and models. `models` holds names, never aliases; None is all."""

    models: AllowedModels = None
    limits: Limits = Limits()
    limits_by_model: dict[ModelName, Limits] = {}
    request: Annotated[Override[Caps], written(**{"$ref": "#/$defs/Caps"})] = msgspec.field(
        default_factory=Override
    )


class Key(Settings, frozen=True, kw_only=True):
    """One key, known by the SHA-256 of its text in lower-case hex digits; `expires` is in UTC."""

    name: Label
    team: Label
    sha256: Digest
    models: AllowedModels = None
    limits: Limits = Limits()
    expires: Midnight | None = None


class Tls(Settings, frozen=True, kw_only=True):
    """The certificate of the data port: both files, or neither."""

    cert_file: NonEmpty | None = None
    key_file: NonEmpty | None = None


class Cors(Settings, frozen=True, kw_only=True):
    """The origins whose browser pages may call; none: off."""

    origins: tuple[Origin, ...] = ()


class Bounds(Settings, frozen=True, kw_only=True):
    """What one worker holds at most, sizes in bytes; `connections` None: what open files allow."""

    connections: Positive | None = None
    bodies: Bytes = 256 << 20
    header: Bytes = 32 << 10
    header_fields: Positive = 100
    event: Bytes = 1 << 20
    log_lines: Positive = 4096


class Config(Settings, frozen=True, kw_only=True):
    """The whole configuration. `backends` are servers whose models are discovered."""

    internal: ClassVar[frozenset[str]] = frozenset({"backends"})
    secrets: ClassVar[frozenset[str]] = frozenset({"secret", "redis"})

    listen: ListenAddresses = (Address(host="127.0.0.1", port=8080),)
    admin_listen: ListenAddress | None = Address(host="127.0.0.1", port=9464)
    admin_key_sha256: Digest | None = None
    tls: Tls = Tls()
    trusted_proxies: tuple[Network, ...] = ()
    cors: Cors = Cors()
    workers: Annotated[int, Meta(ge=1, le=1024)] = 1
    secret: NonEmpty | None = None
    redis: RedisUrl | None = None
    redis_prefix: NonEmpty = "{fairgate}"
    when_redis_is_down: Literal["local", "open", "closed"] = "local"
    models: dict[ModelName, Model] = {}
    teams: dict[Label, Team] = {}
    keys: tuple[Key, ...] = ()
    limits: Limits = Limits()
    request: Caps = Caps()
    timeouts: Timeouts = Timeouts()
    bounds: Bounds = Bounds()
    backends: tuple[ReplicaSettings, ...] = ()

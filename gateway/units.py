"""How single settings are written as text: durations, sizes, addresses, names, digests, dates.

Each parser takes the text of one scalar and raises `ValueError` saying what was wanted. It never
repeats the text: that may be a secret, and the reader knows whether it may be shown.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

# Linux: sun_path is 108 bytes, the last one a NUL.
UNIX_PATH_BYTES = 107

_DURATION = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LONGEST = 31 * _DURATION["d"]
_LARGEST = 1 << 50
_NUMBER = r"[0-9]{1,15}(\.[0-9]{1,9})?"
#: What follows the hosts in the URLs of Redis, and what is said of anything else.
_REDIS = {
    "redis": (r"(/[0-9]*)?", "wanted a database's number after the host: redis://host:6379/0"),
    "rediss": (r"(/[0-9]*)?", "wanted a database's number after the host: rediss://host:6379/0"),
    "redis+sentinel": (
        r"/[^/]+(/[0-9]*)?",
        "wanted the service's name after the hosts: redis+sentinel://host,host/service/db",
    ),
    "redis+cluster": (
        r"(/0?)?",
        "wanted nothing after the hosts, a cluster has no databases: redis+cluster://host,host",
    ),
}


@dataclass(frozen=True, slots=True)
class Text:
    """A type's mark: it is written as one scalar, which `parse` reads and `write` gives back."""

    wanted: str
    parse: Callable[[str], Any]
    write: Callable[[Any], Any] = str
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A type's mark that changes how the reader treats the field."""

    name: str


ONE_OR_MANY = Mark("a single item may stand without its list")
NEVER_NULL = Mark("None means absent and cannot be written")
OVER_GLOBAL = Mark("what is not given here comes from the setting of the whole gateway")


def written(**schema: Any) -> Meta:
    """The JSON Schema of the text form, which `config.schema` puts in place of the type's own."""
    return Meta(extra_json_schema={"written": schema})


def seconds(text: str) -> float:
    """`250ms`, `10s`, `5m`, `1h`, `7d` or `0` as seconds; at most 31 days."""
    if text == "0":
        return 0.0
    if re.fullmatch(_NUMBER, text):
        raise ValueError(f"a duration needs its unit: write {text}s, {text}ms or {text}m")
    found = re.fullmatch(rf"({_NUMBER})(ms|s|m|h|d)", text)
    if not found:
        raise ValueError("wanted a duration such as 250ms, 10s, 5m or 1h")
    value = float(found[1]) * _DURATION[found[3]]
    if value > _LONGEST:
        raise ValueError("wanted a duration of at most 31d")
    return value


def duration_text(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.12g}s" if value >= 1 else f"{value * 1000:.12g}ms"


def size(text: str) -> int:
    """`512B`, `64KiB`, `32MiB`, `1GiB` or `0` as bytes."""
    if text == "0":
        return 0
    if re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"a size needs its unit: write {text}B, {text}KiB or {text}MiB")
    found = re.fullmatch(r"([0-9]{1,15})(B|KiB|MiB|GiB)", text)
    if not found:
        raise ValueError("wanted a size such as 512B, 64KiB, 32MiB or 1GiB")
    value = int(found[1]) * _SIZE[found[2]]
    if value > _LARGEST:
        raise ValueError("wanted a size of at most 1048576GiB")
    return value


def size_text(value: int) -> str:
    if value == 0:
        return "0"
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if value % _SIZE[unit] == 0)
    return f"{value // _SIZE[unit]}{unit}"


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host reaches only this machine; a name other than `localhost` never counts."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Address(msgspec.Struct, frozen=True):
    """Where to listen: a host and a port (0: any free one), or the path of a Unix socket."""

    host: str | None = None
    port: int | None = None
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`host:port`, `[::]:8080` or `unix:/path`."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:")
            if not path.startswith("/") or "\0" in path:
                raise ValueError("wanted an absolute path after unix:")
            if len(path.encode()) > UNIX_PATH_BYTES:
                raise ValueError(f"a Unix socket's path has at most {UNIX_PATH_BYTES} bytes")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if re.fullmatch(r"\[[0-9A-Fa-f:.]+\]", host):
            if not is_address(host[1:-1]):
                raise ValueError("wanted an IPv6 address in the brackets, such as [::]:8080")
            host = str(ipaddress.ip_address(host[1:-1]))
        elif ":" in host:
            raise ValueError('an IPv6 address stands in brackets, such as "[::]:8080"')
        elif not re.fullmatch(r"[A-Za-z0-9._-]+", host):
            raise ValueError("wanted host:port, [::]:port or unix:/path")
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise ValueError("wanted a port from 0 to 65535 after the host")
        return cls(host=host, port=int(port))

    @property
    def loopback(self) -> bool:
        return self.host is None or is_loopback(self.host)

    def __str__(self) -> str:
        if self.host is None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def model_name(text: str) -> str:
    if not 1 <= len(text) <= 128 or not text.isprintable() or re.search(r"\s", text):
        raise ValueError("wanted a name of 1 to 128 visible characters")
    return text


def label(text: str) -> str:
    if not 1 <= len(text) <= 128 or not text.isprintable() or text != text.strip():
        raise ValueError("wanted a name of 1 to 128 printable characters")
    return text


def digest(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        raise ValueError(f"wanted the 64 hex digits of a SHA-256, given {len(text)} characters")
    return text.lower()


def environment_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("wanted the name of an environment variable, never the key itself")
    return text


def midnight(text: str) -> datetime:
    """A day as the moment it begins in UTC."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError("wanted a date such as 2027-01-31") from None


def network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError("wanted an address or a network such as 10.0.0.0/8") from None


def origin(text: str) -> str:
    """As browsers send it, since it is compared exactly: in lower case, without a usual port."""
    if text == "*":
        return text
    found = re.fullmatch(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", text.lower())
    if not found:
        raise ValueError(
            "wanted an origin such as https://app.example.com, or *: one host in ASCII, no path"
        )
    usual = found[3] == {"http": ":80", "https": ":443"}[found[1]]
    return f"{found[1]}://{found[2]}{'' if usual else found[3] or ''}"


def media_host(text: str) -> str:
    """A host of media URLs. It is compared exactly: what looks like more would allow nothing."""
    if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", text.lower()):
        raise ValueError("wanted a host such as images.example.com: no https://, no port, no *")
    return text.lower()


def redis_url(text: str) -> str:
    """A server's, `redis://host:6379/0`, or that of several, `redis+cluster://host,host`."""
    scheme = text.partition("://")[0]
    if scheme not in _REDIS or "://" not in text:
        raise ValueError("wanted redis://, rediss://, redis+sentinel:// or redis+cluster://")
    rest, named = redis_hosts(text)
    try:
        parts = urlsplit(rest)
        hosts = [urlsplit(f"//{host}") for host in named]
        reached = all(host.hostname and host.port != 0 for host in hosts)
    except ValueError:
        reached = False
    if not reached or parts.fragment or not re.fullmatch(r"[!-~]+", text):
        raise ValueError(
            f"wanted {scheme}://host or host:port, the port from 1 to 65535; "
            "in a password @ is written %40, / is %2F, # is %23"
        )
    path, reason = _REDIS[scheme]
    if not re.fullmatch(path, parts.path):
        raise ValueError(reason)
    if len(hosts) > 1 and "+" not in scheme:
        raise ValueError("several hosts are for redis+sentinel:// and redis+cluster://")
    return text


def redis_hosts(url: str) -> tuple[str, list[str]]:
    """A Redis URL with one host, `any`, in place of its own, and these.

    Several are none to `urlsplit`: where one has brackets, Python 3.13 and later refuse them all.
    """
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    hosts = authority.rpartition("@")[2]
    before = authority.removesuffix(hosts)
    return f"{scheme}://{before}any{rest[len(authority) :]}", hosts.split(",")


def server_url(text: str) -> str:
    """An OpenAI-compatible server's URL in one canonical form, so that equal servers are equal.

    An origin means its `/v1`; anything else is the full base path.
    """
    wanted = "wanted a URL such as http://gpu1:8000 or https://host/api/v1"
    if "@" in text:
        raise ValueError("no credentials in a URL: name a variable with api_key_env")
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError(wanted)
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(wanted)
    if "?" in text or "#" in text:
        raise ValueError("wanted a URL without a query or a fragment")
    host = f"[{host}]" if ":" in host else host
    standard = port is None or port == {"http": 80, "https": 443}[scheme]
    path = parts.path.rstrip("/")
    return f"{scheme}://{host}{'' if standard else f':{port}'}{'' if path == '/v1' else path}"


_DURATION_MARK = Text("a duration such as 10s", seconds, duration_text)
_DURATION_SCHEMA = {
    "type": "string",
    "pattern": rf"^({_NUMBER}(ms|s|m|h|d))$",
    "description": "A duration with its unit: 250ms, 10s, 5m, 1h.",
}
_SIZE_MARK = Text("a size such as 32MiB", size, size_text)
_SIZE_SCHEMA = {
    "type": "string",
    "pattern": r"^[0-9]{1,15}(B|KiB|MiB|GiB)$",
    "description": "A size with its unit: 512B, 64KiB, 32MiB, 1GiB.",
}
_ZERO = {"const": 0}

Seconds = Annotated[float, _DURATION_MARK, Meta(gt=0), written(**_DURATION_SCHEMA)]
SecondsOrZero = Annotated[
    float, _DURATION_MARK, Meta(ge=0), written(anyOf=[_DURATION_SCHEMA, _ZERO])
]
Bytes = Annotated[int, _SIZE_MARK, Meta(gt=0), written(**_SIZE_SCHEMA)]
BytesOrZero = Annotated[int, _SIZE_MARK, Meta(ge=0), written(anyOf=[_SIZE_SCHEMA, _ZERO])]

ADDRESS_SCHEMA = {
    "type": "string",
    "pattern": r"^(unix:/.+|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|[A-Za-z0-9._-]+:[0-9]{1,5})$",
    "description": "host:port, [::]:port or unix:/path.",
}
_ADDRESS_REF = {"$ref": "#/$defs/Address"}
ListenAddress = Annotated[Address, Text("an address such as 127.0.0.1:8080", Address.parse)]
ListenAddresses = Annotated[
    tuple[ListenAddress, ...],
    ONE_OR_MANY,
    written(anyOf=[_ADDRESS_REF, {"type": "array", "items": _ADDRESS_REF, "minItems": 1}]),
]

ModelName = Annotated[
    str,
    Text("a model's name", model_name),
    written(type="string", pattern=r"^\S{1,128}$", description="1 to 128 visible characters."),
]
Label = Annotated[str, Text("a name", label), written(type="string", minLength=1, maxLength=128)]
Digest = Annotated[
    str,
    Text("64 hex digits", digest, hidden=True),
    written(type="string", pattern="^[0-9A-Fa-f]{64}$", description="A SHA-256 in hex digits."),
]
EnvironmentName = Annotated[
    str,
    Text("the name of an environment variable", environment_name, hidden=True),
    written(type="string", pattern="^[A-Za-z_][A-Za-z0-9_]*$"),
]
Midnight = Annotated[
    datetime, Text("a date such as 2027-01-31", midnight), written(type="string", format="date")
]
Network = Annotated[str, Text("a network such as 10.0.0.0/8", network), written(type="string")]
MediaHost = Annotated[str, Text("a host", media_host), written(type="string")]
Origin = Annotated[str, Text("an origin", origin), written(type="string")]
RedisUrl = Annotated[
    str,
    Text("a Redis URL", redis_url, hidden=True),
    written(type="string", pattern=r"^(redis|rediss|redis\+sentinel|redis\+cluster)://"),
]
NonEmpty = Annotated[str, Meta(min_length=1)]
Positive = Annotated[int, Meta(ge=1, le=1 << 53)]
Natural = Annotated[int, Meta(ge=0, le=1 << 53)]

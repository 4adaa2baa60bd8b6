"""The gateway itself: rules in memory, in Redis, none at all, and with two workers."""

import hashlib
import importlib.metadata
import importlib.util
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence

from tests.bench.peers.peer import Peer, Place, fill, free_port

#: A rule for the key, one for the team and one for the model, none of which ever refuses.
RULES = {
    "key_limits": "{requests_per_minute: 100000000}",
    "team_limits": "{tokens_per_minute: 100000000000}",
    "model_limits": "{concurrency: 100000}",
}


def fairgate(place: Place) -> Peer | None:
    """Three rules, in its own memory."""
    return _gateway("fairgate", place, {**RULES, "redis": ""})


def unlimited(place: Place) -> Peer | None:
    """The same without any rule."""
    limits = {**dict.fromkeys(RULES, "{}"), "redis": ""}
    return _gateway("unlimited", place, limits, only=("plain", "plain 8 KB", "paced"))


def redis(place: Place) -> Peer | None:
    """The same three rules in Redis; None where it is not installed."""
    return _with_redis("redis", place, 1, ("plain", "plain 8 KB", "paced", "rated"))


def two(place: Place) -> Peer | None:
    """The same with two workers, which count together in Redis as workers must."""
    return _with_redis("two", place, 2, ("rated", "paced"))


def _with_redis(name: str, place: Place, workers: int, only: Sequence[str]) -> Peer | None:
    program = shutil.which("redis-server")
    if program is None:
        return None
    port = free_port()
    beside = (program, "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    lines = f"redis: redis://127.0.0.1:{port}\nworkers: {workers}"
    return _gateway(name, place, {**RULES, "redis": lines}, beside, only)


def _gateway(
    name: str,
    place: Place,
    limits: Mapping[str, str],
    beside: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Peer | None:
    if importlib.util.find_spec("gateway.cli") is None:
        return None
    port, admin_port = free_port(), free_port()
    key, other = (f"fg-{secrets.token_urlsafe(32)}" for _ in range(2))
    values = {
        "port": port,
        "admin_port": admin_port,
        "secret": secrets.token_hex(32),
        "replicas": ", ".join(f'"{url}"' for url in place.urls),
        "key_sha256": hashlib.sha256(key.encode()).hexdigest(),
        "other_sha256": hashlib.sha256(other.encode()).hexdigest(),
        **limits,
    }
    file = place.folder / f"{name}.yaml"
    file.write_text(fill(place.config.read_text(), values))
    return Peer(
        name,
        (sys.executable, "-m", "gateway.cli", "serve", "--config", str(file)),
        port,
        "/readyz",
        model="bench",
        headers=(f"authorization: Bearer {key}",),
        metrics_port=admin_port,
        beside=beside,
        only=only,
        version=f"fairgate {importlib.metadata.version('fairgate')}",
    )

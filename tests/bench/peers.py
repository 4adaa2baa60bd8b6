"""The contenders: how each proxy is started before the stand-in, what a client must send."""

import hashlib
import importlib.util
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# One worker that copies and reads nothing: the least a proxy can cost.
NGINX = """\
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
pid @folder@/nginx.pid;
error_log stderr error;
events { worker_connections 19000; }
http {
  access_log off;
  client_body_temp_path @folder@/body;
  proxy_temp_path @folder@/proxy;
  fastcgi_temp_path @folder@/fastcgi;
  uwsgi_temp_path @folder@/uwsgi;
  scgi_temp_path @folder@/scgi;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  keepalive_requests 100000000;
  tcp_nodelay on;
  upstream engine { @servers@ keepalive 1024; keepalive_requests 100000000; }
  server {
    listen 127.0.0.1:@port@ backlog=4096;
    location / {
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }
  }
}
"""


@dataclass(frozen=True)
class Peer:
    """One contender. `argv` is empty for the stand-in itself, reached with nothing between."""

    name: str
    argv: Sequence[str]
    port: int
    ready: str  # a path that answers 200 once requests can be sent
    model: str = "served"  # what clients ask for and must get back in every answer and event
    headers: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    admin_port: int | None = None  # where /metrics is scraped
    loose: bool = False  # it writes JSON anew, so only the numbered words can be compared
    share: float = 1.0  # of each measure's requests: less for a slow one
    beside: Sequence[str] = ()  # a server that it needs; its CPU counts apart


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fill(template: str, values: Mapping[str, object]) -> str:
    """`template` with each `@name@` replaced."""
    for name, value in values.items():
        template = template.replace(f"@{name}@", str(value))
    return template


def direct(folder: Path, upstreams: Sequence[int], config: Path) -> Peer:
    """The stand-in with nothing in front: the ceiling of stand-in and generator."""
    return Peer("direct", (), upstreams[0], "/health")


def nginx(folder: Path, upstreams: Sequence[int], config: Path) -> Peer | None:
    """nginx, one worker; None where it is not installed."""
    program = shutil.which("nginx")
    if program is None:
        return None
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{upstream};" for upstream in upstreams)
    text = fill(NGINX, {"folder": folder, "port": port, "servers": servers})
    if os.geteuid() == 0:  # else its worker could not write below a private folder
        text = "user root;\n" + text
    file = folder / "nginx.conf"
    file.write_text(text)
    argv = (program, "-c", str(file), "-p", str(folder), "-e", "stderr")
    return Peer("nginx", argv, port, "/health")


#: A rule for the key, one for the team and one for the model, none of which ever refuses.
RULES = {
    "key_limits": "{requests_per_minute: 100000000}",
    "team_limits": "{tokens_per_minute: 100000000000}",
    "model_limits": "{concurrency: 100000}",
}


def fairgate(folder: Path, upstreams: Sequence[int], config: Path) -> Peer | None:
    """The gateway with `config` filled in and three rules, in its own memory."""
    return _fairgate("fairgate", folder, upstreams, config, {**RULES, "redis": ""})


def unlimited(folder: Path, upstreams: Sequence[int], config: Path) -> Peer | None:
    """The same without any rule."""
    limits = {**dict.fromkeys(RULES, "{}"), "redis": ""}
    return _fairgate("unlimited", folder, upstreams, config, limits)


def redis(folder: Path, upstreams: Sequence[int], config: Path) -> Peer | None:
    """The same three rules in Redis; None where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        return None
    port = free_port()
    beside = (program, "--port", str(port), "--bind", "127.0.0.1", "--save", "")
    limits = {**RULES, "redis": f"redis: redis://127.0.0.1:{port}"}
    return _fairgate("redis", folder, upstreams, config, limits, beside)


def _fairgate(
    name: str,
    folder: Path,
    upstreams: Sequence[int],
    config: Path,
    limits: Mapping[str, str],
    beside: Sequence[str] = (),
) -> Peer | None:
    if importlib.util.find_spec("gateway.cli") is None:
        return None
    port, admin_port = free_port(), free_port()
    key, other = (f"fg-{secrets.token_urlsafe(32)}" for _ in range(2))
    values = {
        "port": port,
        "admin_port": admin_port,
        "secret": secrets.token_hex(32),
        "replicas": ", ".join(f'"http://127.0.0.1:{upstream}"' for upstream in upstreams),
        "key_sha256": hashlib.sha256(key.encode()).hexdigest(),
        "other_sha256": hashlib.sha256(other.encode()).hexdigest(),
        **limits,
    }
    file = folder / f"{name}.yaml"
    file.write_text(fill(config.read_text(), values))
    return Peer(
        name,
        (sys.executable, "-m", "gateway.cli", "serve", "--config", str(file)),
        port,
        "/readyz",
        model="bench",
        headers=(f"authorization: Bearer {key}",),
        admin_port=admin_port,
        beside=beside,
    )


# Another proxy: a function here, and its name below.
PEERS: dict[str, Callable[[Path, Sequence[int], Path], Peer | None]] = {
    "direct": direct,
    "nginx": nginx,
    "unlimited": unlimited,
    "fairgate": fairgate,
    "redis": redis,
}

"""haproxy: one thread, the settings of its package and room for many connections."""

import shutil

from tests.bench.peers.peer import Peer, Place, fill, free_port, version_of

CONF = """\
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  balance leastconn
  timeout connect 5s
  timeout client 10m
  timeout server 10m
  option http-no-delay
frontend front
  bind 127.0.0.1:@port@ backlog 4096
  default_backend engine
backend engine
  http-reuse always
  option httpchk GET /health
@servers@
"""


def haproxy(place: Place) -> Peer | None:
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    if program is None:
        return None
    port = free_port()
    servers = "\n".join(
        f"  server replica{number} 127.0.0.1:{upstream} check"
        for number, upstream in enumerate(place.upstreams)
    )
    file = place.folder / "haproxy.cfg"
    file.write_text(fill(CONF, {"port": port, "servers": servers}))
    argv = (program, "-db", "-f", str(file))
    return Peer("haproxy", argv, port, "/health", version=version_of(program, "-v"))

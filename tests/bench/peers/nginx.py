"""nginx: one worker that copies and reads nothing, the least a proxy can cost."""

import os
import shutil

from tests.bench.peers.peer import Peer, Place, fill, free_port, version_of

CONF = """\
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


def nginx(place: Place) -> Peer | None:
    program = shutil.which("nginx")
    if program is None:
        return None
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{upstream};" for upstream in place.upstreams)
    text = fill(CONF, {"folder": place.folder, "port": port, "servers": servers})
    if os.geteuid() == 0:  # else its worker could not write below a private folder
        text = "user root;\n" + text
    file = place.folder / "nginx.conf"
    file.write_text(text)
    argv = (program, "-c", str(file), "-p", str(place.folder), "-e", "stderr")
    return Peer("nginx", argv, port, "/health", version=version_of(program, "-v"))

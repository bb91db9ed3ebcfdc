"""nginx on loopback: a folder with ranges and ETags, as a store of COGs is; or a forward proxy to one server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server_programs import answers, free_port, program, running, workplace

_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 256; }}
http {{
  log_format short '$request_method $uri $http_range $status $body_bytes_sent';
  access_log {folder}/access.log short;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  default_type image/tiff;
  server {{ listen 127.0.0.1:{port}; location / {{ {serve} }} }}
}}
"""


@dataclass(frozen=True)
class WebServer:
    """`url` without a slash at its end; `log` holds a line per request: method, path, range, status, bytes."""

    url: str
    access: Path

    @property
    def log(self) -> list[list[str]]:
        return [line.split() for line in self.access.read_text().splitlines()]


@contextmanager
def serve_folder(folder: Path) -> Iterator[WebServer]:
    with _nginx(f"root {folder};") as server:
        yield server


@contextmanager
def serve_proxy(target: str, rate: int = 0) -> Iterator[WebServer]:
    """A forward proxy (http only) that sends every request to `target`, under the name that was asked for.

    Answers come at `rate` bytes a second; 0 is as fast as they can.
    """
    with _nginx(f"proxy_pass {target}; proxy_set_header Host $host; limit_rate {rate};") as server:
        yield server


@contextmanager
def _nginx(serve: str) -> Iterator[WebServer]:
    nginx = program("nginx", "/usr/sbin/nginx")
    with workplace() as folder:
        port, config = free_port(), folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(_CONFIG.format(folder=folder, port=port, serve=serve, user=user))
        url = f"http://127.0.0.1:{port}"
        with running([nginx, "-p", folder, "-c", config, "-e", folder / "early.log"], folder / "out.log", answers(url)):
            yield WebServer(url, folder / "access.log")

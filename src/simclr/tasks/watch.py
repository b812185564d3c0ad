"""Live page of runs, served to browsers on this machine."""

import contextlib
import ipaddress
import secrets
import socket
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

from simclr.errors import RunError, SettingError
from simclr.report.live import LivePages
from simclr.runs.files import printable
from simclr.runs.results import run_folder
from simclr.settings import check_settings, setting

POLICY = "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'"
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
           "Referrer-Policy": "no-referrer"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Live page of running and finished runs in a browser, until Ctrl-C.

    The page shows the state and the figures of every run, the curves of the runs that wrote last beside each other, and
    for each run all curves and the last lines of the log. A run is stale if its process wrote nothing for ten of its
    usual intervals between lines. The files of the runs are read, never written, so that the page shows runs of other
    machines on a shared disk too. It needs no network; other machines reach it through `ssh -L 8765:localhost:8765`.
    """

    command: ClassVar[str] = "watch"

    runs: list[Path]
    """run folders, or folders of run folders"""
    host: str = "127.0.0.1"
    """address to serve on; other machines reach any but a loopback address, which needs `expose`"""
    port: int = setting(8765, at_least=0, at_most=65535)
    """port to serve on; 0 for any free one"""
    expose: bool = False
    """permission to serve everybody who reaches `host`, without a password"""
    every: float | int = setting(5, at_least=1)
    """seconds between updates of the page"""

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.runs:
            raise SettingError("runs", "at least one run folder", "none")
        if not self.expose and not is_loopback(self.host):
            allowed = "a loopback address, 127.0.0.1 or ::1"
            raise SettingError("host", allowed, self.host, "--expose serves other machines, without a password")

    def __call__(self) -> dict[str, Any]:
        server = self.server()
        host, port = str(server.server_address[0]), server.server_address[1]
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{port}/ shows {', '.join(printable(str(run)) for run in self.runs)}; Ctrl-C ends it")
        with server, contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        return {}

    def server(self) -> "LiveServer":
        """Return the server, which listens already."""
        folders = [run_folder(run) for run in self.runs]
        for folder in folders:
            if not folder.is_dir():
                raise RunError(folder, "does not exist", "Name a run folder or a folder of runs")
        try:
            return LiveServer(self.host, self.port, LivePages(folders, self.every))
        except OSError as error:
            remedy = f"{error.strerror or error}. Choose another --port"
            raise SettingError("port", f"one that is free on {self.host}", self.port, remedy) from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may stand for any address
        return False


class LiveServer(ThreadingTCPServer):
    """HTTP server of live pages; that of the standard library asks the resolver for the name of its address."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, host: str, port: int, pages: LivePages) -> None:
        self.host, self.pages, self.lock = host, pages, threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def accepts(self, header: str) -> bool:
        """Return whether the Host header of a request is an address, localhost or the name that is served: a page of
        another origin can send a browser here under a name of its own (DNS rebinding), and would read the answer."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
            return name in ("localhost", self.host) or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    timeout = 10
    server_version, sys_version = "simclr", ""

    def do_GET(self) -> None:
        if not self.server.accepts(self.headers.get("Host", "")):
            return self.send_error(403, "The name of this server in the request is not its own")
        nonce = secrets.token_urlsafe(16)
        try:
            with self.server.lock:  # pages share what they have read
                page = self.server.pages.page(urlsplit(self.path).path, nonce)
        except OSError:  # a run was moved or deleted meanwhile
            return self.send_error(503)
        except ValueError:  # not a path
            page = None
        if page is None:
            return self.send_error(404)
        content = page.encode(errors="backslashreplace")
        self.send_response(200)
        for name, value in {**HEADERS, "Content-Security-Policy": f"{POLICY}; script-src 'nonce-{nonce}'"}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *values: Any) -> None:
        """Print nothing for a request."""

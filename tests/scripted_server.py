"""A web server on loopback whose answers a test states, and that keeps the requests it got."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

__all__ = ["Answer", "Request", "ScriptedServer", "redirect_to", "scripted_server"]

FACTS = {"ETag": '"1"', "Last-Modified": "Tue, 01 Dec 2020 10:00:00 GMT"}


class Request(NamedTuple):
    """What the server received; names of headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """What it sends: all at once, or one byte of the body every `seconds_a_byte`."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = FACTS
    seconds_a_byte: float = 0.0


class ScriptedServer(NamedTuple):
    url: str
    requests: list[Request]

    def seen(self) -> str:
        """All that it received, as text."""
        return repr(self.requests)


@contextlib.contextmanager
def scripted_server(answer: Callable[[Request], Answer]) -> Iterator[ScriptedServer]:
    requests: list[Request] = []
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            request = Request(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            requests.append(request)
            status, body, headers, seconds = answer(request)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                for start in range(
                    0, len(body) if request.method != "HEAD" else 0, 1 if seconds else max(1, len(body))
                ):
                    self.wfile.write(body[start : start + 1] if seconds else body)
                    if seconds and stop.wait(seconds):
                        return

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, *words: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that went away."""
            if not isinstance(sys.exception(), OSError):
                raise

    with Server(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield ScriptedServer(f"http://127.0.0.1:{server.server_address[1]}", requests)
        finally:
            stop.set()
            server.shutdown()


def redirect_to(url: str) -> Answer:
    return Answer(307, headers={"Location": url})

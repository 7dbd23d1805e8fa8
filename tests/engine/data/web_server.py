"""A web server on this machine that sends parts of files, and breaks off, forgets or refuses when a test says so."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class WebServer:
    """What it serves, how it behaves, and what it was asked."""

    files: dict[str, bytes]
    url: str = ""
    sends_parts: bool = True  # as HTTP's Range asks
    with_etag: bool = True
    honours_if_range: bool = True
    breaks_after: list[int] = field(default_factory=list)  # for each answer with a body in turn: bytes until it breaks off
    seconds_a_piece: float = 0.0  # waited after each half megabyte
    answers: list[int] = field(default_factory=list)  # for each request in turn: a status in place of the file
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[WebServer]:
    """Serve files, by path, until the block ends."""
    state = WebServer(files)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.command, self.path, wanted))
            if state.answers:
                self.send_error(state.answers.pop(0))
                return
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            etag = f'"{hashlib.md5(body).hexdigest()}"'
            condition = self.headers.get("If-Range")
            start = 0
            if wanted and state.sends_parts and (condition in (None, etag) or not state.honours_if_range):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
            else:
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                self.send_header("Content-Length", str(len(body) - start))
            if state.with_etag:
                self.send_header("ETag", etag)
            self.end_headers()
            if with_body and start < len(body):
                stop = start + state.breaks_after.pop(0) if state.breaks_after else len(body)
                self._send(body[start:stop])

        def _send(self, body: bytes) -> None:
            with contextlib.suppress(ConnectionError):  # the other side may be killed
                for place in range(0, len(body), 1 << 19):
                    self.wfile.write(body[place : place + (1 << 19)])
                    time.sleep(state.seconds_a_piece)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

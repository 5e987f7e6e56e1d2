"""A real HTTP server on 127.0.0.1 that speaks the OpenAI chat protocol, well or badly."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: (status, headers, body) of a reply; a body that is a str is what the model "said".
Reply = tuple[int, dict[str, str], str | bytes]


def says(text: str) -> Reply:
    """A well-formed reply."""
    return 200, {}, text


@dataclass
class Stub:
    """What the server saw, and what it answers: a function of (request number, user message)."""

    answer: Callable[[int, str], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(answer: Callable[[int, str], Reply]) -> Iterator[Stub]:
    """A stub server for the time of a `with` block."""
    stub = Stub(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                number = len(stub.requests)
                stub.requests.append({"path": self.path} | body)
                stub.headers.append(dict(self.headers))
            status, headers, said = stub.answer(number, body["messages"][-1]["content"])
            if isinstance(said, str):
                reply = {"choices": [{"message": {"role": "assistant", "content": said}}]}
                said = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def handle(self) -> None:
            try:
                super().handle()
            except (BrokenPipeError, ConnectionResetError):
                return  # the client gave up waiting

        def log_message(self, *_: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def weighs(odds: float, text: str | None = None) -> Reply:
    """A reply of 1 or 2 with log-probabilities: `odds` are the log odds of 1 over 2."""
    one, two = (-math.log1p(math.exp(sign * odds)) for sign in (-1, 1))
    named = text or ("1" if odds >= 0 else "2")
    tops = [{"token": "1", "logprob": one}, {"token": " 2", "logprob": two}]
    token = {"token": named, "logprob": max(one, two), "top_logprobs": tops}
    message = {"role": "assistant", "content": named}
    choice = {"message": message, "logprobs": {"content": [token]}}
    return 200, {}, json.dumps({"choices": [choice]}).encode()


def shown(message: str) -> tuple[str, str]:
    """The two responses in a user message, in their order."""
    first, second = re.findall(r"\[response [12] \w+\]\n(.*?)\n\[end of", message, re.DOTALL)
    return first, second

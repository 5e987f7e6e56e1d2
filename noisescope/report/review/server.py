"""Serve one review session to the browser of the person at this machine, and to nobody else.

    with ReviewServer(session, images) as server:
        webbrowser.open(server.url)
        server.wait()                       # until the page's Finish, or close() elsewhere

Only 127.0.0.1 is bound. Every path begins with a random token; the Host header must name this
server (so that no other name can be pointed at it), and requests from other origins are refused.
The page loads nothing from elsewhere: its content security policy allows its own style, script,
images and requests. No CORS header is ever sent, and no path leads to a file.

Answers carry the pair they are about: one about a pair that another tab has answered is refused
with status 409 and the next pair, so that tabs of one reviewer merge.
"""

from __future__ import annotations

import hmac
import json
import secrets
import webbrowser
from collections.abc import Callable, Sequence
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Self, final

from noisescope.errors import DataError, NoisescopeError, RunError, UsageError
from noisescope.pairs import PICTURE
from noisescope.report.pictures import jpeg, numbered
from noisescope.report.review.session import OutOfTurn, Session, Task
from noisescope.report.template import content_policy, render, resource
from noisescope.storage.printable import printable
from noisescope.storage.reviews import CHOICES

if TYPE_CHECKING:
    from noisescope.pairs import ImageStore
    from noisescope.storage.run import Run

PACKAGE = "noisescope.report.review"
#: Longest side of a picture as served, in pixels.
LARGEST = 1024
#: Characters of a text shown; the rest is in pairs.parquet.
LONGEST = 50_000
#: Longest body of a request, in bytes.
_BODY = 4096
_TIMEOUT = 30


@final
class ReviewServer:
    """A local server of one session. `port` 0 takes a free one; raises RunError if it is taken.

    `images` are the sides, or what prompts show (`of_prompts`).
    """

    def __init__(
        self,
        session: Session,
        images: ImageStore | None = None,
        port: int = 0,
        *,
        of_prompts: bool = False,
    ) -> None:
        self.session, self.images, self.of_prompts = session, images, of_prompts
        self.token = secrets.token_urlsafe(24)
        self.finished = Event()
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        except (OSError, OverflowError) as error:
            raise RunError(
                f"port {port} cannot be used: {error}",
                hint="Leave --port out: a free port is taken.",
            ) from error
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that is served."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Where the page is; who knows it can answer."""
        return f"http://127.0.0.1:{self.port}/{self.token}/"

    def wait(self) -> None:
        """Return when the reviewer has pressed Finish; signals get through."""
        while not self.finished.wait(0.2):
            pass

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def hosts(self) -> frozenset[str]:
        """Host headers of requests that are answered."""
        return frozenset({f"127.0.0.1:{self.port}", f"localhost:{self.port}"})

    @cached_property
    def page(self) -> tuple[bytes, str]:
        """The page and its content security policy."""
        css, script = (resource(PACKAGE, name) for name in ("review.css", "review.js"))
        policy = content_policy(css, script, sources="connect-src 'self'; img-src 'self' data:")
        html = render(
            PACKAGE,
            "review.html.jinja",
            css=css,
            script=script,
            reviewer=printable(self.session.reviewer),
            purpose=self.session.purpose,
        )
        return html.encode(), f"{policy}; frame-ancestors 'none'"

    def state(self) -> dict[str, Any]:
        """What the page shows now. Nothing in it depends on the label."""
        session, task = self.session, self.session.current()
        return {
            "done": session.done,
            "total": len(session.tasks),
            "undo": session.can_undo,
            "pair": task and self._shown(task),
        }

    def _shown(self, task: Task) -> dict[str, Any]:
        earlier, prompt = "", task.prompt
        if len(task.turns) > 1:
            from noisescope.datasets.conversations import SPEAKERS

            lines = [f"{SPEAKERS.get(t['role'], t['role'])}: {t['content']}" for t in task.turns]
            earlier, prompt = "\n\n".join(lines[:-1]), lines[-1]
        keys: list[str] = []
        if self.of_prompts:
            earlier, prompt = numbered(earlier, keys), numbered(prompt, keys)
        if self.images is None or self.of_prompts:
            sides: list[dict[str, Any]] = [{"text": _text(side)} for side in task.sides]
        else:
            sides = [{"image": side} for side in task.sides]
        return {
            "id": task.content_id,
            "prompt": _text(prompt),
            "earlier": _text(earlier),
            "shown": keys,
            "sides": sides,
        }

    def picture(self, key: str) -> bytes:
        """An image of the session's pairs as JPEG. Raises DataError for any other key."""
        if self.images is None or not any(key in self._keys(task) for task in self.session.tasks):
            raise DataError("no image of this session")
        return jpeg(self.images, key, LARGEST, 92)

    def _keys(self, task: Task) -> Sequence[str]:
        """Content keys of the pictures of a pair."""
        return PICTURE.findall(task.prompt) if self.of_prompts else task.sides

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(_Handler):
            review = server

        return Handler


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; see the module's docstring for what is refused."""

    review: ReviewServer
    timeout = _TIMEOUT
    server_version = "noisescope"
    sys_version = ""

    def do_GET(self) -> None:
        path = self._path()
        if path == "":
            page, policy = self.review.page
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page, policy)
        elif path == "state":
            self._json(HTTPStatus.OK)
        elif path is not None and path.startswith("image/"):
            try:
                picture = self.review.picture(path.removeprefix("image/"))
            except NoisescopeError as error:
                self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", str(error).encode())
            else:
                self._send(HTTPStatus.OK, "image/jpeg", picture)
        elif path is not None:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        actions: dict[str, Callable[[dict[str, Any]], None]] = {
            "answer": self._answer,
            "undo": self._undo,
            "finish": self._finish,
        }
        path = self._path()
        if path is None:
            return
        action, body = actions.get(path), self._body()
        if action is None or body is None:
            self._refuse(HTTPStatus.NOT_FOUND if action is None else HTTPStatus.BAD_REQUEST)
            return
        try:
            action(body)
        except RunError as error:
            text = json.dumps({"error": error.message, "hint": error.hint or ""})
            self._send(HTTPStatus.INSUFFICIENT_STORAGE, "application/json", text.encode())

    def _answer(self, body: dict[str, Any]) -> None:
        pair, choice = body.get("pair"), body.get("answer")
        if not isinstance(pair, str) or choice not in CHOICES:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        try:
            self.review.session.answer(pair, choice)
        except OutOfTurn:
            self._json(HTTPStatus.CONFLICT)
        else:
            self._json(HTTPStatus.OK)

    def _undo(self, body: dict[str, Any]) -> None:
        if body.get("done") != self.review.session.done:  # another tab answered or took back
            self._json(HTTPStatus.CONFLICT)
            return
        self.review.session.undo()
        self._json(HTTPStatus.OK)

    def _finish(self, body: dict[str, Any]) -> None:
        self._json(HTTPStatus.OK)
        self.review.finished.set()

    def _path(self) -> str | None:
        """The path behind the token; None, and the request is refused, where it is not ours."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "none")
        ours = host in self.review.hosts and site in ("none", "same-origin")
        if not ours or origin not in (None, f"http://{host}"):
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        token, slash, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.review.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return path

    def _body(self) -> dict[str, Any] | None:
        """The JSON object of a request, None for anything else."""
        try:
            size = int(self.headers.get("Content-Length", ""))
            if self.headers.get_content_type() != "application/json" or not 0 <= size <= _BODY:
                return None
            body = json.loads(self.rfile.read(size))
        except (ValueError, RecursionError):
            return None
        return body if isinstance(body, dict) else None

    def _json(self, status: HTTPStatus) -> None:
        self._send(status, "application/json", json.dumps(self.review.state()).encode())

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True  # a body may be unread
        self._send(status, "text/plain; charset=utf-8", status.phrase.encode())

    def _send(
        self, status: HTTPStatus, kind: str, body: bytes, policy: str = "default-src 'none'"
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing: the token is in every path."""


def _text(text: str) -> dict[str, Any]:
    shown = printable(text[:LONGEST], lines=True).strip("\n")
    return {"shown": shown, "cut": max(0, len(text) - LONGEST)}


def serve(
    session: Session,
    images: ImageStore | None,
    run: Run,
    *,
    note: Callable[[str], None],
    port: int = 0,
    opened: bool = True,
) -> None:
    """Serve the page until Finish is pressed or an interrupt comes; `note` gets its address.

    Raises UsageError for a run with pictures without `images`.
    """
    modality = run.manifest().get("modality", "text")
    if images is None and modality != "text":
        raise UsageError(
            "the images of this run cannot be read, so there is nothing to show",
            hint="Put the dataset back where it was when it was scored.",
        )
    with ReviewServer(session, images, port, of_prompts=modality == "vision") as server:
        note(f"page: {server.url}")
        note("Keep the address to yourself. Stop with Finish on the page, or Ctrl-C here.")
        if opened:
            webbrowser.open(server.url)
        try:
            server.wait()
        except KeyboardInterrupt:
            note("stopped; every answer is saved")

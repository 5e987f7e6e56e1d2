"""One chat request to an OpenAI-compatible endpoint, with bounded, polite retries.

    endpoint = Endpoint("http://127.0.0.1:8000/v1", "qwen3-8b", key=None)
    answer = endpoint.ask([{"role": "user", "content": "..."}])
    answer.text, answer.retries                       # text is None if every attempt failed

Timeouts, lost connections, 408, 429 and 5xx are tried again after 1, 2, 4, ... seconds (with
jitter, so that many clients do not return at once), or when Retry-After says. Anything else the
server refuses is an error of the command. The key goes into one header and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, final
from urllib.parse import urlsplit

from noisescope.errors import UsageError

#: Statuses that another attempt may mend; all of 5xx beside them.
AGAIN = (408, 425, 429)
#: Seconds of the longest pause, whatever Retry-After says.
LONGEST_PAUSE = 60.0
MOST_BYTES = 1_000_000
LOCAL = ("localhost", "127.0.0.1", "::1")


@final
@dataclass(frozen=True)
class Answer:
    """What came back: `text` None where no attempt brought a reply, "" where it had no text."""

    text: str | None
    retries: int


@final
class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@final
@dataclass(frozen=True)
class Endpoint:
    """Where a judge lives. Setting `stop` ends pauses, and attempts that have not begun.

    `sleep` and `jitter` (in [0, 1)) are arguments for tests; None sleeps until `stop`.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    attempts: int = 5
    sleep: Callable[[float], object] | None = None
    jitter: Callable[[], float] = random.random
    stop: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise UsageError for a URL that is none, or that would send the key unencrypted."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"--endpoint {self.url} is no http(s) URL",
                hint="Such as --endpoint http://127.0.0.1:8000/v1",
            )
        if parts.username or parts.password:
            raise UsageError(
                "--endpoint holds a password", hint="Put the key in a variable: --key-env NAME."
            )
        if self.key and parts.scheme == "http" and parts.hostname not in LOCAL:
            raise UsageError(
                f"--endpoint {self.url} would send the key unencrypted",
                hint="Use https, or leave --key-env out.",
            )

    def ask(self, messages: Sequence[Mapping[str, str]]) -> Answer:
        """One reply. Raises UsageError for what no further attempt can mend."""
        pause: float | None
        for attempt in range(self.attempts):
            if self.stop.is_set():
                return Answer(None, attempt)
            try:
                return Answer(_text(self._send(messages)), attempt)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in AGAIN and error.code < 500:
                        raise self._refused(error) from None
                    pause = retry_after(error.headers.get("Retry-After"), time.time())
            except (OSError, http.client.HTTPException):  # refused, reset, timed out, cut short
                pause = None
            if attempt + 1 < self.attempts:
                wait = 2.0**attempt * (0.5 + 0.5 * self.jitter()) if pause is None else pause
                (self.sleep or self.stop.wait)(min(wait, LONGEST_PAUSE))
        return Answer(None, self.attempts - 1)

    def _send(self, messages: Sequence[Mapping[str, str]]) -> bytes:
        body = {"model": self.model, "messages": list(messages), "temperature": 0}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
            method="POST",
        )
        handlers: list[Any] = [_NoRedirect]
        if urlsplit(self.url).hostname in LOCAL:
            handlers.append(urllib.request.ProxyHandler({}))  # this machine needs no proxy
        opener = urllib.request.build_opener(*handlers)
        with opener.open(request, timeout=self.timeout) as reply:
            content: bytes = reply.read(MOST_BYTES)
        return content

    def _refused(self, error: urllib.error.HTTPError) -> UsageError:
        """The server's own words, without the key."""
        said = error.read(2000).decode("utf-8", "replace")
        if self.key:
            said = said.replace(self.key, "***")
        return UsageError(
            f"the judge's endpoint answered {error.code}: {' '.join(said.split())[:300]}",
            hint="Check --endpoint, the model's name in --judge llm=NAME, and --key-env.",
        )


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header (seconds, or an HTTP date) asks to wait; None if none."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (TypeError, ValueError):
        return None


def _text(body: bytes) -> str:
    """The reply's text; "" where the body is not what the protocol says."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return content if isinstance(content, str) else ""

"""noisescope doctor: each problem is shown with advice, and the exit code is 2."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from noisescope.cli import run as command
from noisescope.cli.doctor import LIBRARIES, Finding, examine
from noisescope.models.device import pick_device, pick_dtype


def findings(directory: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(directory)}


@pytest.fixture
def hub() -> Iterator[str]:
    """A server that knows no page: it answers, with an error."""

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Silent) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_sound_machine_has_every_library_a_device_and_its_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = findings(tmp_path / "runs")
    assert all(found[name].ok for name in LIBRARIES)
    assert found["device"].value.startswith(str(pick_device("auto"))[:3]) or found["device"].ok
    assert "float32" in found["matrix products"].value
    assert found["workspace"].value == "none (no noisescope.toml)"
    assert found["feature cache"].value.endswith(": 0 MiB")
    assert found["hub"].value.startswith("switched off")


@pytest.mark.parametrize("path", ["", "/nothing/here"])
def test_a_hub_that_answers_in_whatever_way_is_reached(
    hub: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", hub + path)
    assert findings(tmp_path)["hub"] == Finding("hub", f"{hub}{path} answers")


def test_a_problem_is_shown_with_advice_and_exits_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", address)
    (tmp_path / "noisescope.toml").write_text("[nothing]\n")
    monkeypatch.chdir(tmp_path)
    assert command(["doctor"]) == 2
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{address} cannot be reached" in shown
    assert "set HF_HUB_OFFLINE=1" in shown
    assert shown.count("!!") == 2
    assert "next" not in shown
    assert command(["doctor", "--json"]) == 2
    told = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert not told["workspace"]["ok"]
    assert not told["hub"]["ok"]
    assert told["torch"]["ok"]


def test_a_device_or_a_number_type_that_is_not_there_is_refused() -> None:
    from noisescope.errors import UsageError

    with pytest.raises(UsageError, match="--device nothing cannot be used"):
        pick_device("nothing")
    with pytest.raises(UsageError, match="--dtype float8 is unknown"):
        pick_dtype("float8", pick_device("cpu"))

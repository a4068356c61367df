"""`fewview-ct weights`: from a folder and from a server, broken off, damaged, too large."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from custom.core.checkpoints import save_checkpoint
from custom.core.files import sha256_file
from custom.dicom import web_session
from custom.models import find_model, weights
from custom.models.model_folder import export
from custom.models.weights import fetch_weights
from tests.custom.benchmark.tiny_benchmark import tiny_network


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that somebody exported; this user's folder of models is empty."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    trained = save_checkpoint(tmp_path / "inr_recon" / "models" / "model.pt", tiny_network())
    folder = export(str(trained), str(tmp_path / "published"))
    assert json.loads((folder / "model.json").read_text())["name"] == "inr_recon"
    shutil.rmtree(tmp_path / "inr_recon")
    return folder


@pytest.fixture
def server(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A file server that understands ranges, reached as https://weights.test; `breaks_after` cuts an answer short."""
    state: dict[str, Any] = {"breaks_after": None, "drips": False, "ranges": [], "status": None}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (published / self.path.strip("/").split("/")[-1]).read_bytes()
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            state["ranges"].append((self.path, start))
            if state["status"]:
                self.send_response(state["status"])
                self.send_header("Location", "http://elsewhere.test/x")
                self.end_headers()
                return
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if state["drips"]:
                with contextlib.suppress(OSError):  # the client goes
                    for byte in content[start:]:  # each comes long before a time-out of its own
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.05)
                return
            end = len(content) if state["breaks_after"] is None else start + state["breaks_after"]
            self.wfile.write(content[start:end])

        def log_message(self, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    plain = requests.Session.request

    def request(self: requests.Session, method: str, url: str, **keywords: Any) -> requests.Response:
        return plain(
            self, method, url.replace("https://weights.test", f"http://127.0.0.1:{running.server_port}"), **keywords
        )

    monkeypatch.setattr(requests.Session, "request", request)
    yield state
    running.shutdown()
    running.server_close()


def test_a_copied_folder_is_found_by_its_name(published: Path) -> None:
    folder = fetch_weights(str(published), sha256_file(published / "model.json"))
    assert find_model("inr_recon").model == folder / "model.pt"
    assert sha256_file(folder / "model.pt") == sha256_file(published / "model.pt")
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        fetch_weights(str(published), sha256_file(published / "model.json"))
    assert fetch_weights(str(published), sha256_file(published / "model.json"), overwrite=True) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["inr_recon"]


def test_a_broken_download_goes_on_where_it_stopped(
    published: Path, server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_session, "_CHUNK", 1000)
    arguments = "https://weights.test/inr", sha256_file(published / "model.json"), str(tmp_path / "out")
    server["breaks_after"] = 5000  # more than model.json has, less than model.pt
    with pytest.raises(ConnectionError, match="goes on where it stopped"):
        fetch_weights(*arguments)
    assert not (tmp_path / "out").exists()
    server["breaks_after"], server["ranges"] = None, []
    assert fetch_weights(*arguments) == tmp_path / "out"
    ((path, start),) = server["ranges"]
    assert path == "/inr/model.pt" and 4000 <= start <= 5000
    assert find_model(tmp_path / "out").name == "inr_recon"


def test_a_server_that_drips_is_left_and_what_came_is_kept(
    published: Path, server: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = "https://weights.test/inr", sha256_file(published / "model.json"), str(tmp_path / "out")
    monkeypatch.setattr(web_session, "_CHUNK", 4)
    monkeypatch.setattr(weights, "TIMEOUT_S", 1)
    server["drips"], start = True, time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer within 1\S* s; the same command goes on where it stopped"):
        fetch_weights(*arguments)
    assert time.monotonic() - start < 20
    server["drips"], server["ranges"] = False, []
    monkeypatch.setattr(weights, "TIMEOUT_S", 60)
    assert fetch_weights(*arguments) == tmp_path / "out"
    assert server["ranges"][0][0] == "/inr/model.json" and server["ranges"][0][1] > 0


def test_what_cannot_be_trusted_leaves_nothing(published: Path, server: dict[str, Any], tmp_path: Path) -> None:
    known, url = sha256_file(published / "model.json"), "https://weights.test/inr"
    for source, sha256, options, message in (
        ("http://weights.test/inr", known, {}, "fetched by https"),
        ("https://u:p@weights.test/inr", known, {}, "plain address"),
        (url, "0" * 64, {}, "damaged or another"),
        (url, "abc", {}, "64 hexadecimal digits"),
        (url, known, {"max_gib": 1e-6}, "larger than --max_gib"),
        (str(published), known, {"max_gib": 1e-6}, "larger than --max_gib"),
    ):
        with pytest.raises(ValueError, match=message):
            fetch_weights(source, sha256, **options)
    server["status"] = 302
    with pytest.raises(ValueError, match="leads to http://elsewhere"):
        fetch_weights(url, known)
    server["status"] = None
    (published / "model.pt").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"model\.pt has SHA-256"):
        fetch_weights(url, known)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.json"):
        fetch_weights(str(tmp_path / "none"), known)
    assert not list((tmp_path / "home").rglob("*.p*"))


def test_names_in_a_description_are_no_paths(published: Path) -> None:
    description = json.loads((published / "model.json").read_text())
    for change in ({"name": "../up"}, {"files": {"../../x": "0" * 64}}):
        (published / "model.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(ValueError, match="cannot name a file"):
            fetch_weights(str(published), sha256_file(published / "model.json"))


def test_nothing_is_left_where_the_model_cannot_be_used(published: Path, tmp_path: Path) -> None:
    description = json.loads((published / "model.json").read_text())
    out = tmp_path / "out"

    def fetched() -> None:
        fetch_weights(str(published), sha256_file(published / "model.json"), str(out / "model"))

    out.mkdir()
    (out / "model").write_text("a file")
    with pytest.raises(FileExistsError, match="is no folder"):
        fetched()
    (out / "model").unlink()
    for files, error in (({}, "lists no model.pt"), ({**description["files"], "more.pt": "0" * 64}, "missing, but")):
        (published / "model.json").write_text(json.dumps({**description, "files": files}))
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            fetched()
    assert not list(out.iterdir())


def test_a_link_that_others_laid_is_not_filled(published: Path, tmp_path: Path) -> None:
    known, theirs = sha256_file(published / "model.json"), tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / f".weights-{known[:16]}.part").symlink_to(theirs)
    with pytest.raises(PermissionError, match="is a link or belongs to another user"):
        fetch_weights(str(published), known, str(tmp_path / "model"))
    assert not list(theirs.iterdir())

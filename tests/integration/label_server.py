"""A MONAI Label server for tests, started as a user starts it, and what a client asks of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests

from tests.free_ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "scripts/monailabel_app"


@dataclass
class Answer:
    """What POST /infer gives with output=all."""

    record: dict[str, Any]
    content: bytes
    seconds: float

    def volume(self, folder: Path) -> nib.Nifti1Image:
        path = folder / "answer.nii.gz"
        path.write_bytes(self.content)
        return nib.load(path)


@dataclass
class LabelServer:
    """The server, running.

    Attributes:
        url: of its REST interface.
        process: the server itself, not a shell around it.
        temporary: the folder that its temporary files lie in.
        start_seconds: until it answered.
    """

    url: str
    process: subprocess.Popen[bytes]
    temporary: Path
    start_seconds: float

    def post(self, path: str, **options: Any) -> requests.Response:
        return _session().post(f"{self.url}{path}", timeout=300, **options)

    def get(self, path: str) -> requests.Response:
        return _session().get(f"{self.url}{path}", timeout=60)

    def infer(self, image: str, model: str = "inr_recon", session: str = "", **params: Any) -> Answer:
        """Radiographs to volume; the request must succeed."""
        from requests_toolbelt.multipart.decoder import MultipartDecoder  # MONAI Label brings it

        start = time.perf_counter()
        query = {"image": image, "session_id": session, "output": "all"}
        response = self.post(f"/infer/{model}", params=query, data={"params": json.dumps(params)})
        seconds = time.perf_counter() - start
        assert response.status_code == 200, response.text
        parts = MultipartDecoder.from_response(response).parts
        record, image_part = json.loads(parts[0].content), parts[1].content
        return Answer(record, image_part, seconds)

    def refusal(self, image: str, /, model: str = "inr_recon", **params: Any) -> tuple[int, str]:
        """HTTP status and message of a request that must fail."""
        response = self.post(f"/infer/{model}", params={"image": image}, data={"params": json.dumps(params)})
        assert response.status_code != 200
        return response.status_code, response.json()["detail"]

    def peak_mib(self) -> float:
        """Most memory that the process has held [MiB]."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def left_over(self) -> list[str]:
        """Temporary files of the application (not of MONAI Label) that are there between two requests."""
        (place,) = self.temporary.glob("fewview-label-*")
        return [str(path) for path in place.rglob("*") if path.is_file()]


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


@contextmanager
def serving(
    folder: Path, studies: str | Path, models: str, environment: Mapping[str, str] | None = None
) -> Iterator[LabelServer]:
    """A server of our application until the context ends.

    Args:
        folder: for its own files; a copy of the application lies there, since a server writes beside it.
        studies: folder or URL.
        models: of `--conf models`.
        environment: variables beside those of this process.
    """
    shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("bin", "logs", "model", "__pycache__"))
    temporary = folder / "tmp"
    temporary.mkdir()
    (port,) = free_ports(1)
    places = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "TMPDIR": str(temporary)}
    words = ["--app", str(folder / "app"), "--studies", str(studies), "--host", "127.0.0.1", "--port", str(port)]
    start = time.perf_counter()
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(
            ["monailabel", "start_server", *words, "--conf", "models", models],
            stdout=log, stderr=log, cwd=folder, env=dict(os.environ) | places | dict(environment or {}),
        )  # fmt: skip
    try:
        server = LabelServer(f"http://127.0.0.1:{port}", process, temporary, 0.0)
        while True:
            try:
                if server.get("/info/").ok:
                    break
            except requests.RequestException:
                pass
            waited = time.perf_counter() - start
            assert process.poll() is None and waited < 180, (folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)
        server.start_seconds = time.perf_counter() - start
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def values(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj)

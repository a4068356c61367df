"""The queue: one step of one case at a time, each a process that runs the command line as a person would."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from custom.app.case_folder import ANSWERS, Case, Cases, Refused, refusal
from custom.core.files import read_json_object

__all__ = ["Installation", "WorkQueue", "progress"]

logger = logging.getLogger(__name__)

_START = "from custom.core.workers import end_with_parent; end_with_parent(); "
_COMMAND_LINE = f"{_START}from custom.cli import main; main()"
_READ = f"{_START}from custom.app.read_case import main; main()"
_RADIOGRAPHS = "DX,CR,XA,RF,RTIMAGE"
#: Steps that take seconds go before those that take minutes.
_QUICK = ("read", "fetch", "send")
_NOT_POSSIBLE = 5  # custom.cli.exit_codes: plan.html says why
_TAIL = 20_000
#: Seconds until a disk that took nothing is tried again.
_PAUSE_S = 5.0


@dataclass(frozen=True)
class Installation:
    """What there is on this machine; nothing of it comes from a client.

    Attributes:
        models: path of the weights by name, and whether the model draws samples.
        device: torch device; None: the best there is.
        fetch_from: DICOMweb URL that radiographs are fetched from.
        send_to: DICOMweb URL or AET@host:port that results are sent to.
        fetch_options, send_options: further words of those commands, such as names of files with passwords.
        templates: of plans; none: the extra radiotherapy is missing.
    """

    models: Mapping[str, tuple[Path, bool]]
    device: str | None = None
    fetch_from: str | None = None
    send_to: str | None = None
    fetch_options: Sequence[str] = ()
    send_options: Sequence[str] = ()
    templates: Sequence[str] = field(default_factory=tuple)


class WorkQueue:
    """Works off the steps that cases wait for, until it is cancelled.

    Args:
        cases: all of them; their records are the queue.
        installation: of this machine.
    """

    def __init__(self, cases: Cases, installation: Installation) -> None:
        self.cases, self.installation = cases, installation
        self._news = asyncio.Event()
        self._running: tuple[str, asyncio.subprocess.Process] | None = None
        self._unwanted: set[str] = set()  # cases whose running step somebody stopped

    def wake(self) -> None:
        """Say that a case waits."""
        self._news.set()

    def waiting(self) -> list[Case]:
        """Cases in the order in which they will be worked on."""
        found = [case for case in self.cases if case.record["state"] == "waiting"]
        return sorted(found, key=lambda case: (case.record["task"] not in _QUICK, case.record["since"]))

    async def stop(self, case: Case) -> None:
        """End the step of a case, if one is running, and wait until it has ended."""
        if self._running is not None and self._running[0] == case.id:
            process = self._running[1]
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def give_up(self, case: Case) -> None:
        """Take the step of a case out of the queue, or end it; what there was before stays."""
        state = case.record["state"]
        if state == "waiting":
            case.save(state="idle")
        elif state == "running":
            self._unwanted.add(case.id)
            await self.stop(case)

    async def work(self) -> None:
        """Work, one step after the other."""
        while True:
            case = None
            try:
                case = next(iter(self.waiting()), None)
                if case is not None:
                    await self._step(case)
                    continue
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 3600)
                self.cases.expire()
            except Exception as error:  # a full disk, a case that was removed meanwhile: other cases are worked on
                logger.error("%s", error, exc_info=not isinstance(error, OSError | Refused))
                if case is None:
                    await asyncio.sleep(_PAUSE_S)
                else:
                    await self._give_back(case, _said_of(error))

    async def _give_back(self, case: Case, error: str) -> None:
        """Say on a case's page why its step failed, as soon as the disk takes it: until then no step could run."""
        while case.folder.is_dir():
            try:
                return case.save(state="idle", error=error)
            except OSError:
                await asyncio.sleep(_PAUSE_S)

    async def _step(self, case: Case) -> None:
        task, options = case.record["task"], case.record["options"]
        self._unwanted.discard(case.id)
        case.save(state="running", began=time.time())
        command = self._command(case, task, options)
        with open(os.open(case.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=case.folder, env=_environment(), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
            self._running = case.id, process
            try:
                if not case.folder.is_dir() or case.id in self._unwanted:  # while the process started
                    process.kill()
                code = await process.wait()
            except asyncio.CancelledError:  # the server ends; the step runs again when it starts
                await self.stop(case)
                raise
            finally:
                self._running = None
        unwanted = case.id in self._unwanted
        self._unwanted.discard(case.id)
        if not case.folder.is_dir():
            return
        if code:
            case.clear(".*.part", "fetched")  # what a step that was ended could not
        if unwanted:
            case.save(state="idle")
            return
        if code and not (task == "plan" and code == _NOT_POSSIBLE):
            case.save(state="idle", error=case.shown(_failure(case, code)))
            return
        if task == "fetch":
            _take_fetched(case, self.cases.limits.files)
        elif task == "send":
            case.save(sent=time.strftime("%Y-%m-%d %H:%M"))
        case.save(state="idle")
        if task == "fetch":
            case.wait_for("read")

    def _command(self, case: Case, task: str, options: Mapping[str, object]) -> list[str]:
        here, accept = self.installation, case.record["accept"]
        device = [f"--device={here.device}"] if here.device else []
        if task == "read":
            case.set_aside()
            return [sys.executable, "-c", _READ, *accept]
        if task == "fetch":
            case.clear("files/*")  # what a fetch before the server's end had taken
            case.save(files={})
            query = [f"--{options['by']}={options['value']}", f"--modality={_RADIOGRAPHS}", "--overwrite"]
            words = ["fetch", str(here.fetch_from), "fetched", *query, *here.fetch_options]
        elif task == "send":
            folders = ["result", *(["plan"] if case.has("plan/rtplan.dcm") else [])]
            words = ["send", *folders, f"--to={here.send_to}", *here.send_options]
        elif task == "plan":
            words = ["plan", "result", "--output=plan", f"--template={options['template']}", "--overwrite", *device]
        else:
            case.write_answers()
            files = [f"files/{name}" for name in case.record["files"] if not name.endswith(".json")]
            weights = here.models[str(options["model"])][0]
            words = [
                "reconstruct",
                *files,
                "--output=result",
                "--overwrite",
                f"--model={weights}",
                f"--geometry={ANSWERS}",
            ]
            words += [f"--samples={options['samples']}"]
            words += [f"--accept={','.join(accept)}"] if accept else []
            words += ["--nodicom"] if "several-patients" in accept else []
            words += device
        return [sys.executable, "-c", _COMMAND_LINE, *words, "--verbose"]


def _environment() -> dict[str, str]:
    """That of the server, and modules from where it has them, in its order.

    A step runs in another folder, where `.` means something else. The order keeps Python's own modules before packages:
    pydosert brings an old copy of dataclasses, which a site-packages in front would put in its place.
    """
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


def progress(case: Case) -> str:
    """What the running step said last of how far it is."""
    steps = re.findall(r"^step: (.+)$", _log(case), re.MULTILINE)
    return steps[-1] if steps else ""


def _log(case: Case) -> str:
    try:
        with open(case.folder / "log.txt", "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            return stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _failure(case: Case, code: int) -> str:
    said = re.findall(r"^error: (.+)$", _log(case), re.MULTILINE)
    if said:
        return str(refusal(OSError(errno.ENOSPC, ""))) if said[-1].startswith("no space left") else said[-1]
    if code < 0:
        return "It was ended from outside, most often because memory ran out. Try again."
    return _said_of(next((line for line in reversed(_log(case).splitlines()) if line.strip()), f"exit code {code}"))


def _said_of(error: Exception | str) -> str:
    """What a case's page says of an error that nobody foresaw, of the disk, or of what was fetched."""
    if isinstance(error, OSError):
        error = refusal(error)
    if isinstance(error, Refused):
        return str(error)
    failed = f"The program itself failed ({str(error).strip()[:300]})."
    return f"{failed} It is not for your answers: tell whoever started this page."


def _take_fetched(case: Case, most: int) -> None:
    """What `fewview-ct fetch` wrote becomes the case's files."""
    names = sorted(read_json_object(case.folder / "fetched" / "fetch.json")["files"])
    if len(names) > most:
        case.clear("fetched")
        raise Refused(
            413, f"The study has {len(names)} radiographs; at most {most} are taken. Fetch by study, or drop files."
        )
    for number, name in enumerate(names, 1):
        with case.new_file(f"{number} from the PACS.dcm", most) as stream:
            stream.write((case.folder / "fetched" / name).read_bytes())
    case.clear("fetched")

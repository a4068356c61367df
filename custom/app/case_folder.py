"""`Case`: one patient's radiographs, answers and results, in a folder whose name is a secret; and `Cases`, all of them.

| in the folder | is |
|---|---|
| case.json | state, names, options, answers; written by the server alone |
| files/ | radiographs and sidecars, under names of our own |
| reading.json, picture_N.png | what was read (`custom.app.read_case`) |
| answered-on-the-page.json | the answers and the names of the files, as `--geometry` reads them |
| unreadable.json | what is wrong with each file that cannot be read |
| log.txt | what the last step said |
| result/, plan/ | of `fewview-ct reconstruct` and `fewview-ct plan` |
| earlier/ | the result before radiographs or answers changed |
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from custom.core.files import read_json_object, write_json
from custom.radiographs import ANSWERS_FORMAT

__all__ = ["ANSWERS", "EARLIER", "ID", "RESULT", "UNREADABLE", "Case", "Cases", "Limits", "Refused", "refusal"]

logger = logging.getLogger(__name__)

FORMAT, RECORD = "fewview-ct case 1", "case.json"
#: The answers, for `--geometry`.
ANSWERS = "answered-on-the-page.json"
#: Why files cannot be read, by our names.
UNREADABLE = "unreadable.json"
RESULT, EARLIER = "result", "earlier"
#: How the name of a folder begins that is being made or removed.
_REMOVED = ".removed-"
#: 128 random bits in hexadecimal, as a pattern that earlier names (in base64) match too.
ID = r"[A-Za-z0-9_-]{32}"
#: Endings that a file may keep, the longest first; any other file is taken for DICOM, whose content is looked at.
_ENDINGS = (".nii.gz", ".nii", ".png", ".tiff", ".tif", ".json", ".dicom", ".dcm")
_FREE_BYTES = 2**30


class Refused(Exception):
    """Something that a client asked for and does not get: the status of the answer, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def refusal(error: Exception) -> Refused:
    """What a client is told of an error of the disk."""
    if isinstance(error, FileNotFoundError):
        return Refused(409, "This case was changed meanwhile: load its page again.")
    is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    reason = "The disk of this machine is full" if is_full else "This machine cannot use its disk"
    return Refused(507, f"{reason}: tell whoever runs this page, then try again.")


@dataclass(frozen=True)
class Limits:
    """What is taken from clients.

    Attributes:
        file_mb: megabytes (1e6 bytes) of a file.
        files: in a case.
        cases: at a time.
        keep_days: after which a case is removed; 0: never.
        samples: volumes that may be drawn of a case.
    """

    file_mb: int = 200
    files: int = 16
    cases: int = 200
    keep_days: float = 30.0
    samples: int = 16


class Case:
    """One case; `record` is case.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = read_json_object(folder / RECORD)

    @property
    def id(self) -> str:
        """The secret that its links hold."""
        return self.folder.name

    @property
    def is_busy(self) -> bool:
        """Whether a step waits or runs."""
        return self.record["state"] != "idle"

    def has(self, name: str) -> bool:
        """Whether the folder has a file of a step."""
        return (self.folder / name).exists()

    def save(self, **changes: Any) -> None:
        """Change the record, as it is on the disk by now, and write it."""
        self.record = read_json_object(self.folder / RECORD) | changes
        write_json(self.folder / RECORD, self.record)

    def wait_for(self, task: str, **options: Any) -> None:
        """Put the next step into the queue.

        Raises:
            Refused: another one is there.
        """
        if self.is_busy:
            raise Refused(409, "This case is being worked on: wait until that is done.")
        files = {own: name for own, name in self.record["files"].items() if self.has(f"files/{own}")}
        self.save(state="waiting", task=task, options=options, since=time.time(), error="", files=files)

    @contextlib.contextmanager
    def new_file(self, name: str, most: int) -> Iterator[BinaryIO]:
        """A stream for a file that a client sends, under a name of our own; nothing stays where it breaks off.

        The name stands in the record from the beginning, the file has it once it is whole.

        Args:
            name: the client's; a text that is shown, never a path. A sidecar (.json) gets the number of the radiograph
                with its name.
            most: files of the case.

        Raises:
            Refused: there are too many, or the file was taken out while it came.
        """
        files: dict[str, str] = self.record["files"]
        if len(files) >= most:
            raise Refused(413, f"At most {most} files are taken for one patient.")
        stem, ending = _parts(name)
        same = [own for own, other in files.items() if _parts(other)[0] == stem]
        numbers = [int(own.split("_")[1].split(".")[0]) for own in files]
        paired = [own for own in same if own.endswith(".json") != (ending == ".json")]
        # A number is given once: a page that still shows the file which had it must not answer for another one.
        last = max(self.record.get("last", 0), *numbers, 0)
        number = int(paired[0].split("_")[1].split(".")[0]) if paired else last + 1
        own = f"radiograph_{number}{ending}"
        if own in files:
            raise Refused(409, f"{name}: two files of this name; give one of them another name.")
        self.save(files={**files, own: name}, last=max(last, number))
        part = self.folder / "files" / f".{own}.part"
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if not self.has(RECORD) or own not in Case(self.folder).record["files"]:
                raise Refused(409, f"{name}: was taken out while it came.")
            self.set_aside()
            part.rename(self.folder / "files" / own)
        except BaseException:
            part.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a full disk, or no case any more
                now = Case(self.folder).record["files"]
                self.save(files={key: value for key, value in now.items() if key != own})
            raise

    def unfinished(self) -> list[str]:
        """Our names of files that are coming."""
        return [own for own in self.record["files"] if self.has(f"files/.{own}.part")]

    def drop_unfinished(self) -> None:
        """Take out the files that were coming, or being taken out, when the server ended, and say of the first so."""
        files: dict[str, str] = self.record["files"]
        for path in (self.folder / "files").iterdir():
            if path.name not in files:
                path.unlink()
        gone = [own for own in files if not self.has(f"files/{own}")]
        if gone:
            names = ", ".join(files[own] for own in gone)
            self.save(
                files={own: name for own, name in files.items() if own not in gone},
                error=f"Not received whole, since the server ended meanwhile, and left out: {names}. Send it again.",
            )

    def remove_files(self, names: Sequence[str]) -> None:
        """Take out radiographs with their sidecars, by their names in the record: all of them or none.

        Raises:
            Refused: one is not there.
        """
        files: dict[str, str] = self.record["files"]
        named = {name.split("[")[0] for name in names}
        if not named or not named <= {*files}:
            raise Refused(404, "There is no such file.")
        gone = named | {f"{_parts(own)[0]}.json" for own in named}
        self.set_aside()
        self.save(
            files={key: value for key, value in files.items() if key not in gone},
            answers={key: value for key, value in self.record["answers"].items() if key.split("[")[0] not in gone},
            error="",
        )
        for own in gone:  # what the record does not name is no radiograph any more
            (self.folder / "files" / own).unlink(missing_ok=True)

    def write_answers(self) -> None:
        """The answers as a file for `--geometry`, with the client's names of the radiographs."""
        given = self.record["answers"].items()
        views = [{"file": name, **values} for name, values in given if values]
        called = {own: name for own, name in self.record["files"].items() if not own.endswith(".json")}
        write_json(self.folder / ANSWERS, {"format": ANSWERS_FORMAT, "views": views, "called": called})

    def clear(self, *names: str) -> None:
        """Remove what earlier steps left."""
        for name in names:
            for path in self.folder.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def set_aside(self) -> None:
        """Radiographs or answers change: nothing of what was read is valid any more, and a CT is the earlier one."""
        if self.has(f"{RESULT}/result.json"):
            self.save(sent="")
            self.clear(EARLIER)
            (self.folder / RESULT).rename(self.folder / EARLIER)
        self.clear("reading.json", "picture_*.png", UNREADABLE, RESULT, "plan")

    def shown(self, text: str) -> str:
        """A message with the client's names in the place of ours."""
        files: dict[str, str] = self.record["files"]
        ours = "|".join(re.escape(own) for own in sorted(files, key=len, reverse=True))
        if ours:  # all at once: a client's name may be one of ours, of another file
            text = re.sub(rf"(?:files/)?\b({ours})\b(?!\.json)", lambda found: files[found[1]], text)
        return text.replace(str(self.folder), "this case")


class Cases:
    """All cases of a folder, which one server has for itself.

    Args:
        folder: made where it is not there, for this user alone.
        limits: of them.

    Raises:
        ValueError: another server has it.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        self.folder, self.limits = folder.resolve(), limits
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._lock = os.fdopen(lock, "w")  # held as long as the server runs
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ValueError(f"{folder}: another app works in this folder; give --folder another one") from error
        for left in folder.glob(f"{_REMOVED}*"):  # the server ended in the midst of it
            shutil.rmtree(left, ignore_errors=True)
        for case in self:
            case.drop_unfinished()
            if case.record["state"] == "running":
                case.save(state="waiting")

    def close(self) -> None:
        """Let another server have the folder."""
        self._lock.close()

    def __iter__(self) -> Iterator[Case]:
        for path in sorted(self.folder.iterdir()):
            if re.fullmatch(ID, path.name) and (path / RECORD).is_file():
                with contextlib.suppress(Refused):  # one damaged case keeps no other from its work
                    yield _opened(path)

    def create(self) -> Case:
        """A new case.

        Raises:
            Refused: there are too many, or the disk is nearly full.
        """
        self.expire()
        if sum(1 for _ in self) >= self.limits.cases:
            days = f", and are removed after {self.limits.keep_days:g} days" if self.limits.keep_days else ""
            raise Refused(
                503,
                f"{self.limits.cases} cases are kept already{days}. Remove those that you no longer need on their own "
                "pages, or ask whoever runs this page to allow more (--cases).",
            )
        self.check_space()
        folder = self.folder / secrets.token_hex(16)  # a name that no shell takes for an option
        begun = self.folder / f"{_REMOVED}{folder.name}"  # until it is whole
        (begun / "files").mkdir(mode=0o700, parents=True)
        os.chmod(begun, 0o700)
        start = {"format": FORMAT, "created": time.time(), "state": "idle", "task": "", "error": "", "sent": ""}
        write_json(begun / RECORD, {**start, "options": {}, "files": {}, "answers": {}, "accept": []})
        begun.rename(folder)
        return Case(folder)

    def check_space(self) -> None:
        """Refuse what would fill the disk.

        Raises:
            Refused: it is nearly full.
        """
        if shutil.disk_usage(self.folder).free < _FREE_BYTES:
            raise Refused(507, "The disk of this machine is nearly full.")

    def take_out(self, case: Case) -> Path:
        """Let nobody find a case from now on.

        Returns:
            The folder that is left to be removed.
        """
        return case.folder.rename(self.folder / f"{_REMOVED}{case.id}")

    def find(self, name: str) -> Case:
        """The case of a link.

        Raises:
            Refused: there is none.
        """
        if not re.fullmatch(ID, name) or not (self.folder / name / RECORD).is_file():
            raise Refused(404, "There is no such case. It may have been removed.")
        return _opened(self.folder / name)

    def expire(self) -> None:
        """Remove what is older than it is kept, but nothing that is worked on."""
        oldest = time.time() - 86_400 * self.limits.keep_days
        for case in self:
            if self.limits.keep_days and case.record["created"] < oldest and not case.is_busy:
                shutil.rmtree(self.take_out(case), ignore_errors=True)


def _opened(folder: Path) -> Case:
    """A case, or Refused where its record is damaged; whoever runs the server is told once."""
    try:
        case = Case(folder)
        if missing := {"state", "created", "files"} - case.record.keys():
            raise ValueError(f"{folder / RECORD}: damaged, without {sorted(missing)[0]}")
    except ValueError as error:
        _say(f"{error}; the case is left out: remove its folder")
        raise Refused(500, "The record of this case is damaged: tell whoever runs this page.") from error
    return case


@functools.lru_cache
def _say(text: str) -> None:
    logger.warning("%s", text)


def _parts(name: str) -> tuple[str, str]:
    """A name without its endings, in small letters, and the ending that our own name gets."""
    low = name.lower()
    ending = next((one for one in _ENDINGS if low.endswith(one)), "")
    stem = low.removesuffix(ending)
    if ending == ".json":
        stem = stem.removesuffix(next((one for one in _ENDINGS if stem.endswith(one)), ""))
    return stem, ending if ending not in ("", ".dicom") else ".dcm"

"""The verb `fewview-ct weights`: an exported model, fetched by https or copied from a folder, where names find it."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from custom.core.atomic_directory import check_free
from custom.core.files import read_json_object, sha256_file
from custom.core.names import plain_name
from custom.dicom.store import NetworkError
from custom.dicom.web_session import read_body, within
from custom.models.model_files import DESCRIPTION, FORMAT, MODEL_NAMES, find_model, user_models

__all__ = ["fetch_weights"]

logger = logging.getLogger(__name__)

LARGEST_DESCRIPTION, TIMEOUT_S = 2**20, 60


def fetch_weights(
    source: str, sha256: str, output: str | None = None, max_gib: float = 8.0, overwrite: bool = False
) -> Path:
    """Fetch a model that 'fewview-ct export' made, so that its name finds it from then on.

    Every file is checked against model.json, and model.json against the hash given here, which whoever published the
    model tells on another way. What was fetched before a break is kept, and the same command goes on from there. Where
    there is no network, the folder is copied by hand and named instead of the URL.

    Args:
        source: https URL of the folder that holds model.json, or that folder.
        sha256: of model.json, 64 hexadecimal digits.
        output: folder to make; by default the model's name in the folder that 'fewview-ct reconstruct --model NAME'
            looks into.
        max_gib: how much is fetched at most.
        overwrite: replace a model that is there.

    Raises:
        FileNotFoundError: the source, or a file that its model.json lists, is not there.
        FileExistsError: the output exists.
        PermissionError: what an earlier fetch left is not this user's.
        ValueError: another hash, a URL without encryption, more than is fetched.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", str(sha256)):
        raise ValueError(f"--sha256 takes the 64 hexadecimal digits of model.json's hash; got {sha256!r}")
    if not max_gib > 0:
        raise ValueError(f"--max_gib must be positive; got {max_gib}")
    _check_source(source)
    part = (Path(output).parent if output else user_models()) / f".weights-{sha256.lower()[:16]}.part"
    part.mkdir(mode=0o700, parents=True, exist_ok=True)
    if part.is_symlink() or part.stat().st_uid != os.getuid():  # who made it could change what was checked
        raise PermissionError(f"{part}: is a link or belongs to another user: remove it, or choose another output")
    try:
        _get(source, DESCRIPTION, part, sha256.lower(), LARGEST_DESCRIPTION)
        content = read_json_object(part / DESCRIPTION)
        if content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
            raise ValueError(f"{source}: format {content.get('format')!r}, expected {FORMAT!r}")
        name = plain_name(content.get("name"), f"{source}: the name")
        folder = check_free(output or user_models() / name, DESCRIPTION, overwrite, {*content["files"], DESCRIPTION})
        left = int(max_gib * 2**30)
        for file, expected in content["files"].items():
            left -= _get(source, plain_name(file, f"{source}: the file"), part, str(expected).lower(), left)
        find_model(part)
    except (ValueError, FileExistsError, FileNotFoundError):
        shutil.rmtree(part, ignore_errors=True)  # nothing of it can be used; a broken connection keeps what it has
        raise
    if folder.is_dir():
        shutil.rmtree(folder)
    os.replace(part, folder)
    hint = f"--model {name}" if output is None and name in MODEL_NAMES else f"--model {folder}"
    logger.info("%s: %s; use it with %s", name, folder, hint)
    return folder


def _check_source(source: str) -> None:
    if "://" in source:
        parts = urlsplit(source)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.password:
            raise ValueError(f"{source}: weights are fetched by https from a plain address of a folder, or copied")
    elif not Path(source, DESCRIPTION).is_file():
        raise FileNotFoundError(f"{source}: holds no {DESCRIPTION}: name a folder that 'fewview-ct export' made")


def _get(source: str, name: str, folder: Path, expected: str, limit: int) -> int:
    """A file of the source with its hash checked; what is there already is kept. Returns its bytes."""
    path = folder / name
    if not (path.is_file() and sha256_file(path) == expected):
        if "://" in source:
            _download(f"{source.rstrip('/')}/{quote(name)}", path, limit)
        else:
            _copy(Path(source, name), path, limit)
        found = sha256_file(path)
        if found != expected:
            path.unlink()
            raise ValueError(f"{source}: {name} has SHA-256 {found[:12]}, expected {expected[:12]}: damaged or another")
    return path.stat().st_size


def _copy(source: Path, path: Path, limit: int) -> None:
    if not source.is_file():
        raise FileNotFoundError(f"{source}: missing, but {DESCRIPTION} lists it: copy the whole folder")
    if source.stat().st_size > limit:
        raise ValueError(f"{source}: larger than --max_gib allows")
    shutil.copyfile(source, path)


def _download(url: str, path: Path, limit: int) -> None:
    """Appends what is missing of a file; a server that cannot continue sends all of it, and a slow one is left."""
    done = path.stat().st_size if path.is_file() else 0
    try:
        headers = {"Range": f"bytes={done}-", "Accept-Encoding": "identity"}
        options: dict[str, Any] = {"stream": True, "timeout": TIMEOUT_S, "allow_redirects": False}
        with within(lambda: 2 * TIMEOUT_S, lambda: requests.get(url, headers=headers, **options)) as answer:
            if answer.is_redirect:
                raise ValueError(
                    f"{url}: leads to {answer.headers['Location']}: name that address, if it is to be trusted"
                )
            if answer.status_code == 404:
                raise FileNotFoundError(f"{url}: not on the server")
            if answer.status_code == 416:  # all of it was there, and was not the right one
                path.unlink(missing_ok=True)
                raise ConnectionError(f"{url}: the server has less than was fetched before: start again")
            answer.raise_for_status()
            continues = answer.status_code == 206
            logger.info("%s %s", "continuing" if continues and done else "fetching", url)
            with path.open("ab" if continues else "wb") as stream:
                read_body(answer, url, TIMEOUT_S, limit - done if continues else limit, stream)
    except NetworkError as error:
        raise ValueError(f"{url}: larger than --max_gib allows") from error
    except requests.RequestException as error:
        text = " ".join(str(error).split())[:200]
        raise ConnectionError(f"{url}: {text}; the same command goes on where it stopped") from error

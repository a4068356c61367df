"""The verb `fewview-ct fetch`: studies out of a PACS by DICOMweb (QIDO-RS to find them, WADO-RS to get them)."""

from __future__ import annotations

import email.message
import logging
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom.core.atomic_directory import atomic_directory
from custom.core.files import atomic_file, sha256_file, write_json
from custom.core.limits import check_count
from custom.dicom.opener import open_dicom
from custom.dicom.store import NetworkError, require
from custom.dicom.strict import is_uid
from custom.dicom.web_session import access_from, check_timeout, check_url, session_of, web_errors

__all__ = ["fetch"]

logger = logging.getLogger(__name__)

#: Written last into the folder: what was asked and what came.
RECORD = "fetch.json"
FORMAT = "fewview-ct fetch 1"
MOST_STUDIES, MOST_OBJECTS = 100, 20_000
_PAGE, _CHUNK = 500, 2**20
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"


@dataclass(frozen=True)
class _Wanted:
    study: str
    series: str
    instance: str


def fetch(
    url: str,
    output: str,
    study: str | None = None,
    accession: str | None = None,
    patient: str | None = None,
    modality: Sequence[str] = (),
    timeout_s: float = 60.0,
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    user: str | None = None,
    password_file: Path | None = None,
    token_file: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Fetches the studies of one patient, accession number or UID from a DICOMweb server into a folder.

    The folder appears whole or not at all: OUTPUT/STUDY/OBJECT.dcm, and fetch.json with the query and the SHA-256 of
    every object. What the server says is not believed: each object must be readable and the one that was asked for.
    Credentials come from files, or from FEWVIEW_PACS_USER and FEWVIEW_PACS_PASSWORD, or FEWVIEW_PACS_TOKEN.

    Args:
        url: base of the DICOMweb service, https, or http of this machine itself.
        output: folder to make.
        study: Study Instance UID; give this, or the accession number, or the patient.
        accession: Accession Number (0008,0050).
        patient: Patient ID (0010,0020); every study of the patient.
        modality: series of these alone, such as DX,CR; all by default.
        timeout_s: longest wait for the connection and for each answer to begin.
        ca_file: certificates to trust instead of the system's, PEM.
        certificate_file: our own certificate, PEM, where the server asks for one.
        key_file: its private key, PEM.
        user: user name.
        password_file: a file whose first line is the password.
        token_file: a file whose first line is a bearer token.
        overwrite: replace a folder that an earlier fetch made.

    Returns:
        The folder.

    Raises:
        ValueError: a query that is none or finds nothing, a URL that is not encrypted, an option that makes no sense.
        FileNotFoundError, FileExistsError: a file that was named does not exist; the output does.
        NetworkError: unreachable, refused, or an object that is not the one that was asked for.
    """
    query = _query(study, accession, patient)
    url = check_url(url, needs_tls=True)
    check_timeout(timeout_s)
    for path in (ca_file, certificate_file, key_file):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
    if (certificate_file is None) != (key_file is None):
        raise ValueError("--certificate_file and --key_file go together")
    certificate = None if certificate_file is None or key_file is None else (certificate_file, key_file)
    access = access_from(user, password_file, token_file, ca_file=ca_file, certificate=certificate)
    web = require("dicomweb_client.web")
    files: dict[str, str] = {}
    with atomic_directory(output, RECORD, overwrite) as folder, session_of(access, timeout_s) as session:
        with web_errors(url, timeout_s, "give it", lambda: f"{len(files)} objects were fetched, none is kept"):
            client = web.DICOMwebClient(url, session=session, timeout=(timeout_s, timeout_s))
            client.set_http_retry_params(retry=False)
            wanted = _find(client, query, {one.upper() for one in modality})
            if not wanted:
                of = f" with series of {', '.join(modality)}" if modality else ""
                raise ValueError(f"{url}: no study of {_words(query)}{of}")
            for one in wanted:
                path = _get(session, url, one, query, folder)
                files[path.relative_to(folder).as_posix()] = sha256_file(path)
        write_json(folder / RECORD, {"format": FORMAT, "url": url, "query": query, "files": files})
    logger.info("%s: %d objects of %d studies", output, len(files), len({one.study for one in wanted}))
    return Path(output)


def _query(study: str | None, accession: str | None, patient: str | None) -> dict[str, str]:
    given = {"StudyInstanceUID": study, "AccessionNumber": accession, "PatientID": patient}
    query = {key: value.strip() for key, value in given.items() if value is not None}
    if len(query) != 1:
        raise ValueError("give one of --study UID, --accession NUMBER and --patient ID")
    key, value = next(iter(query.items()))
    if key == "StudyInstanceUID" and not is_uid(value):
        raise ValueError(f"--study {value!r} is no UID")
    # Wildcards (PS3.4 C.2.2.2.4) would find other patients.
    if not value or len(value) > 64 or any(c in "*?\\" or not c.isprintable() for c in value):
        raise ValueError(f"{value!r} is no {key}: 1 to 64 characters, no wildcard")
    return query


def _words(query: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in query.items())


def _find(client: Any, query: Mapping[str, str], modalities: set[str]) -> list[_Wanted]:
    """The objects that match, by QIDO-RS."""
    if "StudyInstanceUID" in query:
        studies = [query["StudyInstanceUID"]]
    else:
        found = _pages(client.search_for_studies, MOST_STUDIES, _STUDY, search_filters=dict(query))
        studies = [_uid(one, _STUDY) for one in found]
    wanted = []
    for study in studies:
        for series in _pages(client.search_for_series, MOST_OBJECTS, _SERIES, study_instance_uid=study):
            if modalities and str(_value(series, _MODALITY)).upper() not in modalities:
                continue
            uid = _uid(series, _SERIES)
            names = {"study_instance_uid": study, "series_instance_uid": uid}
            objects = _pages(client.search_for_instances, MOST_OBJECTS, _INSTANCE, **names)
            wanted += [_Wanted(study, uid, _uid(one, _INSTANCE)) for one in objects]
            check_count("the server", "objects", len(wanted), MOST_OBJECTS)
    return list(dict.fromkeys(wanted))


def _pages(search: Any, most: int, key: str, **names: Any) -> Iterator[Any]:
    """Answers of a search, page by page, until one has nothing new."""
    seen: set[str] = set()
    while True:
        try:
            page = list(search(limit=_PAGE, offset=len(seen), **names))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, SyntaxError) as error:
            raise NetworkError(f"the server's answer is no list of DICOM objects ({str(error)[:120]})") from error
        new = [one for one in page if _uid(one, key) not in seen]
        if not new:
            return
        seen |= {_uid(one, key) for one in new}
        check_count("the server", "answers", len(seen), most)
        yield from new


def _value(answer: Any, key: str) -> Any:
    try:
        return answer[key]["Value"][0]
    except (KeyError, IndexError, TypeError):
        return ""


def _uid(answer: Any, key: str) -> str:
    uid = _value(answer, key)
    if not isinstance(uid, str) or not is_uid(uid):
        raise NetworkError(f"the server's answer has {str(uid)[:80]!r} for the UID ({key[:4]},{key[4:]})")
    return uid


def _get(session: Any, url: str, wanted: _Wanted, query: Mapping[str, str], folder: Path) -> Path:
    """One object by WADO-RS; it gets its name when it is what was asked for."""
    place = f"{url}/studies/{wanted.study}/series/{wanted.series}/instances/{wanted.instance}"
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    new = folder / "object.new"
    with tempfile.TemporaryFile(dir=folder) as body:
        body.write(b"\r\n")  # before the first boundary, as before the others
        response = session.get(place, headers={"Accept": accept}, into=body)
        response.raise_for_status()
        body.flush()
        with mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start, end = _only_part(response.headers.get("Content-Type", ""), content, place)
            with atomic_file(new) as stream:
                for at in range(start, end, _CHUNK):
                    stream.write(content[at : min(at + _CHUNK, end)])
    try:
        dataset = open_dicom(new)
        found = {key: str(dataset.get(key, "")).strip() for key in (*query, "StudyInstanceUID", "SeriesInstanceUID")}
        expected = {**query, "StudyInstanceUID": wanted.study, "SeriesInstanceUID": wanted.series}
        found["SOPInstanceUID"], expected["SOPInstanceUID"] = str(dataset.get("SOPInstanceUID", "")), wanted.instance
    except ValueError as error:
        raise NetworkError(f"{place}: what came is not read ({str(error).removeprefix(f'{new}: ')})") from error
    wrong = [key for key, value in expected.items() if found[key] != value]
    if wrong:
        key = wrong[0]
        raise NetworkError(f"{place}: what came has {key} {found[key][:64]!r}, asked for was {expected[key]!r}")
    path = folder / wanted.study / f"{wanted.instance}.dcm"
    if path.exists():
        raise NetworkError(f"{place}: an object of this UID came before, of another series")
    path.parent.mkdir(exist_ok=True)
    return new.replace(path)


def _only_part(content_type: str, body: mmap.mmap, place: str) -> tuple[int, int]:
    """Where the one object in an answer begins and ends."""
    head = email.message.Message()
    head["Content-Type"] = content_type
    kind = head.get_content_type()
    if kind == "application/dicom":
        return 2, len(body)
    boundary = head.get_boundary()
    if kind != "multipart/related" or not boundary:
        raise NetworkError(f"{place}: the answer is {content_type[:80]!r}, not DICOM")
    line = b"\r\n--" + boundary.encode("latin-1", "replace")
    found = [body.find(line)]
    while found[-1] >= 0 and len(found) < 4:
        found.append(body.find(line, found[-1] + len(line)))
    if len(found) != 3 or found[-1] >= 0:
        raise NetworkError(f"{place}: {max(0, len(found) - 2)} objects came, or more; one was asked for")
    start = body.find(b"\r\n\r\n", found[0] + len(line), found[1])
    return (found[1], found[1]) if start < 0 else (start + 4, found[1])

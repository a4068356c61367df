"""What the reader of radiographs says to every DICOM file of a collection, each alone, by modality and manufacturer.

    python scripts/read_collection.py FOLDER... [--seconds 120]

Prints a line for each file with what was asked or why it was refused, its seconds and its memory, then a table of
Markdown: files that were read, asked about, refused (one line that names the file), and failed (anything else: another
error, a crash, no end within the time). Files of equal content count once. For collections of radiographs that cannot
lie in this repository; `docs/reference/real-collections.md` is what was found with it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

from custom.core.files import sha256_file
from custom.dicom.header import text
from custom.dicom.opener import looks_like_dicom, one_line, open_dicom
from custom.radiographs import MissingMetadata, read_radiographs

OUTCOMES = ("read", "asked", "refused", "failed")


def outcome(path: Path) -> tuple[str, list[str]]:
    """What became of one file, and what was said: warnings, questions, or the error."""
    try:
        return "read", [sentence for one in read_radiographs([path]) for sentence in one.warnings]
    except MissingMetadata as error:
        return "asked", [str(question) for question in error.questions]
    except (ValueError, OSError, ModuleNotFoundError) as error:
        is_one_line = str(path) in str(error) or path.name in str(error)
        return "refused" if is_one_line and "\n" not in str(error) else "failed", [str(error)]
    except Exception as error:  # what no user should see
        return "failed", [one_line(error)]


def _send_outcome(path: Path, to: Connection) -> None:
    to.send((*outcome(path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def judge(path: Path, seconds: float) -> tuple[str, list[str], int]:
    """`outcome` in a process of its own, which may crash, and its peak memory in MB (with what the parent had)."""
    context = multiprocessing.get_context("fork")  # the modules are imported once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(path, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else ("failed", [f"no end in {seconds:g} s"], 0)
    except EOFError:
        return "failed", ["the process crashed"], 0
    finally:
        process.kill()
        process.join()


def kind(path: Path) -> tuple[str, str]:
    """Modality (0008,0060) and Manufacturer (0008,0070)."""
    try:
        dataset = open_dicom(path, pixels=False, tags=["Modality", "Manufacturer"])
        return text(dataset, "Modality") or "none", text(dataset, "Manufacturer") or "none"
    except ValueError:
        return "unreadable", "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="time for one file")
    options = parser.parse_args()
    files = {sha256_file(p): p for f in options.folders for p in sorted(f.rglob("*"), reverse=True) if p.is_file()}
    counts: dict[tuple[str, str], Counter[str]] = {}
    for path in sorted(path for path in files.values() if looks_like_dicom(path)):
        start = time.monotonic()
        found, said, megabytes = judge(path, options.seconds)
        print(f"{found}: {path} ({time.monotonic() - start:.1f} s, {megabytes} MB)", *said, sep="\n    ", flush=True)
        counts.setdefault(kind(path), Counter())[found] += 1
    print("\n| modality | manufacturer | " + " | ".join(OUTCOMES) + " |\n|" + "---|" * (2 + len(OUTCOMES)))
    for names, numbers in sorted(counts.items()):
        print("| " + " | ".join([*names, *(str(numbers[one]) for one in OUTCOMES)]) + " |")


if __name__ == "__main__":
    main()

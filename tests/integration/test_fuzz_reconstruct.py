"""Thousands of damaged DICOM radiographs: each gives a clean result or an error of one line.

No crash, no hang, no half-written output, nothing that is not finite. FEWVIEW_FUZZ_READ (10000) files are read and
brought onto a detector, FEWVIEW_FUZZ_COMMAND (200) go through the whole command; FEWVIEW_FUZZ_SEED (0) and
FEWVIEW_FUZZ_FIRST (0) choose which. Files that fail are kept in FEWVIEW_FUZZ_KEEP, by default pytest's own folder, with
the counts of every kind of error.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.integration import fuzz_jobs
from tests.integration.supervised import Supervisor

SEED, FIRST = int(os.environ.get("FEWVIEW_FUZZ_SEED", 0)), int(os.environ.get("FEWVIEW_FUZZ_FIRST", 0))
LONGEST_S = 180.0

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("maker", "count", "slowest_s"),
    [
        ("reading", int(os.environ.get("FEWVIEW_FUZZ_READ", 10_000)), fuzz_jobs.SLOWEST_READ_S),
        ("commands", int(os.environ.get("FEWVIEW_FUZZ_COMMAND", 200)), fuzz_jobs.SLOWEST_COMMAND_S),
    ],
)
def test_damaged_radiographs(
    maker: str, count: int, slowest_s: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = Path(os.environ.get("FEWVIEW_FUZZ_KEEP", tmp_path))
    start = time.perf_counter()
    supervisor = Supervisor(fuzz_jobs.__name__, maker, {"seed": SEED, "keep": str(keep)}, LONGEST_S)
    verdicts: collections.Counter[str] = collections.Counter()
    errors: collections.Counter[str] = collections.Counter()
    accepted: collections.Counter[str] = collections.Counter()
    failures: dict[int, str] = {}
    slowest, peak_mb = (0.0, -1), 0.0
    for outcome in supervisor.run(range(FIRST, FIRST + count)):
        if outcome.verdict != "failure" and outcome.cpu_s > slowest_s:
            outcome.verdict, outcome.text = "failure", f"{outcome.cpu_s:.0f} s of processor time"
        verdicts[outcome.verdict] += 1
        slowest = max(slowest, (outcome.cpu_s, outcome.number))
        peak_mb = max(peak_mb, outcome.notes.get("peak_mb", 0.0))
        if outcome.verdict == "failure":
            failures[outcome.number] = outcome.text
        elif outcome.verdict == "error":
            errors[outcome.text] += 1
        if outcome.notes.get("accepted"):
            accepted[outcome.notes["accepted"]] += 1
    summary = {
        "seed": SEED, "first": FIRST, "count": count, "verdicts": verdicts, "errors": dict(errors.most_common()),
        "with everything accepted": dict(accepted.most_common()), "failures": failures,
        "slowest_cpu_s": round(slowest[0], 2), "slowest": slowest[1], "peak_mb": round(peak_mb),
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    (keep / f"{maker}.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False))
    told = {
        key: value for key, value in summary.items() if key not in ("errors", "failures", "with everything accepted")
    }
    with capsys.disabled():
        sys.stdout.write(f"\n{maker}: {json.dumps(told)}\n")
    first = "\n".join(f"{number}: {text[-1500:]}" for number, text in list(failures.items())[:5])
    assert not failures, f"{len(failures)} of {count} failed (kept in {keep}):\n{first}"
    assert sum(verdicts.values()) == count
    # Damage that nothing survives, or that nothing notices, tests nothing.
    assert 0.1 * count < verdicts["clean"] < 0.9 * count

"""`CheckResult` and `Verdict`: what a trust check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CheckResult", "Verdict", "overall"]


class Verdict(StrEnum):
    """NOT CHECKED: of a check that does not apply.

    PASS: nothing found. REVIEW: unusual, a person should look before use. REJECT: do not use.
    """

    NOT_CHECKED = "NOT CHECKED"
    PASS = "PASS"
    REVIEW = "REVIEW"
    REJECT = "REJECT"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: of the check, a key of `custom.trust.checks.NAMES`.
        verdict: NOT CHECKED where the check does not apply; `statistic` is None then and the message says why.
        statistic: larger is worse; None where it was not measured.
        review_above: statistics above it are unusual; None where there is no threshold.
        reject_above: statistics above it are far off.
        message: what was found, in plain language.
    """

    name: str
    verdict: Verdict
    statistic: float | None
    review_above: float | None
    reject_above: float | None
    message: str


def overall(results: Iterable[CheckResult]) -> Verdict:
    """The worst verdict; REVIEW where nothing was checked."""
    made = [result.verdict for result in results if result.verdict is not Verdict.NOT_CHECKED]
    return max(made, key=list(Verdict).index, default=Verdict.REVIEW)

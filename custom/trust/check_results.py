"""`CheckResult` and `Verdict`: what a trust check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CheckResult", "Verdict", "overall"]


class Verdict(StrEnum):
    """PASS: nothing found. REVIEW: unusual, a person should look before use. REJECT: do not use."""

    PASS = "PASS"
    REVIEW = "REVIEW"
    REJECT = "REJECT"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: of the check, a key of `custom.trust.checks.NAMES`.
        verdict: PASS also where the check does not apply; `statistic` is None then and the message says why.
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
    """The worst verdict; PASS for no results."""
    order = list(Verdict)
    return max((result.verdict for result in results), key=order.index, default=Verdict.PASS)

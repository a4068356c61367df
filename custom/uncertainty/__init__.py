"""What a reconstruction leaves open, which radiograph would tell most about it, and whether cases have changed."""

from custom.uncertainty.drift import Case, Drift, alarm_limit, cases_until_alarm, find_drift
from custom.uncertainty.next_view import NextView, rank_next_views

__all__ = ["Case", "Drift", "NextView", "alarm_limit", "cases_until_alarm", "find_drift", "rank_next_views"]

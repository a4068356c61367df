"""What a reconstruction leaves open, and which radiograph would tell most about it."""

from custom.uncertainty.next_view import NextView, rank_next_views

__all__ = ["NextView", "rank_next_views"]

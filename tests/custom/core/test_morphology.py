"""Pieces of masks and balls, counted by hand."""

from __future__ import annotations

import numpy as np

from custom.core.morphology import ball, largest_piece, pieces


def test_the_largest_piece_and_none_of_nothing() -> None:
    mask = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0]], bool)
    labelled, sizes = pieces(mask)
    assert sorted(sizes) == [0, 1, 2, 3] and sizes[0] == 0 and ((labelled == 0) == ~mask).all()
    assert np.argwhere(largest_piece(mask)).tolist() == [[0, 2], [0, 3], [1, 3]]
    for empty in (np.zeros((2, 2), bool), np.zeros((0, 2), bool)):
        assert not largest_piece(empty).any() and largest_piece(empty).shape == empty.shape


def test_a_ball_counts_millimetres() -> None:
    found = ball(2.0, (1.0, 1.0, 2.0))
    assert found.shape == (5, 5, 3) and found.sum() == 13 + 2 and ball(0.5, (1.0, 1.0, 1.0)).sum() == 1

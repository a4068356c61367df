"""Pieces of torch work side by side."""

import threading
from collections.abc import Iterator

import pytest
import torch

from custom.core.torch_threads import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("at_most", "together", "each"), [(1, 1, 4), (2, 2, 2), (3, 3, 1), (9, 4, 1)])
def test_as_many_at_a_time_as_asked_for_share_the_threads(at_most: int, together: int, each: int) -> None:
    meet = threading.Barrier(together)  # nobody passes before all are there

    def piece(number: int) -> tuple[int, int, bool]:
        meet.wait(10)
        return number, torch.get_num_threads(), torch.is_grad_enabled()

    results = list(side_by_side(piece, range(2 * together), CPU, at_most))
    assert results == [(number, each, False) for number in range(2 * together)]
    new = list[int]()
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 4 and new == [4], "afterwards all is as before, in new threads too"
    assert torch.is_grad_enabled()


def test_a_piece_that_fails_ends_the_run_and_a_run_can_be_left() -> None:
    begun = list[int]()

    def piece(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise ValueError("no volume")
        return number

    run = side_by_side(piece, range(100), CPU, 2)
    assert next(run) == 0
    with pytest.raises(ValueError, match="no volume"):
        list(run)
    left = side_by_side(lambda number: number, range(100), CPU, 2)
    assert next(left) == 0
    left.close()
    assert torch.get_num_threads() == 4


def test_another_device_gets_one_piece_after_the_other() -> None:
    here = threading.get_ident()
    assert list(side_by_side(lambda _: threading.get_ident(), range(3), torch.device("meta"), 4)) == [here] * 3


def test_of_two_calls_at_once_one_is_worked_alone() -> None:
    here, first = threading.get_ident(), side_by_side(lambda _: threading.get_ident(), range(3), CPU, 2)
    assert next(first) != here
    assert list(side_by_side(lambda _: threading.get_ident(), range(3), CPU, 2)) == [here] * 3
    assert here not in list(first) and torch.get_num_threads() == 4
    assert here not in list(side_by_side(lambda _: threading.get_ident(), range(3), CPU, 2))

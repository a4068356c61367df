"""What was wrong in the first place, out of what was wrapped around it."""

from __future__ import annotations

import itertools

import pytest

from custom.core.user_errors import said_last, user_error


def wrapped(*errors: Exception) -> Exception:
    """The first of some errors, each of which has the next as its cause."""
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("errors", "last"),
    [
        ((RuntimeError("m"), RuntimeError("m"), FileNotFoundError("a.json:\nnot there")), "error: a.json: not there"),
        ((RuntimeError("m"), ValueError("b"), KeyError("c")), "error: b"),
        ((ValueError("b"), ValueError("c")), "ValueError: b"),
        ((RuntimeError("a fault"), KeyError("c")), "RuntimeError: a fault"),
    ],
)
def test_the_last_line_says_what_a_user_can_mend(
    errors: tuple[Exception, ...], last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = wrapped(*errors)
    said_last(type(error), error, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == last and any(str(errors[-1].args[0]).splitlines()[0] in line for line in lines[:-1])
    assert user_error(error) in errors

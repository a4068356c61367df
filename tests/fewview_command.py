"""`fewview-ct` in this process."""

from __future__ import annotations

import pytest

from custom.cli import command_line


def fewview_ct(*words: object) -> int:
    """The exit code of the command with these words."""
    with pytest.raises(SystemExit) as end:
        command_line.main([str(word) for word in words])
    return int(end.value.code or 0)

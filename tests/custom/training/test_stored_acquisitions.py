"""What is asked of a folder of acquisitions before anything is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from custom.training.stored_acquisitions import AcquisitionFolder

NOTHING: Any = None


@pytest.mark.parametrize(
    ("folder", "count", "said"),
    [
        (None, 1, "acquisitions_folder is null: name the folder"),
        ("there", 0, "acquisitions is 0; at least 1 is needed"),
    ],
)
def test_the_message_names_the_key_that_is_wrong(tmp_path: Path, folder: str | None, count: int, said: str) -> None:
    where = None if folder is None else tmp_path / folder
    acquisitions = AcquisitionFolder(where, [], [], NOTHING, NOTHING, NOTHING)
    with pytest.raises(ValueError, match=said):
        acquisitions.write(count, 0, dict)
    assert not list(tmp_path.iterdir())


def test_a_training_without_a_folder_is_told_to_name_one() -> None:
    with pytest.raises(ValueError, match="acquisitions_folder is null: name the folder that the acquisitions are in"):
        AcquisitionFolder(None, [], [], NOTHING, NOTHING, NOTHING).dataset()

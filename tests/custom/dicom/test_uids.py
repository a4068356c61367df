"""What may become a file name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custom.dicom.strict import is_uid


@given(st.text(max_size=80))
def test_only_digits_and_dots_are_a_uid(text: str) -> None:
    if is_uid(text):
        assert set(text) <= set("0123456789.") and text[0] != "." and text[-1] != "." and ".." not in text


@pytest.mark.parametrize("text", ["", "..", "/tmp", "../../outside", "1.2/3", "1.2\n", "1." * 33 + "1"])
def test_no_path_is_a_uid(text: str) -> None:
    assert is_uid("1.2.840.10008.1.1") and not is_uid(text)

"""The extra radiotherapy is part of the extra dev; without it these tests have nothing to test."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("pydosert") is None:
    pytest.skip("pydosert is not installed: pip install 'fewview-ct[radiotherapy]'", allow_module_level=True)

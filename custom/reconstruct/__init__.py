"""From radiographs to a CT: the one function behind command line, demonstration and clinical applications."""

from custom.reconstruct.pipeline import reconstruct
from custom.reconstruct.result import Reconstruction, hu_sha256

__all__ = ["Reconstruction", "hu_sha256", "reconstruct"]

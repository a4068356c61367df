"""The verb `fewview-ct doctor`: what this installation has, what it lacks, and how to get that."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from custom import __version__

__all__ = ["doctor", "extras", "version"]

DISTRIBUTION = "fewview-ct"
CORE = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "pydicom")


def version() -> None:
    """Prints the version of the package."""
    Console().print(Text(f"{DISTRIBUTION} {__version__}"))


def extras() -> dict[str, dict[str, str | None]]:
    """Optional packages by extra, each with its installed version or None.

    Returns:
        ``{"dicom": {"pylibjpeg": "2.0.1", ...}, ...}``, read from the installed metadata of the distribution; the
        development extra is left out.
    """
    found: dict[str, dict[str, str | None]] = {}
    for requirement in importlib.metadata.requires(DISTRIBUTION) or []:
        match = re.match(r"([A-Za-z0-9._-]+).*;.*extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if match and match[2] != "dev":
            found.setdefault(match[2], {})[match[1]] = _installed(match[1])
    return found


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, str]:
    import torch

    lines = {"threads": f"{torch.get_num_threads()} for torch, {os.cpu_count()} processors"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            lines[f"GPU {index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    elif torch.backends.mps.is_available():
        lines["GPU"] = "Apple MPS"
    else:
        built = torch.version.cuda
        lines["GPU"] = "none: everything runs on the processor" + ("" if built else "; this torch has no CUDA")
    if importlib.util.find_spec("tigre") is None:
        lines["TIGRE"] = "not installed (optional, needs an NVIDIA GPU): CERN/TIGRE 3.1.3 or newer, from source"
    else:
        # Importing it without a GPU would end this process, so only its presence is looked up.
        usable = "usable" if torch.cuda.is_available() else "installed, but not usable without an NVIDIA GPU"
        lines["TIGRE"] = usable
    return lines


def _checkpoint_lines(path: Path) -> dict[str, str]:
    from custom.core.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    count = sum(weights.numel() for weights in checkpoint.state.values())
    network = checkpoint.meta["network_def"]
    facts = {key: str(value) for key, value in checkpoint.meta.items() if not isinstance(value, Mapping | list)}
    return {
        "size": f"{path.stat().st_size / 2**20:.1f} MiB",
        "sha256": checkpoint.hash,
        "network": f"{network.get('_target_')}, {count:,} weights",
        **facts,
    }


def doctor(checkpoint: str | None = None) -> None:
    """Tells what is installed, which optional packages are missing and how to get them, and which devices there are.

    Args:
        checkpoint: a weights file to look into: its hash, size, number of parameters and what it says of itself.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a file that is none.
    """
    console = Console()
    table = Table.grid(padding=(0, 2))
    table.add_row("fewview-ct", Text(f"{__version__} in {Path(__file__).parents[1]}"))
    table.add_row("Python", Text(f"{platform.python_version()} on {platform.platform()}, {sys.executable}"))
    for package in CORE:
        table.add_row(package, Text(_installed(package) or f"MISSING: pip install {package}"))
    for name, line in _devices().items():
        table.add_row(name, Text(line))
    for extra, packages in extras().items():
        missing = [package for package, found in packages.items() if found is None]
        there = ", ".join(f"{package} {found}" for package, found in packages.items() if found)
        remedy = f"missing {', '.join(missing)}: pip install '{DISTRIBUTION}[{extra}]'" if missing else ""
        table.add_row(Text(f"[{extra}]"), Text("; ".join(part for part in (there, remedy) if part)))
    if checkpoint is not None:
        table.add_row("checkpoint", Text(str(checkpoint)))
        for name, line in _checkpoint_lines(Path(checkpoint)).items():
            table.add_row(Text(f"  {name}"), Text(line))
    console.print(table, soft_wrap=True)

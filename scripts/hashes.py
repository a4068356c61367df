"""Every package of this environment, its version and the SHA-256 of what pip downloads for it on this platform.

    .venv/bin/python scripts/hashes.py                      # writes build/requirements-hashed.txt
    pip install --require-hashes --no-deps -r build/requirements-hashed.txt
    pip install --no-deps .

pip then refuses a file of another content, wherever it comes from. The hashes are those of the package sources that
pip is set up with, on the day of the call: make the file once, look at it, and keep it. Another platform or Python has
other files, and needs its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def requirements(report: Mapping[str, Any]) -> list[str]:
    """Lines of a requirements file, sorted, from pip's installation report (version 1).

    Raises:
        ValueError: a package whose file has no SHA-256, such as one out of a repository.
    """
    lines = []
    for one in report["install"]:
        name, version = one["metadata"]["name"], one["metadata"]["version"]
        digest = one["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{name} {version}: pip gives no SHA-256 for {one['download_info']['url']}")
        lines.append(f"{name.lower()}=={version} --hash=sha256:{digest}")
    return sorted(lines)


def report_of(pins: list[str], index: str | None = None) -> dict[str, Any]:
    """pip's report of what it would install for these pins, and nothing else; nothing is installed."""
    options = ["--extra-index-url", index] if index else []
    command = [*PIP, "install", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", *options, *pins]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", type=Path, default=root / "build" / "requirements-hashed.txt")
    parser.add_argument(
        "--index", default=os.environ.get("FEWVIEW_TORCH_INDEX"), help="a further package index, that of the CPU torch"
    )
    arguments = parser.parse_args()
    frozen = subprocess.run([*PIP, "freeze", "--exclude-editable"], check=True, stdout=subprocess.PIPE, text=True)
    pins = [line for line in frozen.stdout.splitlines() if "==" in line]
    files = [line.split(" @ ")[0] for line in frozen.stdout.splitlines() if " @ " in line]
    if files:
        print(f"left out, installed from a path or an address: {', '.join(files)}", file=sys.stderr)
    lines = requirements(report_of(pins, arguments.index))
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    arguments.target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{arguments.target}: {len(lines)} packages")


if __name__ == "__main__":
    main()

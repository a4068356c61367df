"""`scripts/environment.sh` never brings CUDA packages onto a machine without a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "environment.sh"
#: A Python whose pip says what it was asked for; `config list` and the report of a dry run are of the test.
FAKE = """#!/bin/bash
case "$*" in
*"import torch"*) exit 1 ;;
*"pip config list") echo "$SETTINGS" ;;
*--dry-run*) echo "$REPORT" ;;
*) echo "pip: ${@:3}"; exit "$CODE" ;;
esac
"""


@pytest.mark.parametrize(
    ("settings", "report", "code", "index", "expected", "error"),
    [
        ("", "", 0, "", "whl/cpu torch==", None),
        ("", "", 1, "", "whl/cpu torch==", "the CPU build of torch could not be fetched"),
        ("global.index-url='x'", '"name": "torch"', 0, "", "install --quiet torch==", None),
        ("global.index-url='x'", '"name": "nvidia-cudnn"', 0, "", None, "comes with CUDA packages"),
        ("global.index-url='x'", '"name": "nvidia-cudnn"', 0, "https://mine", "--index-url https://mine torch==", None),
    ],
)
def test_torch_without_a_gpu(
    settings: str, report: str, code: int, index: str, expected: str | None, error: str | None, tmp_path: Path
) -> None:
    for name, text in (("bin/python", FAKE), ("path/uname", "#!/bin/bash\necho Linux\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for tool in ("grep", "dirname", "bash"):
        (tmp_path / "path" / tool).symlink_to(
            Path("/bin") / tool if (Path("/bin") / tool).exists() else Path("/usr/bin") / tool
        )
    variables = {"SETTINGS": settings, "REPORT": report, "CODE": str(code), "FEWVIEW_TORCH_INDEX": index}
    done = subprocess.run(
        ["bash", "-ec", f". {SCRIPT}; install_torch"],
        env={"PATH": str(tmp_path / "path"), "FEWVIEW_VENV": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (1 if error else 0), done.stderr
    assert expected in done.stdout if expected else not done.stdout
    assert (error or "") in done.stderr

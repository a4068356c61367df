#!/usr/bin/env bash
# Checks that need what a plain test run must not: minutes of time, a GPU, optional packages, large files.
# Marked `integration` in the tests; each skip prints its reason. Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

make_venv
install_package '.[dev]'
export MPLBACKEND=Agg
exec "$VENV/bin/python" -m pytest -m integration -ra "$@"

#!/usr/bin/env bash
# Makes the environment if there is none, then checks style and types and runs the tests.
# Arguments go to pytest: bash scripts/test.sh tests/custom/test_metrics.py -k psnr
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

make_venv
install_package '.[dev]'
bin="$VENV/bin"

echo "== ruff"
"$bin/ruff" check .
"$bin/ruff" format --check .
echo "== mypy"
"$bin/mypy"
echo "== pytest"
# One thread each: small volumes do not gain from more, and results stay the same on any machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=Agg
exec "$bin/python" -m pytest "$@"

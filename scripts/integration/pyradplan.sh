#!/usr/bin/env bash
# PyDoseRT against pyRadPlan, an independent dose engine, on the sample patient's CT. pyRadPlan brings 170 packages and
# needs an older pydantic, so it gets an environment of its own, .venv-pyradplan. Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
cd "$ROOT"

make_venv
install_package '.[dev,radiotherapy]'
own="$ROOT/.venv-pyradplan"
if ! "$own/bin/python" -c 'import pyRadPlan' 2>/dev/null; then
    "$VENV/bin/python" -m venv "$own"
    "$own/bin/pip" install --quiet 'pyradplan==0.5.0' 'pydantic<2.13'
fi
export MPLBACKEND=Agg OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" FEWVIEW_PYRADPLAN="$own/bin/python"
exec "$VENV/bin/python" -m pytest -m integration -ra tests/integration/test_pyradplan.py "$@"

#!/usr/bin/env bash
# The MONAI Deploy application in an environment of its own: DICOM radiographs in, and the same volume out that the
# command line gives, as a folder that Python runs and as an application package would start it.
#
#   FEWVIEW_DEPLOY_VENV  where the environment lives (default: .venv-deploy in the repository; 1.8 GB)
#
# Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
cd "$ROOT"
VENV="${FEWVIEW_DEPLOY_VENV:-$ROOT/.venv-deploy}"

[ "$(uname -s)" = Linux ] || fail "MONAI Deploy's App SDK 4.0.0 is for Linux"
make_venv
[ -e "$VENV/.gitignore" ] || echo '*' >"$VENV/.gitignore"
install_package '.[dicom]'
requirements=scripts/deploy_app/requirements.txt
stamp="$VENV/.fewview-deploy-installed"
wanted="$(cat "$requirements" constraints.txt "${BASH_SOURCE[0]}" | cksum)"
if ! { [ -f "$stamp" ] && grep -Fxq "$wanted" "$stamp"; }; then
    echo "Installing MONAI Deploy (once; this takes a few minutes)"
    "$VENV/bin/python" -m pip install --quiet -c constraints.txt -r "$requirements" pytest hypothesis
    "$VENV/bin/python" -m pip check
    echo "$wanted" >>"$stamp"
fi

export MPLBACKEND=Agg OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
FEWVIEW_DEPLOY=1 exec "$VENV/bin/python" -m pytest -m integration -ra tests/integration/test_deploy_app.py "$@"

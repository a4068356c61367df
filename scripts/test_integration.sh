#!/usr/bin/env bash
# Checks that need what a plain test run must not: minutes of time, a GPU, servers, a browser, large files.
# Marked `integration` in the tests; each skip prints its reason. Arguments go to pytest. As root on Debian it installs
# what the checks of DICOM, PACS and report need; elsewhere those that lack their program are skipped.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

PROGRAMS="dicom3tools dcmtk chromium poppler-utils"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $PROGRAMS >/dev/null 2>&1; then
    apt-get install -y --no-install-recommends $PROGRAMS
fi

make_venv
install_package '.[dev]'
export MPLBACKEND=Agg
"$VENV/bin/python" -m pytest -m integration -ra "$@"
bash scripts/integration/orthanc.sh

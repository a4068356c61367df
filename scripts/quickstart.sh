#!/usr/bin/env bash
# Sets everything up and reconstructs the embedded sample case: radiographs, NIfTI, picture and metrics in
# outputs/quickstart. No argument is needed; options given go to `fewview-ct demo`.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

make_venv
install_package '.[dicom]'
exec "$VENV/bin/fewview-ct" demo "$@"

#!/usr/bin/env bash
# The MONAI Label application in an environment of its own (.venv-label, or FEWVIEW_LABEL_VENV), asked over REST as a
# viewer asks it: radiographs by id, by folder and as a stack, and from a real PACS by DICOMweb where Orthanc is
# installed. The volume must be the command line's, bit by bit.
#
# A second run finds the environment made. Arguments go to pytest.
set -euo pipefail
FEWVIEW_VENV="${FEWVIEW_LABEL_VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.venv-label}"
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
cd "$ROOT"
REQUIREMENTS=scripts/monailabel_app/requirements.txt

# The versions of constraints.txt, but for what MONAI Label needs otherwise.
constraints() {
    local names
    names="$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' "$REQUIREMENTS" | paste -sd '|')"
    grep -Eiv "^($names)==" constraints.txt
    grep -v '^#' "$REQUIREMENTS"
}

install_label() {
    local stamp="$VENV/.fewview-installed" wanted file
    wanted="label $(cat pyproject.toml constraints.txt "$REQUIREMENTS" | cksum) $ROOT"
    if [ -f "$stamp" ] && grep -Fxq "$wanted" "$stamp"; then
        return
    fi
    echo "Installing MONAI Label (once; this takes several minutes)"
    echo '*' >"$VENV/.gitignore"
    install_torch
    file="$VENV/constraints.txt"
    constraints >"$file"
    # Build constraints came with pip 25.3.
    "$VENV/bin/python" -m pip install --quiet --upgrade 'pip>=25.3'
    "$VENV/bin/python" -m pip install --quiet -c "$file" --build-constraint "$file" \
        -r "$REQUIREMENTS" -e . 'pytest>=8' 'hypothesis>=6.100'
    # It is there for the resolver only: it does not fit the CPU build of torch, and importing it fails.
    "$VENV/bin/python" -m pip uninstall --quiet --yes torchvision
    # The wheel of MONAI Label brings its own tests as the package `tests`, which hides ours.
    "$VENV/bin/python" -c 'import shutil, sysconfig; shutil.rmtree(sysconfig.get_path("purelib") + "/tests", True)'
    echo "$wanted" >>"$stamp"
}

make_venv
install_label
export MPLBACKEND=Agg OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# The launcher of MONAI Label takes the first `python` that it finds.
export PATH="$VENV/bin:$PATH"

echo "== reading and writing with pydicom 2 and numpy 1"
# Two tests compress to JPEG 2000, which pydicom 2 cannot.
python -m pytest -ra -p tests.integration.pydicom2 -k 'not JPEG2000 and not code_stream_of_another_size' \
    tests/custom/radiographs tests/custom/reconstruct tests/custom/dicom/test_write_ct.py \
    tests/custom/dicom/test_write_ct_subject.py tests/custom/dicom/test_write_dx.py

echo "== MONAI Label"
run=(python -m pytest -m integration -ra tests/integration/test_monailabel_app.py "$@")
if command -v Orthanc >/dev/null && unshare -rn ip link set lo up 2>/dev/null; then
    # A network of its own, as in orthanc.sh: Orthanc listens on every address.
    FEWVIEW_LABEL=namespace exec unshare -rn bash -c 'ip link set lo up && exec "$@"' monailabel "${run[@]}"
fi
FEWVIEW_LABEL=loopback exec "${run[@]}"

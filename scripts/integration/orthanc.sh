#!/usr/bin/env bash
# Radiographs into a real PACS and back, CT series and uncertainty map stored, queried and compared pixel by pixel: by
# C-STORE, C-FIND and C-GET, and by STOW-RS, QIDO-RS and WADO-RS. Then the whole way by the command line: radiographs of
# a CT into the PACS, out of it, reconstructed, the report in a browser, the CT back. The server is Orthanc, as Debian
# packages it.
#
#   FEWVIEW_ROUND_TRIP_CT    the CT to make radiographs of (NIfTI, HU; default: the sample)
#   FEWVIEW_ROUND_TRIP_KEEP  a new folder for what the round trip makes
#
# Orthanc listens on every address, so it runs in a network namespace of its own where only loopback exists. Where
# namespaces are not allowed it runs on this machine's network, on free ports, with a password, and says so.
#
# Missing packages are installed on Debian by root; else the script names them. Arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
cd "$ROOT"

need=()
command -v Orthanc >/dev/null || need+=(orthanc)
[ -e "${ORTHANC_DICOMWEB:-/usr/share/orthanc/plugins/libOrthancDicomWeb.so}" ] || need+=(orthanc-dicomweb)
command -v dciodvfy >/dev/null || need+=(dicom3tools)
command -v ip >/dev/null || need+=(iproute2)
if [ ${#need[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        fail "missing: ${need[*]}; on Debian and Ubuntu: apt-get install ${need[*]}"
    echo "Installing ${need[*]}"
    # The package would start a server that is open to the network.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"
    if command -v systemctl >/dev/null; then systemctl disable orthanc >/dev/null 2>&1 || true; fi
    [ -z "$(trap -p EXIT)" ] || rm -f "$policy"
    trap - EXIT
fi

make_venv
install_package '.[dev,dicom,pacs,radiotherapy]'
export MPLBACKEND=Agg OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

echo "== dciodvfy"
"$VENV/bin/python" -m pytest -ra -k dciodvfy tests/custom/dicom/test_write_ct.py tests/custom/dicom/test_write_map.py \
    tests/custom/radiotherapy/test_rt_objects.py

echo "== Orthanc"
run=("$VENV/bin/python" -m pytest -m integration -ra tests/integration/test_orthanc.py
    tests/integration/test_round_trip.py tests/integration/test_app_pacs.py "$@")
if unshare -rn ip link set lo up 2>/dev/null; then
    FEWVIEW_ORTHANC=namespace exec unshare -rn bash -c 'ip link set lo up && exec "$@"' orthanc "${run[@]}"
fi
echo "No network namespace may be made here: Orthanc listens on this machine's network while the test runs"
FEWVIEW_ORTHANC=loopback exec "${run[@]}"

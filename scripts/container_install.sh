#!/usr/bin/env bash
# What the Containerfile runs, as root in Debian 12: the package with its weights into /opt/fewview-ct, a bill of materials
# beside it, a user without rights, and the folder /data that is this user's own.
#
#   FEWVIEW_TORCH_INDEX  package index that torch comes from (default: the CPU builds; see scripts/environment.sh)
#   FEWVIEW_EXTRAS       extras of the package (default: app,dicom,pacs)
set -euo pipefail
export FEWVIEW_VENV=/opt/fewview-ct
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ "$(id -u)" = 0 ] || fail "this sets a container up, as root in it; on a machine of your own run scripts/quickstart.sh"

apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv ca-certificates
rm -rf /var/lib/apt/lists/*

make_venv
install_torch
pip=("$VENV/bin/python" -m pip)
"${pip[@]}" install --quiet --no-cache-dir -c "$ROOT/constraints.txt" "${ROOT}[${FEWVIEW_EXTRAS:-app,dicom,pacs}]"
"${pip[@]}" check

tools="$(mktemp -d)"
python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --no-cache-dir -c "$ROOT/constraints.txt" cyclonedx-bom
CYCLONEDX_PY="$tools/bin/cyclonedx-py" bash "$ROOT/scripts/sbom.sh" "$VENV/sbom.json"
rm -rf "$tools"

useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin fewview
install -d -o fewview -g fewview -m 700 /data

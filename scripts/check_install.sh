#!/usr/bin/env bash
# Builds sdist and wheel, installs the wheel into an environment outside of the repository, and uses it from an empty
# folder: demo, a reconstruction, a bundle run by MONAI.
#
#   bash scripts/check_install.sh [--empty]
#
# By default the environment sees the installed dependencies of .venv (or FEWVIEW_VENV), which saves minutes; with
# --empty it gets everything by pip at the versions of constraints.txt.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"
[ -x "$VENV/bin/python" ] || fail "$VENV is not there; run scripts/test.sh first"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
began=$SECONDS
step() { echo "== $* ($((SECONDS - began)) s)"; }

step "sdist, and the wheel from it"
"$VENV/bin/python" -m build --outdir "$work/dist" "$ROOT" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
(cd "$work/dist" && du -m ./* && sha256sum ./*)

step "install"
"$VENV/bin/python" -m venv "$work/venv"
python="$work/venv/bin/python"
if [ "${1:-}" = --empty ]; then
    VENV="$work/venv" install_torch
    "$python" -m pip install --quiet -c constraints.txt "$work"/dist/*.whl
else
    # The folder alone, not its .pth files: an editable installation in it stays out of sight.
    "$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
    "$python" -m pip install --quiet --no-deps "$work"/dist/*.whl
fi
mkdir "$work/elsewhere"
cd "$work/elsewhere"
unset PYTHONPATH
bin="$work/venv/bin"
"$python" -c 'import custom, sys; sys.exit(not custom.__file__.startswith(sys.prefix))' || fail "not the installed package"

step "demo"
"$bin/fewview-ct" demo --output demo
step "reconstruct"
"$bin/fewview-ct" reconstruct demo/radiographs.nii.gz --geometry demo/radiographs.json --output result
test -s result/ct.nii.gz -a -s result/report.html || fail "the reconstruction is not whole"
step "python -m monai.bundle run"
for bundle in inr_recon ldm_recon; do
    "$python" -m monai.bundle run --config_file "$("$bin/fewview-ct" bundles $bundle)/configs/inference.json" \
        --image demo/radiographs.nii.gz --geometry demo/radiographs.json >"$bundle.log" 2>&1 ||
        { tail -n 30 "$bundle.log"; fail "the bundle $bundle"; }
    find "bundles/$bundle/eval" -name '*.nii.gz' | grep . || fail "the bundle $bundle left no volume"
done
[ -z "$(find "$("$bin/fewview-ct" bundles inr_recon)/.." -name eval)" ] || fail "a run wrote into the installed package"
step "done"

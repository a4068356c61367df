#!/usr/bin/env bash
# All that a plain test run must not need: minutes of time, a browser, servers, other environments.
#
#   bash scripts/test_integration.sh [--again] [STEP...]
#
#   core    the marked tests of package and bundles: trainings on the command line, two processes, peak memory, MLflow
#   report  the report in headless Chromium, and printed
#   app     the local web page in headless Chromium, from radiographs to the report
#   pacs    radiographs into Orthanc, reconstructed, and back, by C-STORE and by STOW-RS
#   fuzz    10,000 mutated DICOM files through reading, 200 through the whole command
#   interrupted  commands that are killed or meet a full disk, and started again; the disk for root
#   install sdist and wheel, the wheel used outside of the repository, and every bundle by MONAI's own checks
#   container  the Containerfile's steps in a bare Debian: built, then run without network and rights; for root
#   deploy  the MONAI Deploy application against the command line, in .venv-deploy
#   dose    PyDoseRT against pyRadPlan on a real CT, in .venv-pyradplan
#   cluster two Dask workers against one, with 200 cases, and one that is killed
#   federated two sites in NVFLARE's simulator
#   label   the MONAI Label application over REST against the command line, in .venv-label
#
# As root on Debian it installs the programs that a step needs; elsewhere it names them. What passed is not run again
# until a file of the project changes (or with --again), so that a run that was stopped goes on. Logs and a summary:
# outputs/integration/. Options for pytest go into PYTEST_ADDOPTS.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

STEPS=(core install report app pacs fuzz interrupted container deploy dose cluster federated label)
OUT="${FEWVIEW_INTEGRATION:-$ROOT/outputs/integration}"

programs() {
    local missing=()
    for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
    else
        echo "Not installed: ${missing[*]}; tests that need them are skipped and say so"
    fi
}

marked() {
    make_venv
    install_package '.[dev]'
    MPLBACKEND=Agg "$VENV/bin/python" -m pytest -m integration -ra "$@"
}

step_core() {
    make_venv
    install_package '.[dev,mlflow]'
    marked tests --ignore=tests/integration
}
step_install() {
    make_venv
    install_package '.[dev]'
    bash scripts/check_install.sh
    "$VENV/bin/python" scripts/bundle_checks.py
}
step_report() {
    programs chromium poppler-utils
    marked tests/integration/test_report_browser.py
}
step_app() {
    programs chromium
    marked tests/integration/test_app_browser.py
}
step_pacs() { bash scripts/integration/orthanc.sh; }
step_fuzz() { marked tests/integration/test_fuzz_reconstruct.py; }
step_interrupted() { marked tests/integration/test_interrupted_runs.py; }
step_container() {
    if [ "$(id -u)" != 0 ]; then
        echo "skipped: mounts and chroot need root"
        return
    fi
    programs mmdebstrap iproute2 util-linux
    bash scripts/integration/container.sh
}
step_deploy() { bash scripts/integration/deploy.sh; }
step_dose() { bash scripts/integration/pyradplan.sh; }
step_cluster() {
    make_venv
    install_package '.[dev]'
    OMP_NUM_THREADS=1 "$VENV/bin/python" scripts/benchmark_cluster.py --cases 200
}
step_federated() {
    make_venv
    install_package '.[dev,federated]'
    MPLBACKEND=Agg "$VENV/bin/python" -m pytest -m integration -ra tests/integration/test_federated.py
}
step_label() { bash scripts/integration/monailabel.sh; }

again=""
chosen=()
for argument in "$@"; do
    case "$argument" in
    --again) again=yes ;;
    *)
        [[ " ${STEPS[*]} " == *" $argument "* ]] || fail "no step '$argument'; there are: ${STEPS[*]}"
        chosen+=("$argument")
        ;;
    esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${STEPS[@]}")

# Of everything that a step runs: the same files need not be tested twice.
state() {
    find bundles custom scripts tests Containerfile .dockerignore pyproject.toml constraints.txt -type f -not -path '*/__pycache__/*' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c 1-64
}

mkdir -p "$OUT"
now="$(state)"
failed=()
rows=()
for step in "${chosen[@]}"; do
    if [ -z "$again" ] && [ "$(head -n 1 "$OUT/$step.passed" 2>/dev/null)" = "$now" ]; then
        echo "== $step: passed before with these files"
        rows+=("$(sed -n 2p "$OUT/$step.passed")")
        continue
    fi
    echo "== $step"
    rm -f "$OUT/$step.passed"
    began=$SECONDS
    set +e # in a condition bash would ignore the errors within a step
    (set -e && "step_$step") 2>&1 | tee "$OUT/$step.log"
    [ "${PIPESTATUS[0]}" = 0 ] && result=passed || result=FAILED
    set -e
    seconds=$((SECONDS - began))
    # Of pytest, for each of its runs: "23 passed, 2 skipped in 30.12s".
    told="$(grep -oE '[0-9]+ (passed|failed|skipped|error)[^=]* in [0-9.]+s' "$OUT/$step.log" |
        sed -E 's/ in [0-9.]+s$//; s/, [0-9]+ (deselected|warnings?)//g' |
        paste -sd '+' | sed 's/+/ + /g')" || true
    row="| $step | $result | ${told:-see its log} | $seconds |"
    rows+=("$row")
    if [ $result = passed ]; then printf '%s\n%s\n' "$now" "$row" >"$OUT/$step.passed"; else failed+=("$step"); fi
done

{
    printf '%s, Python %s, %s processors, files %s\n\n' "$(date -u +%Y-%m-%d)" \
        "$("$VENV/bin/python" -c 'import platform; print(platform.python_version())')" "$(nproc --all)" "${now:0:12}"
    printf '| step | result | tests | seconds |\n|---|---|---|---|\n'
    printf '%s\n' "${rows[@]}"
    printf '\nSkipped:\n'
    for step in "${chosen[@]}"; do
        grep -hE '^SKIPPED' "$OUT/$step.log" 2>/dev/null | sed "s/^SKIPPED/- $step:/" || true
    done
} >"$OUT/summary.md.part"
mv "$OUT/summary.md.part" "$OUT/summary.md"
echo
cat "$OUT/summary.md"
[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}; logs in $OUT"

#!/usr/bin/env bash
# Makes the environment if there is none, then checks style and types and runs the tests.
# Arguments go to pytest: bash scripts/test.sh tests/custom/metrics/test_image_metrics.py -k psnr
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

make_venv
install_package '.[dev]'
bin="$VENV/bin"

failed=()
check() {
    local name="$1"
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

check "ruff check" "$bin/ruff" check .
check "ruff format" "$bin/ruff" format --check .
check "mypy" "$bin/mypy"
for app in deploy_app monailabel_app; do
    check "mypy $app" env MYPYPATH="scripts/$app" "$bin/mypy" --explicit-package-bases "scripts/$app"
done
check "import-linter" "$bin/lint-imports"
check "documentation" env NO_MKDOCS_2_WARNING=1 "$bin/mkdocs" build --strict --quiet
# One thread each: small volumes do not gain from more, and results stay the same on any machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND=Agg
# Without arguments everything runs, spread over the processors; a chosen test runs alone, so that it can be debugged.
everything=""
[ $# -gt 0 ] || { everything=yes && set -- -n auto --dist loadfile; }
check "pytest" "$bin/python" -m pytest "$@"
[ -z "$everything" ] || echo "Not run here, for they need minutes, a browser, servers or other environments:" \
    "$(grep -rl '@pytest.mark.integration\|pytestmark.*integration' tests | wc -l) files with tests of scripts/test_integration.sh"

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[*]}" >&2
    exit 1
fi

# Sourced by the other scripts: finds a Python, makes the virtual environment and installs the package into it.
#
#   PYTHON               the interpreter to use (default: the first of 3.11 to 3.13 that works)
#   FEWVIEW_VENV         where the environment lives (default: .venv in the repository)
#   FEWVIEW_TORCH_INDEX  package index to take torch from, for example one of the CUDA indexes of pytorch.org

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${FEWVIEW_VENV:-$ROOT/.venv}"
TORCH_CPU_INDEX="https://download.pytorch.org/whl/cpu"

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

python_fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        python_fits "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11, 3.12 or 3.13"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if python_fits "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found; install one, or name it: PYTHON=/path/to/python3.12 bash $0"
}

make_venv() {
    local python
    if [ -x "$VENV/bin/python" ]; then
        python_fits "$VENV/bin/python" || fail "$VENV holds an unusable Python; remove the folder and start again"
    else
        python="$(find_python)" || exit 1
        echo "Making the environment $VENV with $("$python" --version)"
        "$python" -m venv "$VENV" ||
            fail "could not make $VENV; on Debian and Ubuntu: apt-get install python3-venv, then remove the folder"
    fi
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || fail "$VENV has no pip; remove the folder and start again"
}

# The default torch of Linux carries gigabytes of CUDA libraries, which a machine without a GPU never gets: the CPU build
# is taken, or, where pip is set up with a package source of its own, what that has, if it comes without CUDA.
install_torch() {
    local index="${FEWVIEW_TORCH_INDEX:-}" pin settings pip=("$VENV/bin/python" -m pip)
    local remedy="name an index that has the CPU build: FEWVIEW_TORCH_INDEX=$TORCH_CPU_INDEX bash $0"
    pin="$(grep '^torch==' "$ROOT/constraints.txt")"
    if "$VENV/bin/python" -c "import torch, sys; sys.exit('$pin' != 'torch==' + torch.__version__.split('+')[0])" \
        >/dev/null 2>&1; then
        return
    fi
    if [ -n "$index" ]; then
        "${pip[@]}" install --quiet --index-url "$index" "$pin"
        return
    fi
    if [ "$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1; then
        return
    fi
    settings="$("${pip[@]}" config list)"
    if ! grep -Eq '(index-url|find-links|no-index)' <<<"$settings"; then
        "${pip[@]}" install --quiet --retries 1 --timeout 15 --index-url "$TORCH_CPU_INDEX" "$pin" ||
            fail "the CPU build of torch could not be fetched from $TORCH_CPU_INDEX; $remedy"
        return
    fi
    if "${pip[@]}" install --dry-run --report - --quiet "$pin" | grep -Eq '"name": "(nvidia|cuda)-'; then
        fail "there is no GPU, and the torch of pip's package source comes with CUDA packages; $remedy"
    fi
    "${pip[@]}" install --quiet "$pin"
}

# install_package SPEC: SPEC is '.' with extras. A stamp makes the next start quick; it changes with the package's files.
install_package() {
    local spec="$1" stamp wanted
    stamp="$VENV/.fewview-installed"
    wanted="$spec $(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum) $ROOT"
    if [ -f "$stamp" ] && grep -Fxq "$wanted" "$stamp"; then
        return
    fi
    echo "Installing ${spec/./fewview-ct} (once; this takes a few minutes)"
    install_torch
    (cd "$ROOT" && "$VENV/bin/python" -m pip install --quiet -c constraints.txt -e "$spec")
    echo "$wanted" >>"$stamp"
}

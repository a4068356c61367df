#!/usr/bin/env bash
# A bill of materials (CycloneDX) of every package in the environment: build/sbom.json, or the file that is named.
#
#   FEWVIEW_VENV    the environment (default: .venv in the repository)
#   CYCLONEDX_PY    the program of the package cyclonedx-bom (default: that of the environment)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${FEWVIEW_VENV:-$root/.venv}"
target="${1:-$root/build/sbom.json}"
mkdir -p "$(dirname "$target")"
"${CYCLONEDX_PY:-$venv/bin/cyclonedx-py}" environment --pyproject "$root/pyproject.toml" --output-reproducible \
    --of JSON -o "$target" "$venv/bin/python"
echo "$target"

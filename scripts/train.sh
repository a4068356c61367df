#!/usr/bin/env bash
# Trains a bundle on one device, on all of a machine, or on several machines. The same call goes on where it was stopped.
#
#   bash scripts/train.sh BUNDLE [OVERLAY...] [--key value ...]
#
# OVERLAY   configs of the bundle over train.json, by name: coarse_stage, presets/grid_64.
# RUN       (environment) what of the configs is run; "training" by default.
# GPUS      (environment) processes on this node; 1 on one node trains without torchrun.
# NODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (environment) several nodes; scripts/train.slurm sets them. The folders must
#           be the same on all.
set -euo pipefail

bundle=${1:?"usage: bash scripts/train.sh BUNDLE [OVERLAY...] [--key value ...]"}
shift
overlays=()
while (($#)) && [[ $1 != --* ]]; do
    overlays+=("$1")
    shift
done
processes=${GPUS:-1} nodes=${NODES:-1} launcher=(python)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ((processes * nodes > 1)); then
    overlays+=(multi_gpu_train)
    launcher=(torchrun --nnodes="$nodes" --nproc_per_node="$processes" --node_rank="${NODE_RANK:-0}"
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}")
fi
files=""
for name in train "${overlays[@]}"; do
    file="bundles/$bundle/configs/$name.json"
    [[ -f $file ]] || { echo "$file: no such file" >&2; exit 2; }
    files+="${files:+,}'$file'"
done
exec "${launcher[@]}" -m monai.bundle run "${RUN:-training}" --config_file "[$files]" "$@"

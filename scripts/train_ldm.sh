#!/usr/bin/env bash
# vqgan, its latents, ldm_recon: the whole order of training. Every stage goes on where it was stopped.
#
#   bash scripts/train_ldm.sh DATALIST OUTPUT [PRESET]
#
# DATALIST  of `fewview-ct prepare` and `simulate`. OUTPUT  folder of weights and latents.
# PRESET    of both bundles, such as grid_64; none: 128^3.
# GPUS      (environment) processes on this node; 1 trains without torchrun.
# NODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (environment) several nodes; scripts/train.slurm sets them.
# OPTIONS_VQGAN, OPTIONS_LATENTS, OPTIONS_LDM (environment) more options of each stage, such as "--epochs 10".
set -euo pipefail

datalist=$(realpath -m "${1:?"usage: bash scripts/train_ldm.sh DATALIST OUTPUT [PRESET]"}")
output=$(realpath -m "${2:?"usage: bash scripts/train_ldm.sh DATALIST OUTPUT [PRESET]"}")
preset=${3:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -f $datalist ]] || { echo "$datalist: no such datalist; 'fewview-ct prepare' writes one" >&2; exit 2; }
for bundle in vqgan ldm_recon; do
    file="bundles/$bundle/configs/presets/$preset.json"
    [[ -z $preset || -f $file ]] || { echo "$file: no such preset; both bundles need it" >&2; exit 2; }
done
# Before the first stage, in which all nodes meet: a mark from an earlier run must not start the third one too early.
((${NODE_RANK:-0} > 0)) || rm -f "$output/latents/complete"

# stage COMMAND...: a signal goes to it, so that it keeps what it has; the script then ends as it did.
stage() {
    local code=0
    "$@" &
    local running=$!
    trap 'kill -TERM $running 2>/dev/null' TERM INT
    wait $running || code=$?
    while kill -0 $running 2>/dev/null; do
        code=0
        wait $running || code=$?
    done
    trap - TERM INT
    return $code
}

# train BUNDLE OPTION...: on one device, or on all.
train() {
    local bundle=$1
    shift
    stage bash scripts/train.sh "$bundle" ${preset:+"presets/$preset"} "$@"
}

autoencoder="$output/vqgan/models/model.pt"
# Quotes in the options hold, as in "--view_weights \"{'2': 1}\"".
eval "more_vqgan=(${OPTIONS_VQGAN:-}) more_latents=(${OPTIONS_LATENTS:-}) more_ldm=(${OPTIONS_LDM:-})"

train vqgan --data_list_file "$datalist" --ckpt_dir "$output/vqgan/models" --output_dir "$output/vqgan/eval" \
    "${more_vqgan[@]}"

# Latents are computed once, by the first node; the others wait for them.
if ((${NODE_RANK:-0} == 0)); then
    stage env RUN=encoding GPUS=1 NODES=1 bash scripts/train.sh ldm_recon ${preset:+"presets/$preset"} latents \
        --data_list_file "$datalist" --autoencoder_checkpoint "$autoencoder" --latents_dir "$output/latents" \
        "${more_latents[@]}"
    touch "$output/latents/complete"
else
    until [[ -f $output/latents/complete ]]; do sleep 10; done
fi

train ldm_recon --data_list_file "$datalist" --autoencoder_checkpoint "$autoencoder" --latents_dir "$output/latents" \
    --ckpt_dir "$output/ldm/models" --output_dir "$output/ldm/eval" "${more_ldm[@]}"

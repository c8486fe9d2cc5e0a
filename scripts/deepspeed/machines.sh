#!/usr/bin/env bash
# Sourced by the scripts in this folder: errors in one line, and the options that spread torchrun over GPUs and machines.

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# Reads NPROC_PER_NODE, OMP_NUM_THREADS, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT. Sets nnodes, num_gpus, and
# torchrun_options; exports OMP_NUM_THREADS, the number of cores per process.
spread_processes() {
    local variable nproc num_cores
    nnodes=${NNODES:-1}
    if [ "$nnodes" -gt 1 ]; then
        for variable in NODE_RANK MASTER_ADDR MASTER_PORT; do
            [ -n "${!variable:-}" ] || fail "NNODES=$nnodes needs $variable"
        done
    fi
    num_gpus=0
    if command -v nvidia-smi > /dev/null && [ "${CUDA_VISIBLE_DEVICES-all}" != "" ]; then
        num_gpus=$(python -c "import torch; print(torch.cuda.device_count())")
    fi
    nproc=${NPROC_PER_NODE:-$((num_gpus > 0 ? num_gpus : 1))}
    num_cores=$(getconf _NPROCESSORS_ONLN)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((num_cores > nproc ? num_cores / nproc : 1))}
    export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
    if [ "$nnodes" -gt 1 ] || [ -n "${MASTER_PORT:-}" ]; then
        torchrun_options=(--nnodes "$nnodes" --node_rank "${NODE_RANK:-0}" --master_addr "${MASTER_ADDR:-localhost}" \
            --master_port "$MASTER_PORT")
    else
        torchrun_options=(--standalone) # a free port
    fi
    torchrun_options+=(--nproc_per_node "$nproc")
}

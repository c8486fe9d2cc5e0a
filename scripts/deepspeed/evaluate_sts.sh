#!/usr/bin/env bash
# Evaluate a model on the benchmarks and write one page: evaluate_sts.sh [flags of evaluation/run.py]
#
#   MODEL_NAME_OR_PATH    folder of the model, or its name on the hub
#   AUDIO_TOKENIZER_PATH  folder of the audio tokenizer, or "embedded" for the small one in the package
#   OUTPUT_DIR            for answers and results.{html,md,json}; the same folder again continues a run that was stopped
#   DATA_PATH             folder that evaluation/prepare.py has filled; sets that are not there are named in the table
# Optional: SUITE (default "paper"; several are split at spaces; "demo" takes CORPUS, a folder of
#   tools/make_demo_corpus.py, in place of DATA_PATH), MODES (such as "vanilla boost"), JUDGES (such as
#   "en=whisper:openai/whisper-large-v3 zh=paraformer_zh", as the public evaluation), AUDIO_TOKENIZER_TYPE,
#   AUDIO_DECODER_PATH, AUDIO_MODEL_NAME_OR_PATH (SenseVoiceSmall, for a Plus model without am.mvn), EXTRA_ARGS (more
#   flags, split at spaces), NPROC_PER_NODE (default: one process for each GPU, else one), OMP_NUM_THREADS; several
#   machines that share OUTPUT_DIR: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
set -euo pipefail

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ -n "${MODEL_NAME_OR_PATH:-}" ] || fail "set MODEL_NAME_OR_PATH to the model to evaluate"
[ -n "${AUDIO_TOKENIZER_PATH:-}" ] || fail "set AUDIO_TOKENIZER_PATH to the audio tokenizer's folder, or to 'embedded'"
[ -n "${OUTPUT_DIR:-}" ] || fail "set OUTPUT_DIR to the folder for answers and results"
read -r -a suites <<< "${SUITE:-paper}"
[ -n "${DATA_PATH:-}${CORPUS:-}" ] || fail "set DATA_PATH to the folder of the benchmarks, or CORPUS with SUITE=demo"
nnodes=${NNODES:-1}
if [ "$nnodes" -gt 1 ]; then
    for variable in NODE_RANK MASTER_ADDR MASTER_PORT; do
        [ -n "${!variable:-}" ] || fail "NNODES=$nnodes needs $variable"
    done
    rendezvous=(--nnodes "$nnodes" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
else
    rendezvous=(--standalone) # a free port
fi

num_gpus=0
if command -v nvidia-smi > /dev/null && [ "${CUDA_VISIBLE_DEVICES-all}" != "" ]; then
    num_gpus=$(python -c "import torch; print(torch.cuda.device_count())")
fi
nproc=${NPROC_PER_NODE:-$((num_gpus > 0 ? num_gpus : 1))}
num_cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((num_cores > nproc ? num_cores / nproc : 1))}
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}

options=()
if [ "$AUDIO_TOKENIZER_PATH" != embedded ]; then options+=(--audio-tokenizer-path "$AUDIO_TOKENIZER_PATH"); fi
if [ -n "${MODES:-}" ]; then read -r -a modes <<< "$MODES" && options+=(--modes "${modes[@]}"); fi
if [ -n "${JUDGES:-}" ]; then read -r -a judges <<< "$JUDGES" && options+=(--judge "${judges[@]}"); fi
read -r -a extra <<< "${EXTRA_ARGS:-}"

exec torchrun "${rendezvous[@]}" --nproc_per_node "$nproc" "$root/evaluation/run.py" \
    --suite "${suites[@]}" \
    --model "$MODEL_NAME_OR_PATH" \
    --output "$OUTPUT_DIR" \
    ${DATA_PATH:+--data "$DATA_PATH"} \
    ${CORPUS:+--corpus "$CORPUS"} \
    --audio-tokenizer-type "${AUDIO_TOKENIZER_TYPE:-glm4voice}" \
    ${AUDIO_DECODER_PATH:+--audio-decoder-path "$AUDIO_DECODER_PATH"} \
    ${AUDIO_MODEL_NAME_OR_PATH:+--audio-model-path "$AUDIO_MODEL_NAME_OR_PATH"} \
    "${options[@]}" "$@" "${extra[@]}"

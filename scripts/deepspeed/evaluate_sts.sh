#!/usr/bin/env bash
# Evaluate a model on the benchmarks and write one page: evaluate_sts.sh [flags of evaluation.run]
#
#   MODEL_NAME_OR_PATH    folder of the model, or its name on the hub
#   AUDIO_TOKENIZER_PATH  folder of the audio tokenizer, or "embedded" for the small one in the package
#   OUTPUT_DIR            for answers and results.{html,md,json}; the same command continues a run that was stopped
#   DATA_PATH             folder filled by evaluation.prepare; missing sets are listed in the table
# Optional: SUITE (default "paper"; may be several, separated by spaces; "demo" needs CORPUS, a folder written by
#   tools.demo.make_corpus, instead of DATA_PATH), MODES (such as "vanilla boost"), JUDGES (such as
#   "en=whisper:openai/whisper-large-v3 zh=paraformer_zh", as in the public evaluation), AUDIO_TOKENIZER_TYPE,
#   AUDIO_DECODER_PATH, AUDIO_MODEL_NAME_OR_PATH (SenseVoiceSmall, for a Plus model without am.mvn), EXTRA_ARGS (more
#   flags, separated by spaces), NPROC_PER_NODE (default: one process for each GPU, else one), OMP_NUM_THREADS; for
#   several machines that share OUTPUT_DIR: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
# Relative paths are relative to the current folder.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
source "$here/machines.sh"
[ -n "${MODEL_NAME_OR_PATH:-}" ] || fail "set MODEL_NAME_OR_PATH to the model to evaluate"
[ -n "${AUDIO_TOKENIZER_PATH:-}" ] || fail "set AUDIO_TOKENIZER_PATH to the audio tokenizer's folder, or to 'embedded'"
[ -n "${OUTPUT_DIR:-}" ] || fail "set OUTPUT_DIR to the folder for answers and results"
read -r -a suites <<< "${SUITE:-paper}"
[ -n "${DATA_PATH:-}${CORPUS:-}" ] || fail "set DATA_PATH to the folder of the benchmarks, or CORPUS with SUITE=demo"
spread_processes

# The program runs in the repository's root.
absolute() { if [ "${1#/}" = "$1" ]; then echo "$PWD/$1"; else echo "$1"; fi; }
absolute_or_name() { if [ -e "$1" ]; then absolute "$1"; else echo "$1"; fi; } # what does not exist may be a hub name

options=(--model "$(absolute_or_name "$MODEL_NAME_OR_PATH")" --output "$(absolute "$OUTPUT_DIR")")
if [ -n "${DATA_PATH:-}" ]; then options+=(--data "$(absolute "$DATA_PATH")"); fi
if [ -n "${CORPUS:-}" ]; then options+=(--corpus "$(absolute "$CORPUS")"); fi
if [ "$AUDIO_TOKENIZER_PATH" != embedded ]; then
    options+=(--audio-tokenizer-path "$(absolute_or_name "$AUDIO_TOKENIZER_PATH")")
fi
if [ -n "${AUDIO_DECODER_PATH:-}" ]; then
    options+=(--audio-decoder-path "$(absolute_or_name "$AUDIO_DECODER_PATH")")
fi
if [ -n "${AUDIO_MODEL_NAME_OR_PATH:-}" ]; then
    options+=(--audio-model-path "$(absolute_or_name "$AUDIO_MODEL_NAME_OR_PATH")")
fi
if [ -n "${MODES:-}" ]; then read -r -a modes <<< "$MODES" && options+=(--modes "${modes[@]}"); fi
if [ -n "${JUDGES:-}" ]; then read -r -a judges <<< "$JUDGES" && options+=(--judge "${judges[@]}"); fi
read -r -a extra <<< "${EXTRA_ARGS:-}"
previous=
for word in "$@" "${extra[@]}"; do
    if [ "$previous" = --against ]; then word=$(absolute "$word"); fi
    options+=("$word")
    previous=$word
done

cd "$root"
exec torchrun "${torchrun_options[@]}" -m evaluation.run --suite "${suites[@]}" \
    --audio-tokenizer-type "${AUDIO_TOKENIZER_TYPE:-glm4voice}" "${options[@]}"

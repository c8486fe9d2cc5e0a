#!/usr/bin/env bash
# Run one training stage under torchrun: launch.sh NAME [flags of the stage] -- [SEQ_LENGTH [TIMESTAMP]] [flags]
#
# SEQ_LENGTH defaults to 32768, TIMESTAMP to now; flags are those of tools/finetune_sts.py. The result goes to
# OUTPUT_ROOT/NAME/TIMESTAMP. Running it again with the same TIMESTAMP resumes an interrupted run.
# With --dry_run it only prints what would train, the memory, steps and time; that needs no GPU and no variable:
# NNODES x NPROC_PER_NODE GPUs [8], and the model of CONFIG_NAME or MODEL_NAME_OR_PATH [a 7B one].
#   MODEL_NAME_OR_PATH    checkpoint to start from
#   AUDIO_TOKENIZER_PATH  folder of the audio tokenizer, or "embedded" for the small one in the package
#   OUTPUT_ROOT           folder for runs, audio codes and packed data
# Optional: DATA (data yaml), CONFIG_NAME, TOKENIZER_NAME, AUDIO_TOKENIZER_TYPE, AUDIO_CODE_DIR, PACK_CACHE_DIR,
#   AUDIO_MODEL_NAME_OR_PATH (a SenseVoiceSmall whose encoder the model takes; required by the first sensevoice stage),
#   DEEPSPEED_CONFIG (a JSON file, or "none" for plain data parallelism), EXTRA_ARGS (more flags, separated by spaces),
#   NPROC_PER_NODE, OMP_NUM_THREADS; several machines: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
# Later flags override earlier ones; the order is: flags of the stage, flags of the caller, EXTRA_ARGS.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
source "$here/machines.sh"
[ $# -ge 1 ] || fail "usage: launch.sh NAME [flags of the stage] -- [SEQ_LENGTH [TIMESTAMP]] [flags]"
name=$1 seq_length=32768 timestamp=
shift
flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do flags+=("$1") && shift; done
[ $# -eq 0 ] || shift
if [ $# -gt 0 ] && [[ $1 != --* ]]; then seq_length=$1 && shift; fi
if [ $# -gt 0 ] && [[ $1 != --* ]]; then timestamp=$1 && shift; fi
read -r -a extra <<< "${EXTRA_ARGS:-}"
flags+=("$@" "${extra[@]}")
dry_run=false
if [[ " ${flags[*]} " =~ \ --dry[_-]run[\ =]([a-zA-Z0-9]*) && ! ${BASH_REMATCH[1],,} =~ ^(no|false|n|f|0)$ ]]; then
    dry_run=true
fi
if [ "$dry_run" = true ]; then
    : "${AUDIO_TOKENIZER_PATH=released}" "${OUTPUT_ROOT=.}" # counts as the tokenizer of the released models
    if [ -z "${MODEL_NAME_OR_PATH:-}" ]; then
        MODEL_NAME_OR_PATH=Qwen/Qwen2.5-7B-Instruct
        flags=(--config_name "$root/configs/models/qwen2_7b_mtp0.json" "${flags[@]}")
    fi
fi
[[ $seq_length =~ ^[0-9]+$ ]] || fail "SEQ_LENGTH must be a number of tokens, got '$seq_length'"
[ -n "${MODEL_NAME_OR_PATH:-}" ] || fail "set MODEL_NAME_OR_PATH to the checkpoint that $name starts from"
[ -n "${AUDIO_TOKENIZER_PATH:-}" ] || fail "set AUDIO_TOKENIZER_PATH to the audio tokenizer's folder, or to 'embedded'"
[ -n "${OUTPUT_ROOT:-}" ] || fail "set OUTPUT_ROOT to the folder for results"
[ "$dry_run" = true ] || spread_processes
[ "${nnodes:-1}" -eq 1 ] || [ -n "$timestamp" ] || fail "NNODES=$nnodes needs the TIMESTAMP argument, the same on every machine"
timestamp=${timestamp:-$(date +%Y%m%d_%H%M%S)}

if [ "$dry_run" = true ] || [ "$num_gpus" -gt 0 ]; then
    device=(--bf16 true --tf32 true --gradient_checkpointing true --dataloader_num_workers 8)
else
    export DS_ACCELERATOR=cpu
    bf16=false
    if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2> /dev/null; then bf16=true; fi
    device=(--use_cpu true --ddp_backend gloo --bf16 "$bf16" --dataloader_num_workers 0 --dataloader_pin_memory false)
fi
export PYTHONWARNINGS=${PYTHONWARNINGS:-ignore::FutureWarning} # DeepSpeed uses names that torch has deprecated

deepspeed_config=${DEEPSPEED_CONFIG:-$here/ds_config_zero2.json}
deepspeed=()
if [ "$deepspeed_config" != none ]; then
    [ -f "$deepspeed_config" ] || fail "DEEPSPEED_CONFIG: no such file: $deepspeed_config"
    deepspeed=(--deepspeed "$deepspeed_config")
fi
if [ "$dry_run" = true ]; then
    launcher=(python)
    if [ -n "${NPROC_PER_NODE:-}" ]; then flags=(--num_gpus "$((${NNODES:-1} * NPROC_PER_NODE))" "${flags[@]}"); fi
else
    launcher=(torchrun "${torchrun_options[@]}")
fi

exec "${launcher[@]}" "$root/tools/finetune_sts.py" \
    --model_name_or_path "$MODEL_NAME_OR_PATH" \
    ${TOKENIZER_NAME:+--tokenizer_name "$TOKENIZER_NAME"} \
    --audio_tokenizer_type "${AUDIO_TOKENIZER_TYPE:-glm4voice}" \
    --audio_tokenizer_path "$AUDIO_TOKENIZER_PATH" \
    ${AUDIO_MODEL_NAME_OR_PATH:+--audio_model_name_or_path "$AUDIO_MODEL_NAME_OR_PATH"} \
    --audio_code_dir "${AUDIO_CODE_DIR:-$OUTPUT_ROOT/audio_codes}" \
    --pack_cache_dir "${PACK_CACHE_DIR:-$OUTPUT_ROOT/packs}" \
    --output_dir "$OUTPUT_ROOT/$name/$timestamp" \
    --model_max_length "$seq_length" \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 16 \
    --lr_scheduler_type cosine_with_min_lr \
    --lr_scheduler_kwargs '{"min_lr_rate": 0.1}' \
    --warmup_steps 0.03 \
    --max_grad_norm 1.0 \
    --adam_beta1 0.9 --adam_beta2 0.95 --adam_epsilon 1e-8 \
    --save_steps 0.1 --save_total_limit 2 \
    --logging_steps 10 \
    --seed 42 \
    "${device[@]}" "${deepspeed[@]}" "${flags[@]}"

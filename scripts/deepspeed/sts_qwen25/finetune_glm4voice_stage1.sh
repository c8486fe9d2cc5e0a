#!/usr/bin/env bash
# Stage 1: a text model learns to read and write audio codes. Everything trains.
# Starts from a plain Qwen2 checkpoint, such as Qwen2.5-7B-Instruct.
# Arguments: [SEQ_LENGTH [TIMESTAMP]] [flags]; they and the environment variables are described in ../launch.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../../..
exec "$here/../launch.sh" "$(basename "$0" .sh)" \
    ${CONFIG_NAME:+--config_name "$CONFIG_NAME"} \
    --dataset_name "${DATA:-$root/configs/sts_finetune_stage1.yaml}" \
    --learning_rate 6e-5 --weight_decay 0 --max_steps 8000 \
    -- "$@"

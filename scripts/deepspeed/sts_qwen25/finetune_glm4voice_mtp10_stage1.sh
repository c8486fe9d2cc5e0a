#!/usr/bin/env bash
# Stage 3: ten MTP modules, the new ones copied from the one before. Everything else is frozen.
# Starts from the result of stage 2.
# Arguments: [SEQ_LENGTH [TIMESTAMP]] [flags]; they and the environment variables are described in ../launch.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../../..
exec "$here/../launch.sh" "$(basename "$0" .sh)" \
    --config_name "${CONFIG_NAME:-$root/configs/models/qwen2_7b_mtp10.json}" \
    --dataset_name "${DATA:-$root/configs/sts_finetune_stage1.yaml}" \
    --learning_rate 1e-3 --weight_decay 0 --max_steps 8000 --language_model_freeze true \
    -- "$@"

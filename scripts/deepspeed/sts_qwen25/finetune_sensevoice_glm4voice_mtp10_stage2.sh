#!/usr/bin/env bash
# Stage 4, Plus: all weights but the speech encoder's train together, MTP modules at ten times the learning rate, on a
# twentieth of the data. Starts from the result of stage 3; SEQ_LENGTH 2048 is enough.
# Arguments: [SEQ_LENGTH [TIMESTAMP]] [flags]; they and the environment variables are described in ../launch.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../../..
export AUDIO_TOKENIZER_TYPE=${AUDIO_TOKENIZER_TYPE:-sensevoice_glm4voice}
export DEEPSPEED_CONFIG=${DEEPSPEED_CONFIG:-$here/../ds_config_zero2_no_optimizer.json}
exec "$here/../launch.sh" "$(basename "$0" .sh)" \
    --config_name "${CONFIG_NAME:-$root/configs/models/qwen2_7b_sensevoice_mtp10.json}" \
    --dataset_name "${DATA:-$root/configs/sts_finetune_stage2.yaml}" \
    --learning_rate 5e-5 --mtp_model_lr_mult 10 --weight_decay 0.1 --max_steps 4000 \
    --audio_model_freeze true --dataloader_num_workers 2 \
    -- "$@"

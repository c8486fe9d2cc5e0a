#!/usr/bin/env bash
# Stage 1, Plus: a text model learns to hear through a frozen SenseVoice encoder and to write audio codes. The rest trains.
# Starts from a plain Qwen2 checkpoint, such as Qwen2.5-7B-Instruct; AUDIO_MODEL_NAME_OR_PATH is SenseVoiceSmall.
# Arguments: [SEQ_LENGTH [TIMESTAMP]] [flags]; they and the environment variables are described in ../launch.sh.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../../..
export AUDIO_TOKENIZER_TYPE=${AUDIO_TOKENIZER_TYPE:-sensevoice_glm4voice}
exec "$here/../launch.sh" "$(basename "$0" .sh)" \
    --config_name "${CONFIG_NAME:-$root/configs/models/qwen2_7b_sensevoice_mtp0.json}" \
    --dataset_name "${DATA:-$root/configs/sts_finetune_stage1.yaml}" \
    --learning_rate 6e-5 --weight_decay 0 --max_steps 8000 --audio_model_freeze true \
    -- "$@"

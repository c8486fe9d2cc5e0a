#!/usr/bin/env bash
# From an empty machine to a spoken answer: environment, demo corpus, four training stages, evaluation, report.
# The same command resumes an interrupted run. Options: --fresh, --long, --ci, --variant, --output (see --help).
#   PYTHON, VENV                              as in setup_env.sh
#   AUDIO_TOKENIZER_PATH, AUDIO_DECODER_PATH  folders of another speech tokenizer and decoder (default: the embedded ones)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
venv=$(cd "${VENV:-$root/.venv}" && pwd)
export PATH="$venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$venv/torch_extensions} # where DeepSpeed keeps the extension it builds
caller=$PWD
cd "$root"
exec python -m tools.demo.quickstart --paths-from "$caller" "$@"

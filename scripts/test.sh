#!/usr/bin/env bash
# Install what is missing and run the tests: CPU, offline. Arguments go to pytest, such as -m slow or a path.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
venv=$(cd "${VENV:-$root/.venv}" && pwd)
cd "$root"
export PATH="$venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$venv/torch_extensions} # where DeepSpeed builds its extension, once
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
exec python -m pytest "$@"

#!/usr/bin/env bash
# Set up the environment and run the tests on the CPU, offline. Arguments, such as -m slow or a path, go to pytest.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
venv=$(cd "${VENV:-$root/.venv}" && pwd)
cd "$root"
export PATH="$venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$venv/torch_extensions} # where DeepSpeed keeps the extension it builds
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
exec python -m pytest "$@"

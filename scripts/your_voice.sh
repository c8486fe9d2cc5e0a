#!/usr/bin/env bash
# From a folder of recordings to a model that speaks in their voice: prepare them, fine-tune the speech decoder, report.
#     bash scripts/your_voice.sh recordings
# The same command resumes an interrupted run. Options: --model, --output, --dry_run, ... (see --help).
#   PYTHON, VENV  as in setup_env.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup_env.sh"
venv=$(cd "${VENV:-$root/.venv}" && pwd)
export PATH="$venv/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if ! python -c 'import resemblyzer' 2> /dev/null; then
    python -m pip install --quiet --no-deps --requirement "$root/scripts/requirements_voice.txt"
fi
caller=$PWD
cd "$root"
exec python -m tools.voice.your_voice --paths-from "$caller" "$@"

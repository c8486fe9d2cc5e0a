#!/usr/bin/env bash
# Create an environment with vLLM for the CPU, this plug-in and this repository; exits at once if it is up to date.
# vLLM needs another transformers than the rest of the repository, so the environment is one of its own.
#   PYTHON  interpreter to create it with, 3.10 to 3.12 (default: python3)
#   VENV    folder of the environment (default: .venv_vllm in the repository)
set -euo pipefail
plugin=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$plugin/../.." && pwd)
venv=${VENV:-$root/.venv_vllm}
stamp=$(cat "$plugin/pyproject.toml" "$plugin/requirements.txt" "$plugin/setup_env.sh" | cksum)
if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$stamp" ]; then
    exit 0
fi
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "Installing into $venv; this takes a few minutes."
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
# vLLM asks for a CPU build of torch. pip checks for a few seconds whether it can be downloaded; the two variables
# override places named in pip's configuration, which may have it too.
cpu_builds=https://download.pytorch.org/whl/cpu
index=()
if PIP_FIND_LINKS=$venv PIP_EXTRA_INDEX_URL=$cpu_builds "${pip[@]}" index versions torch --index-url "$cpu_builds" \
    --retries 0 --timeout 10 2> /dev/null | grep -F +cpu > /dev/null; then
    index=(--extra-index-url "$cpu_builds")
fi
"${pip[@]}" install "${index[@]}" --requirement "$plugin/requirements.txt"
# vLLM asks for these three, whose builds from PyPI do not match the CPU build of torch; text and codes need none.
"${pip[@]}" uninstall --yes torchvision torchaudio torchcodec
"${pip[@]}" install --no-deps --no-build-isolation --editable "$root" --editable "$plugin"
echo "$stamp" > "$venv/.installed"

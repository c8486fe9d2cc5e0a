#!/usr/bin/env bash
# Serve a model to many people: vLLM generates the tokens, and the talk server in front of it has the page, OpenAI's
# interface and the speech decoder. Options after MODEL are those of `python -m vita_audio.serve`.
#
#     bash scripts/serve_vllm.sh MODEL [--port 8000 ...]
#
#   ENGINE_PORT     port of vLLM on this machine (default: 8100)
#   ENGINE_OPTIONS  options of vLLM's server, no spaces in any of them (default: --dtype float32 --enforce-eager)
#   ENGINE_VENV     environment of vLLM (default: .venv_vllm, made by third_party/vllm_plugin/setup_env.sh)
#   PYTHON, VENV    as in talk.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
model=${1:-}
if [ ! -d "$model" ]; then
    echo "serve_vllm.sh: give the folder of a model, got '$model'" >&2
    exit 2
fi
shift
port=${ENGINE_PORT:-8100}
url=http://127.0.0.1:$port
venv=${ENGINE_VENV:-$root/.venv_vllm}
log=$(mktemp --suffix=.log)
VENV=$venv bash "$root/third_party/vllm_plugin/setup_env.sh"

read -ra options <<< "${ENGINE_OPTIONS:---dtype float32 --enforce-eager}"
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} # GB
"$venv/bin/python" -m vita_audio_vllm "$model" --host 127.0.0.1 --port "$port" "${options[@]}" > "$log" 2>&1 &
engine=$!
trap 'kill "$engine" 2> /dev/null; wait "$engine" 2> /dev/null || true' EXIT
echo "vLLM starts, which takes a minute or more; its log: $log"
until "$venv/bin/python" -c "from urllib.request import urlopen; urlopen('$url/health', timeout=5)" 2> /dev/null; do
    if ! kill -0 "$engine" 2> /dev/null; then
        echo "serve_vllm.sh: the engine ended: $(tail -n 1 "$log")" >&2
        exit 1
    fi
    sleep 1
done
bash "$root/scripts/talk.sh" --model "$model" --backend vllm --engine-url "$url" "$@"

#!/usr/bin/env bash
# Talk to a model in the browser: set up only what that needs, start the server and open its page. Options are those of
# `python -m vita_audio.serve`, such as --model DIR (default: the demo model in vita_audio/assets, which answers the
# questions listed on start).
#   PYTHON, VENV  as in setup_env.sh (default: .venv if it can serve, else .venv_talk)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

options=("$@") model=
if [[ " $* " != *" --model"[\ =]* && " $* " != *" --help "* ]]; then
    for model in "$root/vita_audio/assets/demo_model" "$root/outputs/quickstart/stage4" ""; do
        [ -f "$model/config.json" ] && break
    done
    if [ -z "$model" ]; then
        echo "talk.sh: no model; bash scripts/quickstart.sh trains one in outputs/quickstart/stage4, or give --model DIR" >&2
        exit 2
    fi
    options=(--model "$model" "$@")
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # these models are so small that a second thread slows them down
fi

can_serve() {
    "$1/bin/python" -c 'from importlib.util import find_spec as find
assert all(map(find, ("vita_audio", "fastapi", "uvicorn", "websockets", "prometheus_client", "silero_vad")))' 2> /dev/null
}

venv=${VENV:-$root/.venv}
if ! can_serve "$venv"; then
    venv=${VENV:-$root/.venv_talk}
    VENV=$venv bash "$root/scripts/setup_env.sh" talk
fi
if [ -f "${model:-}/demo.json" ]; then
    "$venv/bin/python" -c 'import json, sys
demo = json.load(open(sys.argv[1], encoding="utf-8"))
if "domain" in demo: # the model in the package, not the one of a quick start
    print(demo["domain"], "Ask it, for instance:", *demo["questions"], sep="\n  ")' "$model/demo.json"
fi
exec "$venv/bin/python" -m vita_audio.serve --open-page "${options[@]}"

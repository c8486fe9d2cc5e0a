#!/usr/bin/env bash
# Make .venv with pinned versions and the package in it; does nothing when that is done already.
#   PYTHON  interpreter to make it with, 3.10 to 3.12 (default: python3)
#   VENV    folder of the environment (default: .venv)
# An installed torch that sees a GPU is kept: run this with VENV set to an environment that has one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}
requirements=$root/scripts/requirements_quickstart.txt
torch_version=2.13.0

"$python" - << 'PY'
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"Python must be 3.10, 3.11 or 3.12, got {sys.version.split()[0]}; set PYTHON to another interpreter")
PY
command -v c++ > /dev/null || { echo "a C++ compiler is missing (DeepSpeed builds an extension): install g++" >&2; exit 1; }

stamp=$(cat "$requirements" "$root/setup.py" "$0" | cksum)
if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$stamp" ]; then
    exit 0
fi
echo "installing into $venv (a few minutes the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar on)
if ! "$venv/bin/python" -c "import torch; assert torch.cuda.is_available()" 2> /dev/null; then
    "${pip[@]}" "torch==$torch_version"
fi
constraints=$venv/torch_constraint.txt
"$venv/bin/python" -c "import torch; print('torch==' + torch.__version__)" > "$constraints"
"${pip[@]}" --constraint "$constraints" --requirement "$requirements"
"${pip[@]}" --no-deps --no-build-isolation --editable "$root"
echo "$stamp" > "$venv/.installed"

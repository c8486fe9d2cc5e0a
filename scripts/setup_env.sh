#!/usr/bin/env bash
# Make .venv with pinned versions and the package in it; does nothing when that is done already.
#   PYTHON  interpreter to make it with, 3.10 to 3.12 (default: python3)
#   VENV    folder of the environment (default: .venv)
# A torch that sees a GPU is kept, whether it is in that environment or beside the interpreter. Otherwise torch is
# installed: where there is no nvidia-smi, its CPU build, which is GBs smaller.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}
requirements=$root/scripts/requirements_quickstart.txt
torch_version=2.13.0
cpu_builds=https://download.pytorch.org/whl/cpu

fail() {
    echo "setup_env.sh: $*" >&2
    exit 1
}

sees_gpu() {
    "$1" -c "import torch; assert torch.cuda.is_available()" 2> /dev/null
}

# Whether the CPU build can be had there. It is pip that looks, with its proxies and certificates, for seconds only; the
# two variables stand in for other places that pip's configuration names, and an empty one would not.
offers_cpu_build() {
    PIP_FIND_LINKS=$venv PIP_EXTRA_INDEX_URL=$cpu_builds "${pip[@]}" index versions torch --index-url "$cpu_builds" \
        --retries 0 --timeout 10 2> /dev/null | grep -F "$torch_version+cpu" > /dev/null
}

# Show how far pip is, from its lines on stdin: one for each of TOTAL packages, then it unpacks them.
show_progress() {
    local total=$1 count=0 start=$SECONDS left line
    while read -r line; do
        case $line in
            Collecting* | Processing*)
                count=$((count + 1))
                left=$((total > count ? (SECONDS - start) * (total - count) / count : 0))
                printf '\r  collecting: %d of %d packages, about %d s left ' "$count" "$total" "$left"
                ;;
            Installing*) printf '\r  unpacking %d packages; a minute or less     ' "$count" ;;
        esac
    done
    printf '\r  %d packages in %d s                              \n' "$count" "$((SECONDS - start))"
}

stamp=$(cat "$requirements" "$root/setup.py" "$root/scripts/setup_env.sh" | cksum)
if [ -f "$venv/.installed" ] && [ "$(cat "$venv/.installed")" = "$stamp" ]; then
    exit 0
fi

if [ ! -x "$venv/bin/python" ]; then
    command -v "$python" > /dev/null || fail "no $python; set PYTHON to Python 3.10, 3.11 or 3.12"
    "$python" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))" \
        || fail "needs Python 3.10, 3.11 or 3.12, got $("$python" --version); set PYTHON to another interpreter"
    options=()
    if sees_gpu "$python"; then options=(--system-site-packages); fi
    "$python" -m venv "${options[@]}" "$venv" \
        || fail "$python cannot make environments; install its venv module (python3-venv) or set PYTHON"
fi
command -v c++ > /dev/null || fail "no C++ compiler, with which DeepSpeed builds an extension; install g++"

echo "Installing into $venv; this takes a few minutes."
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
if ! sees_gpu "$venv/bin/python"; then
    torch=("torch==$torch_version")
    if ! command -v nvidia-smi > /dev/null; then
        if offers_cpu_build; then
            torch=("torch==$torch_version+cpu" --extra-index-url "$cpu_builds")
        else
            echo "$cpu_builds is out of reach; pip's own index may bring a torch for GPUs, which is GBs larger."
        fi
    fi
    "${pip[@]}" install --constraint "$requirements" "${torch[@]}" | show_progress 10
fi
"$venv/bin/python" -c "import torch; print('torch==' + torch.__version__)" > "$venv/torch_version.txt"
"${pip[@]}" install --constraint "$venv/torch_version.txt" --requirement "$requirements" \
    | show_progress "$(grep -c '^[a-zA-Z]' "$requirements")"
"${pip[@]}" --quiet install --no-deps --no-build-isolation --editable "$root"
echo "$stamp" > "$venv/.installed"

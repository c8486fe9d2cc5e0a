#!/usr/bin/env bash
# Create .venv with pinned versions and this package; exits at once if the environment is up to date. With the argument
# talk, create .venv_talk with only what the server needs, which takes no compiler.
#   PYTHON  interpreter to create it with, 3.10 to 3.12 (default: python3)
#   VENV    folder of the environment (default: .venv, .venv_talk)
# A torch that sees a GPU is kept, whether in the environment or in the interpreter's own packages. Otherwise torch is
# installed; without nvidia-smi, its CPU build, which is several GB smaller.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
suffix=${1:+_$1}
venv=${VENV:-$root/.venv$suffix}
python=${PYTHON:-python3}
requirements=$root/scripts/requirements${suffix:-_quickstart}.txt
versions=$root/scripts/requirements_quickstart.txt
torch_version=2.13.0
cpu_builds=https://download.pytorch.org/whl/cpu

fail() {
    echo "setup_env.sh: $*" >&2
    exit 1
}

sees_gpu() {
    "$1" -c "import torch; assert torch.cuda.is_available()" 2> /dev/null
}

# Whether the CPU build can be downloaded. pip checks this, for a few seconds, so that its proxies and certificates
# apply. The two variables override places named in pip's configuration; empty values would not.
offers_cpu_build() {
    PIP_FIND_LINKS=$venv PIP_EXTRA_INDEX_URL=$cpu_builds "${pip[@]}" index versions torch --index-url "$cpu_builds" \
        --retries 0 --timeout 10 2> /dev/null | grep -F "$torch_version+cpu" > /dev/null
}

# Show the progress of pip from its output on stdin: one line for each of TOTAL packages, then it unpacks them.
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

[ -f "$requirements" ] || fail "the argument must be talk or left out, got $1"
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
[ -n "$suffix" ] || command -v c++ > /dev/null || fail "no C++ compiler, which DeepSpeed needs to build an extension; install g++"

echo "Installing into $venv; this takes a few minutes."
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
if ! sees_gpu "$venv/bin/python"; then
    torch=("torch==$torch_version")
    if ! command -v nvidia-smi > /dev/null; then
        if offers_cpu_build; then
            torch=("torch==$torch_version+cpu" --extra-index-url "$cpu_builds")
        else
            echo "$cpu_builds cannot be reached; pip's own index may offer a torch for GPUs, which is several GB larger."
        fi
    fi
    "${pip[@]}" install --constraint "$versions" "${torch[@]}" | show_progress 10
fi
"$venv/bin/python" -c "import torch; print('torch==' + torch.__version__)" > "$venv/torch_version.txt"
number=$(grep -c '^[a-zA-Z]' "$requirements")
[ -z "$suffix" ] || number=42 # with the packages that those listed need
"${pip[@]}" install --constraint "$versions" --constraint "$venv/torch_version.txt" --requirement "$requirements" \
    | show_progress "$number"
"${pip[@]}" --quiet install --no-deps --no-build-isolation --editable "$root"
echo "$stamp" > "$venv/.installed"

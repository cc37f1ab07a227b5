# Sourced by the other scripts: `make_env DIR EXTRAS` leaves a ready environment in DIR.
# It is made once, and again only when the requirements in setup.cfg change.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The Python that makes the environment: $PYTHON, or python3.
find_python() {
    local python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: dinojax needs Python 3.11 or newer; $python is $("$python" --version 2>&1)." \
             "Install one, or set PYTHON to it." >&2
        return 2
    fi
    echo "$python"
}

# A working Python of that version, on the PATH or kept by pyenv; nothing if there is none.
python_of() {
    local python
    for python in "python$1" "$(pyenv prefix "$1" 2>/dev/null)/bin/python"; do
        if "$python" -c '' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
}

make_env() {
    local dir="$1" extras="$2" start="$SECONDS" python wanted
    python="$(find_python)" || return $?
    wanted="$("$python" --version) [$extras] $(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" | cksum)"
    if [ -f "$dir/dinojax_requirements" ] && [ "$(cat "$dir/dinojax_requirements")" = "$wanted" ]; then
        echo "using the environment in $dir"
        return 0
    fi
    echo "making an environment in $dir with $("$python" --version), once; a few minutes ..."
    "$python" -m venv --clear "$dir"
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$ROOT[$extras]"
    echo "$wanted" > "$dir/dinojax_requirements"
    echo "installed in $((SECONDS - start)) s"
}

# What the comparisons with PyTorch and open_clip need, at the versions they were written for. timm asks for
# torchvision, which has no build for a torch without CUDA; what of it is missing then, two
# operators, is declared where it is imported (dinojax/weights/libraries.py). Of open_clip only the
# vocabulary is read.
TORCH="torch==2.13.0 transformers==5.23.0"
TORCH_WITHOUT_DEPENDENCIES="timm==1.0.31 torchvision==0.28.0 open_clip_torch==3.3.0"

# `add_torch DIR`: PyTorch, transformers and timm in an environment that make_env made.
add_torch() {
    local dir="$1" start="$SECONDS" wanted="$TORCH $TORCH_WITHOUT_DEPENDENCIES"
    local pip=("$dir/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [ -f "$dir/torch_requirements" ] && [ "$(cat "$dir/torch_requirements")" = "$wanted" ]; then
        echo "using PyTorch, transformers and timm in $dir"
        return 0
    fi
    echo "installing $wanted in $dir, once; 1.2 GB where pip finds a torch without CUDA ..."
    # shellcheck disable=SC2086  # these are lists of words
    if ! "${pip[@]}" $TORCH || ! "${pip[@]}" --no-deps $TORCH_WITHOUT_DEPENDENCIES; then
        echo "error: PyTorch, transformers and timm cannot be installed here, so nothing can be" \
             "compared with them. Without DINOJAX_TEST_TORCH=1 these comparisons are skipped." >&2
        return 1
    fi
    echo "$wanted" > "$dir/torch_requirements"
    echo "installed in $((SECONDS - start)) s"
}

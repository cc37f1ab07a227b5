#!/usr/bin/env bash
# Check and test everything, from nothing but Python: style, types, fast tests, slow tests.
# --changed [COMMIT] runs the tests of what differs from the commit (HEAD) and of all that uses it.
# DINOJAX_TEST_ALL=1 runs the exhaustive tests as well, which show at length what others show too.
# DINOJAX_TEST_TORCH=1 installs PyTorch, transformers and timm as well and compares with them.
# DINOJAX_TEST_PLANS=1 plans for a TPU and a GPU, with the compilers of `dinojax plan` (860 MB) in an
# environment of their own: a JAX that finds them looks for their devices everywhere.
# DINOJAX_TEST_NEWEST=1 runs some of config, training, data and weights on another Python found here
# as well, the newest one, with the newest releases it can have; =all runs every fast test.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

# Tell what failed, of what ran, and exit.
end() {
    if [ "${#failed[@]}" -gt 0 ]; then
        printf 'error: failed in %d s:' "$SECONDS" >&2
        printf ' %s;' "${failed[@]}" >&2
        echo >&2
        exit 1
    fi
    echo "all passed in ${SECONDS} s"
    exit
}

plans="${DINOJAX_TEST_PLANS:-0}"
unset DINOJAX_TEST_PLANS  # where it is set, a missing compiler fails the tests
make_env "$ROOT/.venv-test" test
echo "== libraries to compare with"
if [ "${DINOJAX_TEST_TORCH:-0}" = 1 ]; then
    add_torch "$ROOT/.venv-test"
else
    echo "not installed: comparisons with PyTorch, transformers and timm are skipped;" \
         "DINOJAX_TEST_TORCH=1 installs them and runs them"
fi
# Compiling is what the tests cost: what one of them compiled, the next one finds here.
export JAX_COMPILATION_CACHE_DIR="$ROOT/.venv-test/compiled"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
echo "== style and types"
PYTHON=.venv-test/bin/python bash launch/check.sh
paths=(tests)
if [ "${1:-}" = --changed ]; then
    chosen="$(.venv-test/bin/python -m tests.programs.changed "${2:-HEAD}")"
    mapfile -t paths <<< "$chosen"
    echo "== tests of what changed: ${paths[*]}"
fi
failed=()  # what else is wrong is worth knowing
echo "== fast tests"
.venv-test/bin/python -m pytest --quiet -n 2 "${paths[@]}" || failed+=("fast tests")
echo "== slow tests"
status=0
marks="slow and not exhaustive"
[ "${DINOJAX_TEST_ALL:-0}" = 1 ] && marks="slow or exhaustive"
.venv-test/bin/python -m pytest --quiet -n 2 --dist worksteal -m "$marks" "${paths[@]}" || status=$?
[ "$status" -eq 5 ] || [ "$status" -eq 0 ] || failed+=("slow tests")  # 5: there are none
if [ "${1:-}" = --changed ]; then
    end
fi

if [ "$plans" = 1 ]; then
    echo "== plans for machines that are not here"
    make_env "$ROOT/.venv-plan" test,plan
    DINOJAX_TEST_PLANS=1 .venv-plan/bin/python -m pytest --quiet -n 2 -m "slow and not exhaustive" \
        tests/plan/test_compilers.py || failed+=("plans")
fi

newest="${DINOJAX_TEST_NEWEST:-0}"
if [ "$newest" != 0 ]; then
    own="$(.venv-test/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    for version in 3.14 3.13 3.12 3.11; do
        python="$(python_of "$version")"
        if [ "$version" = "$own" ] || [ -z "$python" ]; then
            continue
        fi
        echo "== tests on Python $version"
        PYTHON="$python" make_env "$ROOT/.venv-test-$version" test
        pytest=(env DINOJAX_TEST_TORCH=0 ".venv-test-$version/bin/python" -m pytest --quiet -n 2)
        if [ "$newest" = all ]; then
            "${pytest[@]}" || failed+=("Python $version")
        else
            "${pytest[@]}" tests/{config/test_config,train/test_step,data/test_loader,augment/test_views,eval/test_embed,weights/test_load,plan/test_targets}.py || failed+=("Python $version")
            "${pytest[@]}" -m "not exhaustive" tests/test_api.py || failed+=("API on Python $version")
        fi
        break
    done
fi
end

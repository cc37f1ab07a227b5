#!/usr/bin/env bash
# safetensors 0.8.0, safetensors.numpy: an array that is not contiguous in C order is written as it lies
# in memory, under its own shape, without an error: a transposed kernel comes back with other values, a
# slice with a step comes back with the values that were skipped. The file is valid, every size fits.
# Who turns kernels [in, out] into the [out, in] of PyTorch by `.T` and saves them ships noise, unless
# numpy.ascontiguousarray stands between. bfloat16 and float8 are written and cannot be read back.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.5.4
cat > "$work/show.py" <<'PY'
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy as stored

kernel = np.arange(6, dtype=np.float32).reshape(2, 3)


def back(array):
    return stored.load(stored.save({"x": array}))["x"]


print("safetensors", safetensors.__version__)
for name, array in {
    "transposed": kernel.T,
    "Fortran order": np.asfortranarray(kernel),
    "every second": np.arange(10.0)[::2],
}.items():
    print(f"{name}: saved {array.tolist()}, read {back(array).tolist()}")
    assert back(array).shape == array.shape and not np.array_equal(back(array), array), name
    assert np.array_equal(back(np.ascontiguousarray(array)), array)
for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
    content = stored.save({"x": np.ones(2, dtype)})
    try:
        stored.load(content)
    except KeyError as error:
        print(f"{dtype.__name__}: {len(content)} bytes written, reading them: KeyError {error}")
    else:
        raise AssertionError(f"{dtype.__name__} is read now")
PY
"$work/env/bin/python" "$work/show.py"

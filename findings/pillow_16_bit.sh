#!/usr/bin/env bash
# Pillow 13.0.0: a PNG of 16-bit colours opens as mode RGB with the upper byte of each value, without a
# warning, so that values 0 to 3000 of 65535 become 12 levels; one of 16-bit grey keeps its values
# (mode I;16). A TIFF whose zero is white is inverted where it has 8 bits and is not where it has 16.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet pillow==13.0.0 numpy==2.3.5 tifffile==2026.3.3 pypng==0.20220715.0
cat > "$work/show.py" <<'PY'
import sys
import warnings

import numpy as np
import PIL
import png
import tifffile
from PIL import Image

warnings.simplefilter("error")
values = np.arange(3000, dtype=np.uint16).reshape(50, 60)
png.from_array(np.repeat(values, 3, axis=1), "RGB;16").save(sys.argv[1] + "/colour.png")
png.from_array(values, "L;16").save(sys.argv[1] + "/grey.png")
colour, grey = (Image.open(f"{sys.argv[1]}/{name}.png") for name in ("colour", "grey"))
levels = len(np.unique(np.asarray(colour)))
print("Pillow", PIL.__version__)
print("16-bit colours: mode", colour.mode, "levels", levels, "of", values.size)
print("16-bit grey: mode", grey.mode, "levels", len(np.unique(np.asarray(grey))))
assert (colour.mode, levels) == ("RGB", 12) and np.array_equal(np.asarray(grey), values)
inverted = {}
for bits, dtype in ((8, np.uint8), (16, np.uint16)):
    path = f"{sys.argv[1]}/{bits}.tif"
    tifffile.imwrite(path, np.full((4, 4), 10, dtype), photometric="miniswhite")
    inverted[bits] = int(np.asarray(Image.open(path))[0, 0])
print("a stored 10 whose zero is white is read as", inverted)
assert inverted == {8: 245, 16: 10}
PY
"$work/env/bin/python" "$work/show.py" "$work"

"""Small scenes: rasters with a place on the earth, written with rasterio."""

import warnings

import numpy as np

CRS, CORNER, METRES = "EPSG:32633", (399_960.0, 5_300_040.0), 10.0
NODATA = 65_535


def scene(path, values_HWC, *, nodata=NODATA, crs=CRS, **options):
    """A GeoTIFF of values as they are; None: without nodata, or without a CRS and a place."""
    import rasterio

    height, width, count = values_HWC.shape
    place = rasterio.Affine(METRES, 0, CORNER[0], 0, -METRES, CORNER[1])
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count}
    profile |= {"dtype": values_HWC.dtype.name, "nodata": nodata, "photometric": "minisblack"}
    if crs is not None:
        profile |= {"crs": crs, "transform": place}
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rasters that lie nowhere
        with rasterio.open(path, "w", **(profile | options)) as file:
            file.write(np.moveaxis(values_HWC, 2, 0))
    return path


def waves(height, width, bands=4, *, largest=3000, dtype=np.uint16):
    """Smooth values 0..largest with some noise, different in every band: [height, width, bands]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    found = [np.sin(y / (9 + 2 * b)) + np.cos(x / (7 + 3 * b)) + 2 for b in range(bands)]
    noisy = np.stack(found, axis=-1) / 4 + rng.uniform(0, 0.1, (height, width, bands))
    return (np.clip(noisy, 0, 1) * largest).astype(dtype)

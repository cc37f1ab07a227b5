"""Which image files are read: extensions, Pillow's names of formats, and what a package adds."""

import importlib.util
import io
import warnings

from PIL import Image, ImageFile, features

# Pillow warns of images from half of its own limit on; ours is a key, data.max_pixels, and a
# worker's warning tells nobody anything.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

HEIF = ("heic", "heif")  # extensions, read with the package pillow-heif (the extra `heif`)

# File name extension to Pillow's name of the format. Only these formats are ever tried.
EXTENSIONS = {
    **({"avif": "AVIF"} if features.check("avif") else {}),
    "bmp": "BMP",
    "gif": "GIF",
    **({name: "HEIF" for name in HEIF} if importlib.util.find_spec("pillow_heif") else {}),
    "jfif": "JPEG",
    "jpe": "JPEG",
    "jpeg": "JPEG",
    "jpg": "JPEG",
    "pbm": "PPM",
    "pgm": "PPM",
    "png": "PNG",
    "pnm": "PPM",
    "ppm": "PPM",
    "tif": "TIFF",
    "tiff": "TIFF",
    "webp": "WEBP",
}
FORMATS = sorted(set(EXTENSIONS.values()))
_OF_PILLOW = [name for name in FORMATS if name != "HEIF"]


class DecodeError(ValueError):
    """A file that cannot be decoded. The message names it."""


class WrongChannels(DecodeError):
    """An image that is fine but has another number of channels than the config says."""

    def __init__(self, message: str, found: int):
        super().__init__(message)
        self.found = found  # channels

    def __reduce__(self):  # back from a worker process
        return WrongChannels, (str(self), self.found)


def open_image(data: bytes) -> ImageFile.ImageFile:
    """The image with its header read and no pixel decoded.

    Raises what Pillow raises, UnidentifiedImageError for a file of no format that is read.
    """
    formats = _OF_PILLOW
    if "HEIF" in FORMATS and data[4:8] == b"ftyp":
        importlib.import_module("pillow_heif").register_heif_opener()
        formats = FORMATS
    return Image.open(io.BytesIO(data), formats=formats)


def hint(extension: str) -> str:
    """What makes files with an extension readable; empty for those that no package reads."""
    if extension in HEIF and "HEIF" not in FORMATS:
        return "run: pip install 'dinojax[heif]'"
    if extension == "avif" and "AVIF" not in FORMATS:
        return "run: pip install -U pillow"
    return ""

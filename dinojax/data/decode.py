"""Encoded files to uint8 pixels, with Pillow.

As in the reference implementation, the orientation tag of EXIF is not applied and transparency is
dropped; of an animation the first frame is read.
"""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow refuses an image of more than 179 million pixels as a decompression bomb and warns from
# half of that on. An image below the limit is legal, and a worker's warning tells nobody anything.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# File name extension to Pillow's name of the format. Only these formats are ever tried.
EXTENSIONS = {
    "bmp": "BMP",
    "gif": "GIF",
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

# Bits of a channel in Pillow's modes, where they are not 8; and the formats of many frames.
BITS = {"1": 1, "I;16": 16, "I;16L": 16, "I;16B": 16, "I": 32, "F": 32}
ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")

# Pillow's mode for the channel counts that any image can be converted to.
CONVERTED = {1: "L", 3: "RGB"}


class DecodeError(ValueError):
    """A file that cannot be decoded. The message names it."""


class WrongChannels(ValueError):
    """An image that is fine but has another number of channels than the config says."""


def decode(data: bytes, *, name: str, channels: int, box_size: int | None = None) -> np.ndarray:
    """Pixels uint8 [H, W, channels] of an encoded image.

    With `box_size` (pixels) an image larger than the box is scaled to fit into it; a JPEG is then
    decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that is not below the wanted size.

    Raises DecodeError for a damaged or foreign file and WrongChannels for a wrong channel count;
    both are ValueErrors and name the file.
    """
    pixels = load_pixels(data, name=name, channels=channels, box_size=box_size)
    return pixels if box_size is None else fit_into_box(pixels, box_size)


def load_pixels(
    data: bytes, *, name: str, channels: int, box_size: int | None = None
) -> np.ndarray:
    """As `decode`, but only a JPEG is made smaller, and never below the size that fits the box."""
    if not data:
        raise DecodeError(f"cannot decode {name}: the file is empty.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if box_size is not None:
            image.draft(None, fitted_size(image.size, box_size))
        image.load()
        if not image.width or not image.height:
            raise DecodeError(f"cannot decode {name}: it has {image.width}x{image.height} pixels.")
        return to_channels(image, name=name, channels=channels)
    except UnidentifiedImageError:
        raise DecodeError(
            f"cannot decode {name}: it is none of {', '.join(FORMATS)}, whatever its name says."
        ) from None
    except (DecodeError, WrongChannels):
        raise
    except Exception as error:  # Pillow's decoders raise most builtin errors on damaged files
        reason = str(error) or type(error).__name__
        raise DecodeError(f"cannot decode {name}: {reason}") from error


def to_channels(image: Image.Image, *, name: str, channels: int) -> np.ndarray:
    """Pixels uint8 [H, W, channels]: converted for 1 (grey) and 3 (RGB), else as stored."""
    if image.mode == "F":
        raise DecodeError(
            f"cannot decode {name}: float pixels have no known range; store 8 or 16 bit."
        )
    if image.mode.startswith("I"):
        image = _sixteen_to_eight_bit(image, name)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in ("P", "PA"):
        # A palette with transparency converts without a warning only by way of RGBA.
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if channels in CONVERTED:
        image = image.convert(CONVERTED[channels])
    pixels = np.asarray(image)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.shape[2] != channels:
        raise WrongChannels(
            f"{name} has {pixels.shape[2]} channels ({image.mode}) but image.channels={channels}. "
            "Any image can be read with image.channels=1 (grey) or 3 (RGB)."
        )
    return pixels


def _sixteen_to_eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Grey values 0..65535 to 0..255, rounded."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise DecodeError(
            f"cannot decode {name}: integer pixels from {values.min()} to {values.max()} exceed "
            "16 bit; store 8 or 16 bit."
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def fitted_size(size: tuple[int, int], box_size: int) -> tuple[int, int]:
    """Two sides (pixels) scaled so that the longer is `box_size`; smaller ones as they are."""
    longer = max(size)
    if longer <= box_size:
        return size
    first, second = (max(1, (2 * side * box_size + longer) // (2 * longer)) for side in size)
    return first, second


def fit_into_box(pixels_HWC: np.ndarray, box_size: int) -> np.ndarray:
    """Pixels uint8 [h, w, C] with h, w <= box_size; never enlarged."""
    height, width = fitted_size(pixels_HWC.shape[:2], box_size)
    return resize_pixels(pixels_HWC, height, width)


def resize_pixels(pixels_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bicubic resampling (a = -0.5) of uint8 pixels, as Pillow does it."""
    if pixels_HWC.shape[:2] == (height, width):
        return pixels_HWC
    if pixels_HWC.shape[2] == 3:
        return np.asarray(
            Image.fromarray(pixels_HWC).resize((width, height), Image.Resampling.BICUBIC)
        )
    # One by one: Pillow would take a second or fourth channel for transparency and multiply by it.
    planes = [
        Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels_HWC, 2, 0)
    ]
    resized = [plane.resize((width, height), Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=2)


def describe(data: bytes) -> str:
    """How an image is stored, such as "PNG RGB 16 bit", from its header alone.

    Raises DecodeError, without a name, if there is no header to read.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        mode = image.mode  # of the first frame; others may have another
        bits = BITS[mode] if mode in BITS else 8
        if image.format == "PNG":
            bits = data[24]  # of the header: Pillow reads 16 bit colour as 8
        animated = image.format in ANIMATED and _has_second_frame(image)
    except Exception as error:  # as in load_pixels
        raise DecodeError(str(error) or type(error).__name__) from error
    return f"{image.format} {mode} {bits} bit{', animated' if animated else ''}"


def _has_second_frame(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    except Exception:  # damaged, but there, and never needed
        return True
    return True

"""Encoded files to uint8 pixels.

As in the reference implementation, the orientation tag of EXIF is not applied and transparency is
dropped (or laid over white, where that is asked for); of an animation the first frame is read.
Values of more than 8 bits: `stored.py`.
"""

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from dinojax.data import stored, tiff
from dinojax.data.formats import EXTENSIONS, FORMATS, DecodeError, WrongChannels
from dinojax.data.header import PLAIN, Header, ReadOptions, check_size, describe, read_header

__all__ = [
    "CONVERTED",
    "EXTENSIONS",
    "FORMATS",
    "PLAIN",
    "DecodeError",
    "ReadOptions",
    "WrongChannels",
    "decode",
    "describe",
    "fit_into_box",
    "fitted_size",
    "load_pixels",
    "resize_pixels",
]

# Pillow's mode for the channel counts that grey and colour images can be converted to.
CONVERTED = {1: "L", 3: "RGB"}


def decode(
    data: bytes,
    *,
    name: str,
    channels: int,
    box_size: int | None = None,
    options: ReadOptions = PLAIN,
) -> np.ndarray:
    """Pixels uint8 [H, W, channels] of an encoded image.

    With `box_size` (pixels) an image larger than the box is scaled to fit into it; a JPEG is then
    decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that is not below the wanted size.

    Raises DecodeError for a damaged, foreign or too large file and WrongChannels, a DecodeError
    too, for a wrong channel count; both name the file.
    """
    pixels = load_pixels(data, name=name, channels=channels, box_size=box_size, options=options)
    return pixels if box_size is None else fit_into_box(pixels, box_size)


def load_pixels(
    data: bytes,
    *,
    name: str,
    channels: int,
    box_size: int | None = None,
    options: ReadOptions = PLAIN,
) -> np.ndarray:
    """As `decode`, but only a JPEG is made smaller, and never below the size that fits the box."""
    if not data:
        raise DecodeError(f"cannot decode {name}: the file is empty.")
    try:
        header, image = read_header(data)
        check_size(header, options.max_pixels)
        if image is None or (header.is_wide and _keeps_values(header, options)):
            return _from_values(data, header, image, channels=channels, options=options)
        if box_size is not None:
            image.draft(None, fitted_size(image.size, box_size))
        image.load()
        has_alpha = header.alpha or "transparency" in image.info
        if has_alpha and options.transparency == "white" and channels == 3:
            return np.asarray(_over_white(image))
        return to_channels(image, header, channels=channels)
    except UnidentifiedImageError:
        raise DecodeError(
            f"cannot decode {name}: it is none of {', '.join(FORMATS)}, whatever its name says."
        ) from None
    except _Mismatch as error:
        raise WrongChannels(f"{name} {error}", error.found) from None
    except Exception as error:  # the decoders raise most builtin errors on damaged files
        reason = str(error) or type(error).__name__
        raise DecodeError(f"cannot decode {name}: {reason}") from error


class _Mismatch(Exception):
    """Another number of channels; the message lacks the name."""

    def __init__(self, found: int, stored_as: str, channels: int, *, advice: str):
        super().__init__(
            f"has {found} channels ({stored_as}) but image.channels={channels}; set {advice}."
        )
        self.found = found


def _keeps_values(header: Header, options: ReadOptions) -> bool:
    """Whether the stored values are needed, and not Pillow's upper 8 bits of 16 bit colour."""
    if header.layout is not None and header.layout.photometric not in (*tiff.GREY, tiff.COLOUR):
        return False
    if header.format == "PPM" and not options.value_range:
        return header.mode not in ("I", "RGB")  # Pillow scales by the range that the file declares
    return header.bands == 1 or bool(options.value_range)


def _from_values(
    data: bytes,
    header: Header,
    image: ImageFile.ImageFile | None,
    *,
    channels: int,
    options: ReadOptions,
) -> np.ndarray:
    _check_channels(header, channels)
    values = stored.stored_values(data, header, image)
    bytes_HWC = stored.to_bytes(values, header, options.value_range if header.is_wide else ())
    colours = header.bands - header.alpha
    if options.transparency == "white" and channels == 3 and header.alpha and colours in CONVERTED:
        opacity_HW1 = stored.opacity(values[:, :, -1:], header)
        rgb_HWC = np.broadcast_to(bytes_HWC[:, :, :colours], (*bytes_HWC.shape[:2], 3))
        rgba = Image.fromarray(np.concatenate([rgb_HWC, opacity_HW1], axis=2))
        return np.asarray(_over_white(rgba))
    if header.bands != channels:
        bytes_HWC = bytes_HWC[:, :, :colours]
    if colours == channels or header.bands == channels:
        return np.ascontiguousarray(bytes_HWC)
    if channels == 3:
        return np.repeat(bytes_HWC, 3, axis=2)
    rgb = Image.fromarray(np.ascontiguousarray(bytes_HWC))
    return np.asarray(rgb.convert("L"))[:, :, None]


def _check_channels(header: Header, channels: int) -> None:
    """Raises _Mismatch unless the bands are the channels, or grey or colour to convert."""
    colours = header.bands - header.alpha
    is_colour = header.layout is None or header.layout.photometric == tiff.COLOUR
    converts = channels in CONVERTED and (colours == 1 or (colours == 3 and is_colour))
    if channels not in (header.bands, colours) and not converts:
        raise _Mismatch(header.bands, str(header), channels, advice=f"image.channels={colours}")


def to_channels(image: Image.Image, header: Header, *, channels: int) -> np.ndarray:
    """Pixels uint8 [H, W, channels]: converted for 1 (grey) and 3 (RGB), else as stored."""
    if image.mode == "I":  # 16 bit PPM, scaled to 0..65535 by the range that it declares
        image = Image.fromarray(((np.asarray(image) + 128) // 257).astype(np.uint8))
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
        advice = "image.channels=1 (grey) or 3 (RGB), which any such image can be read with"
        raise _Mismatch(pixels.shape[2], image.mode, channels, advice=advice)
    return pixels


def _over_white(image: Image.Image) -> Image.Image:
    """RGB of an image with transparency."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


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


def resize_pixels(
    pixels_HWC: np.ndarray,
    height: int,
    width: int,
    filter: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Antialiased resampling of uint8 or float32 pixels as Pillow does it; bicubic has a = -0.5."""
    if pixels_HWC.shape[:2] == (height, width):
        return pixels_HWC
    if pixels_HWC.shape[2] == 3 and pixels_HWC.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels_HWC).resize((width, height), filter))
    # One by one: Pillow would take a second or fourth channel for transparency and multiply by it.
    planes = [
        Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels_HWC, 2, 0)
    ]
    resized = [plane.resize((width, height), filter) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized], axis=2)

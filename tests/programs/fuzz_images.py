"""Damaged image files: pixels or a DecodeError with the file's name, never anything else."""

import numpy as np
from PIL import Image

from dinojax.data.decode import DecodeError, WrongChannels, decode, describe
from tests.support.stored_data import saved


def originals():
    y, x = np.mgrid[0:24, 0:32]
    pixels = np.stack([y * 8 % 256, x * 7 % 256, (x + y) * 4 % 256], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    return [
        saved(image, "JPEG"),
        saved(image, "JPEG", progressive=True),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "PNG"),
        saved(image.quantize(16), "PNG", transparency=3),
        saved(Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 250), "PNG"),
        saved(image.quantize(16), "GIF", **frames),
        saved(image, "WEBP", **frames),
        saved(image, "BMP"),
        saved(image, "PPM"),
        saved(image, "TIFF", compression="tiff_lzw"),
        saved(Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 250), "TIFF"),
    ]


def mutated(data, rng):
    """The file with one to four accidents: flipped bits, cut, moved, doubled or foreign bytes."""
    for _ in range(rng.integers(1, 5)):
        data = bytearray(data)
        if not data:
            return b""
        # Accidents in the header do the most harm.
        place = int(rng.integers(0, min(len(data), 64) if rng.random() < 0.5 else len(data)))
        end = place + int(rng.integers(1, 40))
        kind = rng.integers(0, 6)
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[place:end] = rng.bytes(len(data[place:end]))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place:end]
        elif kind == 4:
            data[place:place] = data[place:end]
        else:
            data[place:end] = bytes([int(rng.choice([0, 255]))]) * len(data[place:end])
    return bytes(data)


def fault(data, name, channels, box_size) -> tuple[bool, str]:
    """(whether a damaged file decodes, what is wrong with how it was taken; empty if nothing)."""
    try:
        pixels = decode(data, name=name, channels=channels, box_size=box_size)
    except WrongChannels as error:  # one bit of a header may make another kind of image
        told = str(error).startswith(f"{name} has {error.found} channels (")
        return False, "" if told else f"a message without name or number: {error}"
    except DecodeError as error:
        told = str(error).startswith(f"cannot decode {name}: ") and len(str(error)) > 20
        return False, "" if told else f"a message without name or reason: {error}"
    except Exception as error:
        return False, f"uncaught {type(error).__name__}: {error}"
    if pixels.dtype != np.uint8 or pixels.shape[2] != channels or not pixels.size:
        return True, f"pixels {pixels.dtype} {pixels.shape} for {channels} channels"
    if box_size is not None and max(pixels.shape[:2]) > box_size:
        return True, f"pixels {pixels.shape} beyond the box of {box_size}"
    return True, "" if describe(data) else "decoded, but not described"


def fuzz(seed: int, count: int, progress=lambda done, faults: None) -> dict:
    """{"decoded", "refused": numbers, "faults": list of texts} of `count` mutated files."""
    rng, files, decoded, faults = np.random.default_rng(seed), originals(), 0, []
    for number in range(count):
        data = mutated(files[number % len(files)], rng)
        channels, box_size = int(rng.choice([1, 3])), rng.choice([None, 16])
        good, wrong = fault(data, f"x/{number}.img", channels, box_size)
        decoded += good
        faults += [f"image {number} of seed {seed}: {wrong}"] if wrong else []
        progress(number + 1, faults)
    return {"decoded": decoded, "refused": count - decoded, "faults": faults}

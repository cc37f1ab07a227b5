"""Damaged image files: pixels or a DecodeError with the file's name, never anything else."""

import numpy as np
import pytest
from PIL import Image

from dinojax.data.decode import DecodeError, decode, describe
from tests.stored_data import saved


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


def fuzz(seed, count):
    """How many of `count` mutated files still decode; asserts what must hold for each."""
    rng, files, decoded = np.random.default_rng(seed), originals(), 0
    for number in range(count):
        data = mutated(files[number % len(files)], rng)
        channels, box_size = int(rng.choice([1, 3])), rng.choice([None, 16])
        name = f"x/{number}.img"
        try:
            pixels = decode(data, name=name, channels=channels, box_size=box_size)
        except DecodeError as error:
            assert str(error).startswith(f"cannot decode {name}: ") and len(str(error)) > 20
            continue
        decoded += 1
        assert pixels.dtype == np.uint8 and pixels.shape[2] == channels and pixels.size
        assert box_size is None or max(pixels.shape[:2]) <= box_size
        assert describe(data)
    return decoded


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd metadata; a run goes on
def test_a_hundred_and_twenty_damaged_files():
    assert 20 < fuzz(0, 120) < 100  # neither all harmless nor all beyond repair


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_three_thousand_damaged_files():
    assert 500 < fuzz(1, 3000) < 2500


@pytest.mark.filterwarnings("ignore")
def test_originals_decode():
    for data in originals():
        assert decode(data, name="a", channels=3).shape == (24, 32, 3)

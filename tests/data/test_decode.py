"""Decoding against Pillow's own conversions, and errors that name the file."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from dinojax.data.decode import (
    DecodeError,
    decode,
    describe,
    fit_into_box,
    fitted_size,
    resize_pixels,
)


def photograph(height, width, channels=3):
    """Smooth enough for JPEG, different in every channel."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / (9 + c) + y / (14 - c)) for c in range(channels)]
    return np.round(np.stack(waves, axis=-1)).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    squeezed = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return saved(Image.fromarray(squeezed), kind, **options)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_rgb_comes_back_as_stored():
    pixels = photograph(7, 11)
    np.testing.assert_array_equal(decode(encoded(pixels), name="a", channels=3), pixels)


def test_any_image_can_be_read_as_grey():
    pixels = photograph(7, 11)
    want = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    np.testing.assert_array_equal(decode(encoded(pixels), name="a", channels=1), want)


def test_grey_read_as_rgb_has_three_equal_channels():
    pixels = photograph(7, 11, channels=1)
    got = decode(encoded(pixels), name="a", channels=3)
    np.testing.assert_array_equal(got, np.repeat(pixels, 3, axis=2))


def test_sixteen_bit_grey_is_scaled_to_eight():
    values = np.array([[0, 128, 129, 257, 65535 - 129, 65535]], np.uint16)
    got = decode(encoded(values), name="a", channels=1)
    np.testing.assert_array_equal(got[0, :, 0], [0, 0, 1, 1, 254, 255])


def test_palette_with_transparency_reads_as_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    data = saved(image, "PNG", transparency=b"\x00\x80")
    np.testing.assert_array_equal(
        decode(data, name="a", channels=3)[0], [[10, 20, 30], [200, 100, 50]]
    )


def test_orientation_tag_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    data = encoded(photograph(8, 16), "JPEG", exif=exif)
    assert decode(data, name="a", channels=3).shape == (8, 16, 3)


@pytest.mark.parametrize(
    "size, want",
    [((100, 50), (20, 10)), ((33, 100), (7, 20)), ((20, 20), (20, 20)), ((1000, 1), (20, 1))],
)
def test_longer_side_becomes_the_box_and_small_images_stay(size, want):
    assert fitted_size(size, 20) == want


def test_fitting_is_antialiased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(fit_into_box(stripes, 16)[:, 2:-2]) <= 1  # grey, no moire


def test_jpeg_is_decoded_at_reduced_scale_but_not_below_the_box(monkeypatch):
    scales = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def spy(image, mode, size):
        draft(image, mode, size)
        scales.append(image.size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spy)
    pixels = photograph(300, 400)
    data = encoded(pixels, "JPEG", quality=95)
    got = decode(data, name="a", channels=3, box_size=90)
    assert scales == [(100, 75)]
    want = resize_pixels(decode(data, name="a", channels=3), 68, 90)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < 6
    decode(data, name="a", channels=3, box_size=101)
    assert scales[1:] == [(200, 150)]


def test_four_channels_are_resized_without_taking_one_for_transparency():
    pixels = np.dstack([photograph(40, 40), np.zeros((40, 40), np.uint8)])
    got = decode(encoded(pixels), name="a", channels=4, box_size=20)
    np.testing.assert_array_equal(got[:, :, :3], resize_pixels(pixels[:, :, :3], 20, 20))
    assert got.shape == (20, 20, 4)


def test_wrong_channel_count_names_file_found_and_expected():
    with pytest.raises(ValueError, match=r"x/a\.png has 3 channels \(RGB\) but image.channels=4"):
        decode(encoded(photograph(4, 4)), name="x/a.png", channels=4)


def test_truncated_file_is_named():
    data = encoded(photograph(64, 64), "JPEG")
    with pytest.raises(DecodeError, match=r"cannot decode x/a\.jpg: .*[Tt]runcated"):
        decode(data[: len(data) // 2], name="x/a.jpg", channels=3)


@pytest.mark.parametrize(
    "data, reason", [(b"", "the file is empty"), (b"<html>", "it is none of AVIF, BMP")]
)
def test_a_file_that_is_no_image_is_named(data, reason):
    with pytest.raises(DecodeError, match=rf"cannot decode x/a\.jpg: {reason}"):
        decode(data, name="x/a.jpg", channels=3)


@pytest.mark.parametrize(
    "pixels, reason",
    [
        (np.zeros((2, 2), np.float32), "float values have no known range; .*data.value_range="),
        (np.full((2, 2), 70_000, np.int32), "int values have no known range; .*data.value_range="),
    ],
)
def test_pixels_of_unknown_range_are_refused(pixels, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(encoded(pixels, "TIFF"), name="a", channels=1)


COLOR = Image.fromarray(photograph(12, 16))


def legal_kinds():
    """Name -> (file, the RGB pixels it stands for). Legal but rare ways to store an image."""
    first = COLOR.quantize(16)
    frames = {"save_all": True, "append_images": [COLOR.rotate(90)], "duration": 50}
    deep = (np.arange(16 * 12).reshape(12, 16) * 341).astype(np.uint16)
    grey = np.repeat(((deep.astype(int) + 128) // 257)[:, :, None], 3, axis=2)
    clear = COLOR.copy()
    clear.putalpha(0)
    return {
        "cmyk tiff": (saved(COLOR.convert("CMYK"), "TIFF"), np.asarray(COLOR)),
        "palette png": (saved(first, "PNG"), np.asarray(first.convert("RGB"))),
        "palette gif": (saved(first, "GIF"), np.asarray(first.convert("RGB"))),
        "16 bit png": (saved(Image.fromarray(deep), "PNG"), grey),
        "16 bit tiff": (saved(Image.fromarray(deep), "TIFF"), grey),
        "1 bit png": (
            saved(COLOR.convert("1"), "PNG"),
            np.asarray(COLOR.convert("1").convert("RGB")),
        ),
        "grey and alpha": (
            saved(COLOR.convert("LA"), "PNG"),
            np.asarray(COLOR.convert("L").convert("RGB")),
        ),
        "transparent": (saved(clear, "PNG"), np.asarray(COLOR)),
        "animated webp": (saved(COLOR, "WEBP", lossless=True, **frames), np.asarray(COLOR)),
        "animated png": (saved(COLOR, "PNG", **frames), np.asarray(COLOR)),
    }


@pytest.mark.parametrize("kind", sorted(legal_kinds()))
def test_rare_but_legal_files_are_read_right(kind):
    data, want = legal_kinds()[kind]
    got = decode(data, name="a", channels=3)
    np.testing.assert_allclose(got.astype(int), want, atol=1 if "cmyk" in kind else 0)
    grey = np.asarray(Image.fromarray(got).convert("L"))
    if not kind.startswith(("cmyk", "palette")):
        assert np.abs(decode(data, name="a", channels=1)[:, :, 0].astype(int) - grey).max() <= 1
    assert decode(data, name="a", channels=3, box_size=8).shape == (6, 8, 3)


def test_cmyk_jpeg_is_not_inverted():
    data = encoded(np.full((8, 8, 3), (200, 60, 20), np.uint8), "PNG")
    jpeg = saved(Image.open(io.BytesIO(data)).convert("CMYK"), "JPEG", quality=95)
    got = decode(jpeg, name="a", channels=3).reshape(-1, 3)
    assert np.abs(got.mean(axis=0) - (200, 60, 20)).max() < 6


def bad_kinds():
    """Name -> file that must be refused."""
    jpeg, png = encoded(photograph(64, 64), "JPEG"), encoded(photograph(64, 64))
    tiff = encoded(np.zeros((4, 4), np.uint8), "TIFF", compression="tiff_lzw")
    header = bytearray(png)
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2  # width and height
    return {
        "empty": b"",
        "one byte": b"\xff",
        "text": b"<!doctype html><title>404</title>" * 20,
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "truncated png": png[: len(png) // 2],
        "truncated tiff": tiff[: len(tiff) // 2],
        "header only": png[:33],
        "zero width": b"P6\n0 5\n255\n",
        "decompression bomb": bytes(header),
        "another format": b"%PDF-1.4\n" + png,
        "pages of colours": saved(COLOR, "TIFF", save_all=True, append_images=[COLOR]),
        "zeros": bytes(5000),
    }


@pytest.mark.parametrize("kind", sorted(bad_kinds()))
@pytest.mark.parametrize("box_size", [None, 8])
def test_bad_files_are_decode_errors_with_their_name(kind, box_size):
    with pytest.raises(DecodeError, match=r"cannot decode x/a\.jpg: ..."):
        decode(bad_kinds()[kind], name="x/a.jpg", channels=3, box_size=box_size)


def test_colours_that_pillow_cannot_convert_are_decode_errors():
    data = saved(Image.new("LAB", (4, 4)), "TIFF")
    with pytest.raises(DecodeError, match="cannot decode a: conversion from LAB"):
        decode(data, name="a", channels=1)


def test_large_images_below_the_limit_are_read_without_a_word():
    """100 megapixels: half way between Pillow's warning and its refusal."""
    data = saved(Image.new("1", (10_000, 10_000)), "PNG")
    code = (
        "import sys; from dinojax.data.decode import ReadOptions, decode; "
        "data = sys.stdin.buffer.read(); options = ReadOptions(max_pixels=100_000_000); "
        "print(decode(data, name='a', channels=1, box_size=20, options=options).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True)
    assert (done.stdout, done.stderr) == (b"(20, 20, 1)\n", b"")


@pytest.mark.parametrize(
    "data, want",
    [
        (encoded(photograph(4, 4), "JPEG"), "JPEG RGB 8 bit"),
        (saved(COLOR.convert("CMYK"), "JPEG"), "JPEG CMYK 8 bit"),
        (saved(COLOR.convert("1"), "PNG"), "PNG 1 1 bit"),
        (encoded(np.zeros((2, 2), np.uint16)), "PNG I;16 16 bit"),
        (encoded(np.zeros((2, 2), np.uint16), "TIFF"), "TIFF I;16 16 bit"),
        (legal_kinds()["animated webp"][0], "WEBP RGBA 8 bit, animated"),
        (
            saved(COLOR.quantize(4), "GIF", save_all=True, append_images=[COLOR]),
            "GIF P 8 bit, animated",
        ),
    ],
)
def test_a_stored_image_is_described_by_its_header(data, want):
    assert describe(data) == want


def test_what_has_no_header_cannot_be_described():
    with pytest.raises(DecodeError):
        describe(b"<html>")

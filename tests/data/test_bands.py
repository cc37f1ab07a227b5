"""TIFFs and other files of any number of bands and bits: read as stored, or refused by name."""

import importlib
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from dinojax.data.decode import DecodeError, ReadOptions, WrongChannels, decode, describe
from tests.support.stored_data import bands, png16, saved, tiff

tifffile = pytest.importorskip("tifffile")


@pytest.mark.parametrize("how", ["contig", "separate", "pages"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_five_bands_come_back_however_they_are_laid_out(how, compression):
    values = bands(0, num=5, largest=255, dtype=np.uint8)
    got = decode(tiff(values, how, compression=compression), name="a", channels=5)
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("num", [2, 3, 4, 5])
def test_uint16_bands_become_bytes_by_the_range_of_their_type(num):
    values = bands(1, num=num, largest=65_535)
    got = decode(tiff(values), name="a", channels=num)
    np.testing.assert_array_equal(got, (values.astype(int) + 128) // 257)


def test_float_and_signed_bands_become_bytes_by_the_range_that_is_set():
    for dtype in (np.float32, np.float64, np.int16, np.int32, np.uint32, np.float16):
        values = np.linspace(-1000 if np.dtype(dtype).kind != "u" else 0, 3000, 24).astype(dtype)
        data = tiff(values.reshape(4, 3, 2))
        options = ReadOptions(value_range=(0, 2000))
        want = np.floor(np.clip(values.astype(float) / 2000, 0, 1) * 255 + 0.5)
        got = decode(data, name="a", channels=2, options=options)
        np.testing.assert_array_equal(got.ravel(), want)
        if np.dtype(dtype).kind == "u":
            continue
        with pytest.raises(DecodeError, match=r"a: .*data\.value_range.* go from -1000 to 3000"):
            decode(data, name="a", channels=2)


def test_nan_becomes_the_low_end_and_the_rest_stays_right():
    values = np.array([np.nan, 0, 1, np.inf, -np.inf, 0.5], np.float32).reshape(1, 3, 2)
    got = decode(tiff(values), name="a", channels=2, options=ReadOptions(value_range=(0, 1)))
    np.testing.assert_array_equal(got.ravel(), [0, 0, 255, 255, 0, 128])


@pytest.mark.parametrize("how, num", [("contig", 4), ("pages", 3), ("pages", 5), ("contig", 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_bands_that_are_no_colours_are_never_dropped(how, num, channels):
    data = tiff(bands(2, num=num, largest=255, dtype=np.uint8), how)
    if num == channels:
        assert decode(data, name="x/a.tif", channels=channels).shape[2] == num
        return
    with pytest.raises(WrongChannels, match=rf"x/a\.tif has {num} channels .*image.channels={num}"):
        decode(data, name="x/a.tif", channels=channels)


def test_a_fourth_band_of_unknown_meaning_is_a_band_and_not_transparency():
    values = bands(3, num=4, largest=255, dtype=np.uint8)
    infrared = tiff(values, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(decode(infrared, name="a", channels=4), values)
    with pytest.raises(WrongChannels, match="has 4 channels"):
        decode(infrared, name="a", channels=3)
    clear = tiff(values, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(decode(clear, name="a", channels=3), values[:, :, :3])


def test_colours_of_16_bit_keep_their_values_where_a_range_is_set():
    values = bands(4, num=3, largest=3000)
    options = ReadOptions(value_range=(0, 3000))
    want = np.floor(values / 3000 * 255 + 0.5)
    for data in (tiff(values, photometric="rgb"), tiff(values, "separate", photometric="rgb")):
        np.testing.assert_array_equal(decode(data, name="a", channels=3, options=options), want)
    np.testing.assert_array_equal(
        decode(png16(values), name="a", channels=3, options=options), want
    )
    clear = np.dstack([values, values[:, :, 0]])
    np.testing.assert_array_equal(decode(png16(clear), name="a", channels=3, options=options), want)
    grey = decode(png16(values[:, :, :1]), name="a", channels=3, options=options)
    np.testing.assert_array_equal(grey, np.repeat(want[:, :, :1], 3, axis=2))


def test_each_channel_may_have_a_range_of_its_own():
    values = bands(5, num=2, largest=1000)
    options = ReadOptions(value_range=(0, 1000, 500, 600))
    got = decode(tiff(values), name="a", channels=2, options=options)
    np.testing.assert_array_equal(got[..., 0], np.floor(values[..., 0] / 1000 * 255 + 0.5))
    second = np.clip((values[..., 1] - 500.0) / 100, 0, 1)
    np.testing.assert_array_equal(got[..., 1], np.floor(second * 255 + 0.5))
    with pytest.raises(DecodeError, match="has 2 pairs for 3 bands"):
        decode(tiff(bands(5, num=3)), name="a", channels=3, options=options)


def test_bytes_are_taken_as_they_are_whatever_the_range():
    image = Image.fromarray(bands(6, num=3, largest=255, dtype=np.uint8))
    for kind in ("PNG", "TIFF", "BMP"):
        got = decode(
            saved(image, kind), name="a", channels=3, options=ReadOptions(value_range=(0, 9))
        )
        np.testing.assert_array_equal(got, np.asarray(image))


def test_portable_maps_are_read_by_the_range_they_declare_and_by_the_one_that_is_set():
    values = np.array([[0, 2048, 4095]], ">u2")
    data = b"P5 3 1 4095\n" + values.tobytes()
    np.testing.assert_array_equal(decode(data, name="a", channels=1).ravel(), [0, 128, 255])
    set_ = ReadOptions(value_range=(0, 2048))
    got = decode(data, name="a", channels=1, options=set_)
    np.testing.assert_array_equal(got.ravel(), [0, 255, 255])
    color = b"P6 1 1 4095\n" + values.tobytes()
    got = decode(color, name="a", channels=3, options=set_)
    np.testing.assert_array_equal(got.ravel(), [0, 255, 255])


def test_where_white_is_zero_values_are_turned_round_at_every_depth():
    values = np.array([[[0], [65_535], [257]]], np.uint16)
    wide = tiff(values, photometric="miniswhite")
    np.testing.assert_array_equal(decode(wide, name="a", channels=1).ravel(), [255, 0, 254])
    small = tiff((values // 257).astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(decode(small, name="a", channels=1).ravel(), [255, 0, 254])


def test_previews_and_masks_among_the_pages_are_not_bands():
    values = bands(7, num=3, largest=255, dtype=np.uint8)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        small = {"photometric": "rgb", "metadata": None, "subfiletype": 1}
        writer.write(values[::4, ::4], **small)
        writer.write(values, photometric="rgb", metadata=None)
        writer.write(values[::2, ::2], **small)
    np.testing.assert_array_equal(decode(file.getvalue(), name="a", channels=3), values)


def test_pages_that_do_not_go_together_are_refused():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for side in (8, 4):
            writer.write(np.zeros((side, side), np.uint8), metadata=None)
    with pytest.raises(DecodeError, match=r"a: it has 2 pages \(4x4 .*, 8x8 .*a file of its own"):
        decode(file.getvalue(), name="a", channels=1)
    colour = Image.fromarray(bands(8, num=3, largest=255, dtype=np.uint8))
    document = saved(colour, "TIFF", save_all=True, append_images=[colour])
    with pytest.raises(DecodeError, match="it has 2 pages"):
        decode(document, name="a", channels=3)


def test_images_that_the_list_of_pages_does_not_hold_are_not_dropped():
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((5, 8, 8), np.uint8), photometric="minisblack", truncate=True)
    with pytest.raises(DecodeError, match="its text tells of more images"):
        decode(file.getvalue(), name="a", channels=1)


def test_without_tifffile_bands_are_still_counted_and_the_package_is_named(monkeypatch):
    real = importlib.import_module

    def missing(name, *args):
        if name in ("tifffile", "imagecodecs"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    data = tiff(bands(9, num=5, largest=255, dtype=np.uint8))
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(WrongChannels, match="has 5 channels"):
        decode(data, name="a", channels=3)
    with pytest.raises(DecodeError, match=r"tifffile; run: pip install 'dinojax\[tiff\]'"):
        decode(data, name="a", channels=5)


@pytest.mark.parametrize(
    "data, want",
    [
        (tiff(bands(0, num=5)), "TIFF 5 bands 16 bit"),
        (tiff(bands(0, num=4, largest=255, dtype=np.uint8), "pages"), "TIFF 4 bands 8 bit"),
        (tiff(np.zeros((4, 4, 2), np.float32)), "TIFF 2 bands float 32 bit"),
        (png16(bands(0, num=3)), "PNG RGB 16 bit"),
        (b"P5 1 1 4095\n\0\0", "PPM I 12 bit"),
    ],
)
def test_bands_and_bits_are_described_as_stored(data, want):
    assert describe(data) == want


def bomb(kind):
    """A file of some hundred bytes that declares 13,300 x 13,300 pixels."""
    data = bytearray(saved(Image.new("L", (8, 8)), kind))
    if kind == "PNG":
        data[16:24] = (13_300).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    elif kind == "BMP":
        data[18:26] = (13_300).to_bytes(4, "little") * 2
    elif kind == "GIF":
        data[6:10] = (13_300).to_bytes(2, "little") * 2
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = (13_300).to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG"])
def test_a_small_file_that_declares_many_pixels_is_refused_by_its_header(kind):
    with pytest.raises(
        DecodeError, match=r"x/a: .*13300x13300 pixels; data\.max_pixels=67,108,864"
    ):
        decode(bomb(kind), name="x/a", channels=1)


def test_the_limit_of_pixels_holds_for_tiffs_and_counts_wide_pixels_as_more():
    values = bands(0, size=(10, 10), num=8)  # 16 bytes a pixel: as 400 pixels of 4
    data = tiff(values)
    limit = ReadOptions(max_pixels=400)
    assert decode(data, name="a", channels=8, options=limit).shape == (10, 10, 8)
    with pytest.raises(DecodeError, match=r"count as 400 for their 16 bytes each; data.max_pixels"):
        decode(data, name="a", channels=8, options=ReadOptions(max_pixels=399))
    tiled = tiff(bands(0, size=(10, 10), num=1), tile=(256, 256))
    with pytest.raises(DecodeError, match="it has 256x256 pixels"):
        decode(tiled, name="a", channels=1, options=limit)


def test_avif_is_read():
    image = Image.fromarray(np.full((16, 16, 3), 200, np.uint8))
    got = decode(saved(image, "AVIF", quality=100), name="a", channels=3)
    assert got.shape == (16, 16, 3) and np.abs(got.astype(int) - 200).max() < 4


def test_heic_is_read_with_its_package():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(np.full((16, 16, 3), 200, np.uint8))).save(file, quality=100)
    got = decode(file.getvalue(), name="a", channels=3)
    assert got.shape == (16, 16, 3) and np.abs(got.astype(int) - 200).max() < 4

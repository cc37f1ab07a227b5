"""What is told of values above 8 bits, of files that are left out, and of small data sets."""

import numpy as np
import pytest

from dinojax import config
from dinojax.cli import main
from dinojax.data.folder import folder
from dinojax.data.header import ReadOptions
from dinojax.data.mixture import Mixture, Part
from dinojax.data.ranges import batch_notes, range_notes
from tests.support.stored_data import bands, png, png16, saved, tiff


def stored(root, files):
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def opened(root, channels=3, **options):
    return folder(path=str(root), channels=channels, options=ReadOptions(**options))


@pytest.mark.parametrize("num", [1, 3])
def test_a_small_part_of_16_bits_is_told_with_the_levels_left_and_the_move(tmp_path, num):
    values = bands(0, num=num, largest=3000)
    values[0, 0], values[0, 1] = 0, 3000
    root = stored(tmp_path, {"0.png": png16(values), "1.png": png16(values // 2)})
    (note,) = range_notes(opened(root))
    assert "values 0 to 3000 in the images seen; 0 to 65535 become 0 to 255" in note
    assert f"{12 if num == 3 else 13} of 256 levels left" in note or "1" in note
    assert "--set 'data.value_range=(0, 3000)' keeps more" in note
    (note,) = range_notes(opened(root, value_range=(0, 2000)))
    assert "0 to 2000 become 0 to 255: 256 of 256 levels left" in note
    assert "% of the values beyond them" in note and "--set" not in note


def test_few_levels_of_the_whole_range_have_no_move(tmp_path):
    values = np.zeros((8, 8, 3), np.uint16)
    values[0] = 65535
    (note,) = range_notes(opened(stored(tmp_path, {"0.png": png16(values)})))
    assert "2 of 256 levels left" in note and "--set" not in note


def test_images_of_8_bits_need_no_note_and_a_range_for_them_is_told_to_be_in_vain(tmp_path):
    root = stored(tmp_path, {"0.png": png(0)})
    assert range_notes(opened(root)) == []
    (note,) = range_notes(opened(root, value_range=(0, 9)))
    assert "no image seen has more than 8 bits: nothing reads it" in note


def test_each_source_of_a_mixture_has_its_own_range(tmp_path):
    pytest.importorskip("tifffile")
    for name, largest in {"ct": 4000, "s2": 10_000}.items():
        values = bands(0, num=2, largest=largest)
        values[0, 0] = largest
        stored(tmp_path / name, {"0.tif": tiff(values)})
    rows = "(('ct','folder','ct',1,0), ('s2','folder','s2',1,0))"
    loaded = config.load(
        "tiny",
        [
            f"data.path={tmp_path}",
            f"data.mixture={rows}",
            "image.channels=2",
            "data.mixture_ranges=(('s2', 0, 10000),)",
            "data.value_range=(0, 4000)",
        ],
    )
    from dinojax.data.sources import open_source

    source = open_source(loaded.data, channels=2)
    notes = range_notes(source)
    assert notes[0].startswith("ct: ") and "0 to 4000 become" in notes[0]
    assert notes[1].startswith("s2: ") and "0 to 10000 become" in notes[1]
    assert [source[i].pixels.max() for i in range(2)] == [255, 255]


@pytest.mark.parametrize(
    "setting, message",
    [
        ("data.value_range=(0, 1, 2)", "has no pairs; give LOW, HIGH"),
        ("data.value_range=(5, 5)", "data.value_range: 5, 5 is not ascending"),
        ("data.value_range=(0, 1, 0, 2)", "has 2 pairs for image.channels=1"),
        ("data.mixture_ranges=(('x', 0, 1),)", "'x' is no source of data.mixture"),
        ("data.max_pixels=0", "data.max_pixels=0 is out of range"),
        ("image.channels=0", "image.channels=0 is out of range"),
    ],
)
def test_ranges_that_mean_nothing_are_refused_by_the_key(setting, message):
    with pytest.raises(config.ConfigError) as caught:
        config.load("tiny", [setting])
    assert message in str(caught.value)


def test_fewer_images_than_one_batch_are_told(tmp_path):
    source = opened(stored(tmp_path, {f"{i}.png": png(i) for i in range(3)}))
    assert batch_notes(source, 3) == []
    (note,) = batch_notes(source, 4)
    assert "3 images are fewer than one batch of 4" in note


def test_damaged_images_do_not_end_the_look_at_ranges(tmp_path):
    root = stored(tmp_path, {"0.png": png16(bands(0, num=3)), "1.tif": b"II*\0" + b"\xff" * 40})
    assert len(range_notes(opened(root))) == 1


def test_check_tells_ranges_files_left_out_and_the_channels_of_a_network(tmp_path, capsys):
    root = stored(tmp_path / "x", {"0.png": png16(bands(0, num=3, largest=3000)), "a.txt": b""})
    assert main.main(["data", "check", str(root), "--config", "tiny"]) == 0
    told = capsys.readouterr().out
    assert "left out          1 other file skipped (.txt 1)" in told
    assert "values            PNG RGB 16 bit: values 0 to 3000" in told.replace("2999", "3000")
    pytest.importorskip("tifffile")
    five = stored(tmp_path / "five", {"0.tif": tiff(bands(0, num=5))})
    assert main.main(["data", "check", str(five), "--config", "tiny"]) == main.REFUSED
    assert "has 5 channels (TIFF 5 bands 16 bit) but image.channels=1; set image.channels=5" in (
        capsys.readouterr().err
    )


def test_colour_operations_need_three_channels_and_say_so(tmp_path, capsys):
    pytest.importorskip("tifffile")
    root = stored(tmp_path / "x", {"0.tif": tiff(bands(0, num=5))})
    sets = ["image.channels=5", "image.normalize=per_crop"]
    args = [word for setting in sets for word in ("--set", setting)]
    out = ["--out", str(tmp_path / "out")]
    assert main.main(["data", "check", str(root), "--config", "vitl16_in1k", *args, *out]) == 2
    told = capsys.readouterr().err
    assert "augment.hue=0.1 needs three colour channels, but image.channels=5" in told


@pytest.mark.parametrize("weights", [(0.0, 0.0), (float("nan"), 1.0), (-1.0, 2.0)])
def test_a_mixture_without_weights_is_refused_in_python_too(tmp_path, weights):
    source = opened(stored(tmp_path, {"0.png": png(0)}))
    parts = tuple(Part(f"p{i}", source, weight, 0.0) for i, weight in enumerate(weights))
    with pytest.raises(ValueError, match="every weight is 0|use a weight of at least 0"):
        Mixture(parts).check()


def test_a_mixture_with_more_than_all_batches_or_twins_is_refused_in_python_too(tmp_path):
    source = opened(stored(tmp_path, {"0.png": png(0)}))
    with pytest.raises(ValueError, match="alone sum to 1.2"):
        Mixture(tuple(Part(f"p{i}", source, 0.0, 0.6) for i in range(2))).check()
    with pytest.raises(ValueError, match="give some, each once"):
        Mixture((Part("p", source, 1.0, 0.0), Part("p", source, 1.0, 0.0))).check()


def test_true_colours_undo_the_normalisation():
    from dinojax.viz.pictures import true_colors

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    normalised = (pixels / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_array_equal(true_colors(normalised, mean, std), pixels)
    np.testing.assert_array_equal(true_colors(normalised, (), ()), normalised)


@pytest.mark.slow
def test_the_crop_sheet_shows_grey_photographs_grey(tmp_path, capsys):
    from PIL import Image

    grey = Image.fromarray(bands(0, size=(64, 64), num=1, largest=255, dtype=np.uint8)[..., 0])
    root = stored(tmp_path / "x", {"0.png": saved(grey, "PNG")})
    sets = {
        "image.channels": 3,
        "image.normalize": "fixed",
        "augment.jitter_rate": 0.0,
        "augment.solarize_rate": 0.0,
    }
    args = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "out"
    assert (
        main.main(["data", "check", str(root), "--config", "tiny", *args, "--out", str(out)]) == 0
    )
    sheet = np.asarray(Image.open(out / "crops.png")).astype(int)
    assert np.ptp(sheet, axis=2).max() <= 1 and sheet.std() > 20

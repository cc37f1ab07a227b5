"""What other libraries' files say about pixels is done, field by field, or refused by the field."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import dinojax
from dinojax.cli.main import main
from dinojax.data.decode import ReadOptions, decode
from dinojax.data.folder import folder
from dinojax.eval.embed import Job, embed
from dinojax.weights import described, processors, transforms
from dinojax.weights.export import export
from dinojax.weights.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from tests.programs import fuzz_preprocess
from tests.support.library_models import needs
from tests.support.networks_small import RELEASED, random_network

# As transformers saves it.
DINOV3 = {
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": True,
    "device": None,
    "disable_grouping": None,
    "do_center_crop": None,
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(IMAGENET_MEAN),
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "image_std": list(IMAGENET_STD),
    "input_data_format": None,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "return_tensors": None,
    "size": {"height": 16, "width": 16},
}
BIT = {"image_processor_type": "BitImageProcessor"}


def image(height=21, width=30, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(tmp_path, processor):
    """A folder of transformers with another processor than its own, and three odd images."""
    export(random_network(RELEASED), tmp_path / "hf", format="hf", certify=False)
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "hf" / "provenance.json").unlink()
    (tmp_path / "images").mkdir()
    for number, (height, width) in enumerate(((21, 30), (40, 23), (9, 9))):
        Image.fromarray(image(height, width)).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "hf", tmp_path / "images"


def test_floats_are_squashed_without_a_cut_as_the_processor_of_dinov3_does():
    pixels = image()
    planes = [
        Image.fromarray(plane).resize((16, 16), Image.Resampling.BILINEAR)
        for plane in np.moveaxis(pixels.astype(np.float32) / 255, 2, 0)
    ]
    want = (np.stack(planes, 2) - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(processors.read(DINOV3, 3)(pixels), want, atol=1e-5)


def test_steps_that_are_off_are_not_taken():
    off = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), False)
    found = processors.read({**BIT, **off}, 3)(image())
    np.testing.assert_array_equal(found, image())
    assert found.dtype == np.float32
    found = processors.read({**DINOV3, "do_normalize": False, "do_resize": False}, 3)(image())
    np.testing.assert_allclose(found, image() / 255, atol=1e-6)


def test_numbers_stand_for_squares_short_sides_and_all_channels():
    own = processors.read({**DINOV3, "size": 8, "image_mean": 0.5, "image_std": 0.25}, 3)
    assert own.out_size == (8, 8) and own.mean == (0.5,) * 3 and own.std == (0.25,) * 3
    own = processors.read({**BIT, "size": 24, "crop_size": 16}, 3)
    assert (own.rule, own.resize_size, own.crop_size) == ("short", 24, 16)
    own = processors.read({**BIT, "crop_size": {"height": 16, "width": 20}}, 3)
    assert own(image()).shape == (16, 20, 3)


def test_a_convnext_processor_cuts_small_sizes_and_squashes_large_ones():
    name = {"image_processor_type": "ConvNextImageProcessor"}
    own = processors.read({**name, "size": {"shortest_edge": 224}, "crop_pct": 0.9}, 3)
    assert (own.rule, own.resize_size, own.crop_size) == ("short", 248, 224)
    own = processors.read({**name, "size": {"shortest_edge": 384}}, 3)
    assert own.rule == "exact" and own.out_size == (384, 384)


REFUSED = [
    ({"resample": 5}, r"resample=5; resized is with 0 \(nearest\)"),
    ({"size": {"longest_edge": 8}}, r"size=\{'longest_edge': 8\}; no way to resize"),
    ({"size": {"height": 8, "width": 0}}, "size=.*; 0 is no number of pixels"),
    ({"size": {"height": 8, "width": 10**10}}, "size=.*; 10000000000 is no number of pixels"),
    ({"size": None}, "size=None; it must be a number, a pair or a dictionary"),
    ({"do_resize": "yes"}, "do_resize='yes'; it must be true or false"),
    ({"rescale_factor": float("nan")}, "rescale_factor=nan; it must be a finite positive"),
    ({"rescale_factor": 10**400}, "rescale_factor=1000.*; it must be a finite positive"),
    ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\]; 2 values"),
    ({"image_mean": 10**400}, "image_mean=1000.*; it must be finite"),
    ({"image_std": 0}, "image_std=0; it must be above 0"),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 8}}, "crop_size=.*height and width"),
    ({"do_rescale": False}, "do_rescale=False; this class normalises only"),
    ({"do_pad": True}, "do_pad=True; DINOv3ViTImageProcessor pads nothing"),
    ({"do_grayscale": True}, "do_grayscale=True; unknown, and it may change pixels"),
    ({"image_processor_type": "SegformerImageProcessor"}, "='SegformerImageProcessor'; read are"),
]


@pytest.mark.parametrize("change, reason", REFUSED)
def test_a_field_that_is_not_known_or_not_right_is_refused_by_name(change, reason):
    with pytest.raises(ValueError, match=f"preprocessor_config.json has .*{reason}"):
        processors.read({**DINOV3, **change}, 3)


def test_one_channel_is_not_made_three():
    with pytest.raises(ValueError, match="do_convert_rgb=True; the weights take 1 channels"):
        processors.read({**BIT, "image_mean": 0.5, "image_std": 0.5}, 1)


def timm(**fields):
    return {"architecture": "vit_small_patch16_224", "pretrained_cfg": fields}


def test_timm_rounds_down_and_squashes_or_adds_borders():
    own, _ = transforms.read(timm(input_size=[3, 224, 224], crop_pct=0.9), 3)
    assert (own.rule, own.resize_size, own.crop_size) == ("short", 248, 224)
    own, _ = transforms.read(timm(input_size=[3, 8, 8], crop_pct=1.0, crop_mode="squash"), 3)
    assert (own.rule, own.resize_size) == ("exact", (8, 8))
    fields = {"input_size": [3, 8, 8], "crop_pct": 1.0, "crop_mode": "border"}
    fields |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    own, _ = transforms.read(timm(**fields), 3)
    found = own(image(5, 10))  # becomes 4 x 8
    np.testing.assert_allclose(found[[0, 1, 6, 7]], (128 / 255 - 0.5) / 0.5, atol=1e-6)


def test_what_timm_does_not_name_has_its_defaults_and_testing_is_told():
    own, notes = transforms.read(timm(test_input_size=[3, 288, 288], test_crop_pct=1.0), 3)
    assert own == Preprocessing(224, 256, "fixed", IMAGENET_MEAN, IMAGENET_STD)
    assert notes == [
        f"{name} is left aside, as timm does without use_test_size"
        for name in ("test_input_size = [3, 288, 288]", "test_crop_pct = 1.0")
    ]


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"crop_mode": "middle"}, "crop_mode='middle'; read are center, squash, border"),
        ({"interpolation": "random"}, "interpolation='random'; read are nearest"),
        ({"input_size": [1, 8, 8]}, r"input_size=\[1, 8, 8\]; the weights take 3 channels"),
        ({"crop_pct": -1}, "crop_pct=-1; it must be a finite positive number"),
        ({"crop_pct": 1e-320}, "crop_pct=1e-320; it leaves inf pixels"),
        ({"input_size": 224, "fixed_input_size": True}, "input_size=224; it must be"),
        (
            {"crop_mode": "border", "mean": [9, 9, 9], "std": 1},
            r"mean=\[9, 9, 9\]; it is the colour",
        ),
        ({"std": [0.5, 0.5, 0]}, r"std=\[0.5, 0.5, 0\]; it must be above 0"),
        ({"crop_border_pixels": 4}, "crop_border_pixels=4; unknown"),
    ],
)
def test_a_field_of_timm_that_is_not_known_or_not_right_is_refused_by_name(fields, reason):
    with pytest.raises(ValueError, match=f"config.json: pretrained_cfg has {reason}"):
        transforms.read(timm(**fields), 3)


def test_every_pair_of_sizes_comes_back_from_timms_share():
    for cut in (1, 7, 96, 224, 518):
        for size in (cut, cut + 1, cut + 37, 3 * cut):
            own = Preprocessing(cut, size, "fixed", IMAGENET_MEAN, IMAGENET_STD)
            assert transforms.read(timm(**transforms.write(own, 3)), 3)[0] == own


def test_per_crop_normalisation_comes_back_from_files_of_both_libraries():
    own = Preprocessing(16, 20, "per_crop", None, None)
    same, _ = processors.expressed(own, 1)
    assert processors.read(processors.write(same, 1), 1) == same and same.normalize == "per_crop"
    config = {**timm(**transforms.write(own, 3)), "normalize": "per_crop"}
    assert transforms.read(config, 3)[0].normalize == "per_crop"


def test_what_a_library_cannot_do_is_refused_before_it_is_written():
    own = Preprocessing(16, (20, 20), "fixed", (0.5,) * 3, (0.5,) * 3, rule="contain")
    with pytest.raises(ValueError, match="--format hf: no image processor does .*rule contain"):
        processors.expressed(own, 3)
    own = Preprocessing(None, 20, "none", None, None)
    with pytest.raises(ValueError, match="--format timm: its transform does not do .*differing"):
        transforms.expressed(own, 3)


def test_a_processor_that_was_edited_is_followed_and_told(tmp_path):
    export(random_network(RELEASED), tmp_path / "hf", format="hf", certify=False)
    path = tmp_path / "hf" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.1, 0.2, 0.3]}))
    backbone = dinojax.load(tmp_path / "hf")
    assert backbone.preprocessing.mean == (0.1, 0.2, 0.3)
    assert "is followed where provenance.json differs: mean (0.1, 0.2, 0.3)" in str(backbone.report)


def test_a_processor_inside_processor_config_goes_first(tmp_path):
    weights, _ = saved(tmp_path, {**DINOV3, "size": 8})
    nested = {"image_processor": DINOV3, "processor_class": "X"}
    (weights / "processor_config.json").write_text(json.dumps(nested))
    assert dinojax.load(weights).preprocessing.out_size == (16, 16)


def test_a_processor_beside_weights_of_the_reference_is_read_too():
    beside = {"config": {}, "provenance": {}}
    found, notes = described.read("meta", 3, processor=DINOV3, **beside)
    assert found == processors.read(DINOV3, 3) and notes == []


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"crop_size": "16"}, "crop_size='16'; it must be a whole number"),
        (
            {"crop_size": None, "resize_size": [8, 9]},
            r"resize_size=\(8, 9\) are 2 sizes; rule=short",
        ),
        ({"mean": ["a"]}, r"mean=\['a'\]; it must be a number, or one per channel"),
        ({"std": [0, 1, 1]}, r"std=\[0, 1, 1\]; it must be above 0"),
        ({"fill": [300]}, r"fill=\[300\]; it must be bytes"),
        ({"rule": "any"}, "rule='any' is unknown"),
        ({"zoom": 2}, "zoom=2; unknown"),
    ],
)
def test_a_field_of_our_own_files_is_judged_as_well(change, reason):
    own = Preprocessing(16, 20, "fixed", IMAGENET_MEAN, IMAGENET_STD).to_json()
    told = {"preprocessing": json.loads(json.dumps(own))}
    beside = {"config": {}, "processor": None}
    assert described.read("meta", 3, provenance=told, **beside)[0].to_json() == own
    with pytest.raises(ValueError, match=f"preprocessing.* ?{reason}"):
        described.read("meta", 3, provenance={"preprocessing": {**own, **change}}, **beside)
    with pytest.raises(ValueError, match="preprocessing=3; it must be an object"):
        described.read("meta", 3, provenance={"preprocessing": 3}, **beside)


def test_images_of_differing_sizes_are_refused_by_embed(tmp_path):
    weights, images = saved(tmp_path, {**DINOV3, "size": {"shortest_edge": 16}})
    job = Job(("cls",), "npz", batch_size=3, part_size=3)
    source = folder(path=str(images), channels=3)
    with pytest.raises(ValueError, match="makes images of differing sizes"):
        embed(dinojax.load(weights), source, tmp_path / "out", job, "here")
    assert not (tmp_path / "out").exists()


def test_embed_tells_of_images_that_have_more_than_eight_bits(tmp_path, capsys):
    weights, images = saved(tmp_path, DINOV3)
    deep = (np.arange(300).reshape(15, 20) * 200).astype(np.uint16)
    Image.fromarray(deep).save(images / "deep.png")
    where = ["--weights", str(weights), "--data", str(images), "--out", str(tmp_path / "out")]
    assert main(["embed", *where, "--batch-size", "4"]) == 0
    told = "PNG I;16 16 bit: values 0 to 59800 in the images seen; 0 to 65535 become 0 to 255"
    assert told in capsys.readouterr().out


def test_embed_lays_transparent_images_over_white_where_the_processor_does(tmp_path):
    weights, images = saved(tmp_path, {**DINOV3, "do_convert_rgb": True})
    for path in images.iterdir():
        path.unlink()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(images / "clear.png")
    Image.new("RGB", (16, 16), (255, 255, 255)).save(images / "white.png")
    where = ["--weights", str(weights), "--data", str(images), "--out", str(tmp_path / "out")]
    assert main(["embed", *where, "--outputs", "cls", "--format", "npz"]) == 0
    clear, white = np.load(tmp_path / "out" / "part-00000.npz")["cls"]
    np.testing.assert_array_equal(clear, white)


def test_transparency_is_dropped_or_laid_over_white(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    dropped, white = (
        folder(path=str(tmp_path), channels=3, options=ReadOptions(transparency=how))[0].pixels
        for how in ("drop", "white")
    )
    assert (dropped[0, 0] == white[0, 0]).all() and (dropped[1] == 0).all()
    assert (white[1] == 255).all()


@pytest.mark.parametrize("dtype, full", [("u2", 65_535), ("u1", 255), ("f4", 1)])
@pytest.mark.parametrize("colours", [1, 3])
def test_transparency_of_wide_values_is_that_of_their_type(dtype, full, colours):
    tifffile = pytest.importorskip("tifffile")
    values = np.zeros((8, 8, colours + 1), dtype)
    values[:4, :, :-1], values[:4, :, -1] = full / 5, full
    file = io.BytesIO()
    kind = "rgb" if colours == 3 else "minisblack"
    tifffile.imwrite(file, values, photometric=kind, extrasamples=["unassalpha"])
    options = ReadOptions(value_range=(0, full / 2), transparency="white")
    found = decode(file.getvalue(), name="a", channels=3, options=options)
    assert (found[:4] == (51 if dtype == "u1" else 102)).all()  # bytes have no other range
    assert (found[4:] == 255).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other people's libraries
def test_features_of_a_folder_of_transformers_are_those_of_its_own_processor(tmp_path):
    needs("hf")
    import torch
    from transformers import AutoImageProcessor, AutoModel

    weights, images = saved(tmp_path, DINOV3)
    job = Job(("cls",), "npz", batch_size=3, part_size=3)
    source = folder(path=str(images), channels=3)
    embed(dinojax.load(weights), source, tmp_path / "out", job, "here")
    found = np.load(tmp_path / "out" / "part-00000.npz")["cls"]
    processor = AutoImageProcessor.from_pretrained(weights)
    model = AutoModel.from_pretrained(weights).eval()
    opened = [Image.open(path) for path in sorted(images.iterdir())]
    with torch.inference_mode():
        tokens = model(**processor(opened, return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(found, tokens[:, 0].numpy(), atol=2e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "seed, count", [(0, 40), pytest.param(1, 400, marks=pytest.mark.exhaustive)]
)
def test_pixels_of_random_configurations_are_those_of_the_library(seed, count):
    needs("hf")
    needs("timm")
    found = fuzz_preprocess.fuzz(seed, count)
    assert found["faults"] == []
    assert found["read"] > count // 2

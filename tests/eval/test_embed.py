"""Embedding a folder: the same features whatever the devices, batches, parts and interruptions."""

import contextlib
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from dinojax.data.folder import folder
from dinojax.data.quarantine import TooManyBadImages, read_list
from dinojax.eval.embed import Job, embed
from dinojax.eval.features import EvalTransform
from dinojax.files import drafts
from dinojax.weights.export import export
from dinojax.weights.load import load
from tests.support.networks_small import CONVNEXT, DINOV2_REGISTERS, RELEASED, random_network

NUM = 11


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights") / "own"
    export(random_network(RELEASED), out, format="dinojax", certify=False)
    return load(out)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(NUM):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20 + number, 24, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder(path=str(root), channels=3)


JOB = Job(("cls", "registers", "patches", "layer=-2"), "npz", batch_size=4, part_size=5)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, backbone, images):
    out = tmp_path_factory.mktemp("features") / "out"
    assert embed(backbone, images, out, JOB, "here") == 3
    return out


def parts(out):
    found = [dict(np.load(path)) for path in sorted(out.glob("part-*.npz"))]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def test_features_are_those_of_each_image_alone(embedded, backbone, images):
    found = parts(embedded)
    assert list(found["name"]) == list(images.files.names)
    np.testing.assert_array_equal(found["label"], images.labels)
    own = backbone.preprocessing
    transform = EvalTransform(own.resize_size, own.crop_size, "fixed", own.mean, own.std)
    pixels = np.stack([transform(images[i].pixels) for i in range(NUM)])
    expected, (layer,) = backbone(pixels), backbone.intermediate(pixels, [1])
    np.testing.assert_allclose(found["cls"], expected.cls, atol=1e-5)
    np.testing.assert_allclose(found["registers"], expected.registers, atol=1e-5)
    np.testing.assert_allclose(found["patches"], expected.patches, atol=1e-5)
    tokens = np.concatenate([layer.cls[:, None], layer.registers, layer.patches], axis=1)
    np.testing.assert_allclose(found["layer=-2"], tokens, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [CONVNEXT, DINOV2_REGISTERS], ids=["convnext", "dinov2"])
def test_other_families_are_embedded_too(spec, images, tmp_path):
    export(random_network(spec, size=32), tmp_path / "own", format="dinojax", certify=False)
    backbone = load(tmp_path / "own")
    job = Job(("cls", "patches", "layer=-1"), "npz", batch_size=NUM, part_size=NUM)
    embed(backbone, images, tmp_path / "out", job, "here")
    found = parts(tmp_path / "out")
    own = backbone.preprocessing
    transform = EvalTransform(own.resize_size, own.crop_size, "fixed", own.mean, own.std)
    expected = backbone(np.stack([transform(images[i].pixels) for i in range(NUM)]))
    np.testing.assert_allclose(found["cls"], expected.cls, atol=1e-5)
    np.testing.assert_allclose(found["patches"], expected.patches, atol=1e-5)
    np.testing.assert_allclose(found["layer=-1"][:, 0], expected.cls, atol=1e-5)


def test_a_killed_job_computes_only_what_is_missing(embedded, backbone, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for path in embedded.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / "part-00001.npz").unlink()
    with contextlib.suppress(RuntimeError), drafts.draft(out / "part-00001.npz") as draft:
        half = out / draft.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")  # no process's number
        half.write_bytes(b"half of a part")
        raise RuntimeError
    assert embed(backbone, images, out, JOB, "here") == 1
    for name, array in parts(out).items():
        np.testing.assert_array_equal(array, parts(embedded)[name])
    assert not list(out.glob("*.draft"))
    assert embed(backbone, images, out, JOB, "here") == 0


def test_parts_of_other_settings_are_refused(embedded, backbone, images, tmp_path):
    with pytest.raises(ValueError, match="was begun otherwise .weights: 'here' there, 'there'"):
        embed(backbone, images, embedded, JOB, "there")
    other = dataclasses.replace(JOB, outputs=("cls",))
    with pytest.raises(ValueError, match="was begun otherwise .outputs"):
        embed(backbone, images, embedded, other, "here")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty and holds no index.json"):
        embed(backbone, images, tmp_path, JOB, "here")


def test_parquet_holds_the_same_with_shapes(embedded, backbone, images, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    job = Job(("cls", "patches"), "parquet", batch_size=4, part_size=NUM)
    embed(backbone, images, tmp_path / "out", job, "here")
    table = parquet.read_table(tmp_path / "out" / "part-00000.parquet")
    assert table.column("name").to_pylist() == list(images.files.names)
    shape = json.loads(table.schema.field("patches").metadata[b"shape"])
    patches = np.asarray(table.column("patches").to_pylist(), np.float32).reshape(NUM, *shape)
    np.testing.assert_allclose(patches, parts(embedded)["patches"], atol=1e-5)


@pytest.mark.parametrize("outputs", [(), ("cls", "cls"), ("tokens",), ("layer=x",)])
def test_unknown_outputs_are_refused(outputs):
    with pytest.raises(ValueError, match="give some of cls, registers, patches"):
        Job(outputs, "npz", 1, 1)


def test_a_layer_that_is_not_there_and_unknown_statistics_are_refused(backbone, images, tmp_path):
    with pytest.raises(ValueError, match="has blocks 0 to 2"):
        embed(backbone, images, tmp_path / "a", Job(("layer=3",), "npz", 1, 1), "here")
    own = dataclasses.replace(backbone.preprocessing, mean=None)
    bare = dataclasses.replace(backbone, preprocessing=own)
    with pytest.raises(ValueError, match="without mean and std of their 3 channels"):
        embed(bare, images, tmp_path / "b", JOB, "here")
    with pytest.raises(ValueError, match="--format csv is unknown"):
        Job(("cls",), "csv", 1, 1)


def test_images_that_cannot_be_read_are_left_out_counted_and_listed(
    embedded, backbone, images, tmp_path, capsys
):
    root = tmp_path / "images"
    shutil.copytree(images.files.root, root)
    names = list(images.files.names)
    bad = [0, 6, 7, 8, 9]  # the whole of one batch among them
    for index in bad:
        (root / names[index]).write_bytes(b"broken")
    source = folder(path=str(root), channels=3)
    assert embed(backbone, source, tmp_path / "out", JOB, "here") == 3
    kept = [index for index in range(NUM) if index not in bad]
    for name, array in parts(tmp_path / "out").items():
        np.testing.assert_array_equal(array, parts(embedded)[name][kept])
    rows = read_list(tmp_path / "out" / "bad_images.jsonl")
    assert [row["id"] for row in rows] == bad and "cannot decode" in rows[0]["reason"]
    strict = dataclasses.replace(JOB, max_bad_share=0.0)
    with pytest.raises(TooManyBadImages, match="left out: 1 of 5 images cannot be read, more than"):
        embed(backbone, source, tmp_path / "strict", strict, "here")
    assert [row["id"] for row in read_list(tmp_path / "strict" / "bad_images.jsonl")] == [0]


def test_a_part_without_any_readable_image_has_no_rows(backbone, images, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(images.files.root, root)
    for name in images.files.names[:5]:
        (root / name).write_bytes(b"broken")
    embed(backbone, folder(path=str(root), channels=3), tmp_path / "out", JOB, "here")
    with np.load(tmp_path / "out" / "part-00000.npz") as first:
        assert first["cls"].shape == (0, 16)
        assert first["name"].shape == first["label"].shape == (0,)
    assert len(parts(tmp_path / "out")["name"]) == NUM - 5

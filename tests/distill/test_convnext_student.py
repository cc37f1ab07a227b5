"""A ConvNeXt that a frozen ViT teaches: one grid of patches, and the same step everywhere."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dinojax.augment.views import Views, reduced
from dinojax.config import ConfigError
from dinojax.data import tiles
from dinojax.eval.evaluate import evaluate
from dinojax.losses.ibot import masked_patches
from dinojax.models.convnext import ConvNextSpec
from dinojax.ops import rng
from dinojax.runs.scalars import read_metrics
from dinojax.train import initialize
from dinojax.train import loop as training
from dinojax.train.batch_types import Inputs
from dinojax.weights import run as convert
from dinojax.weights.export import export
from tests.support import small
from tests.support.networks_small import RELEASED, random_network

B, V, SIDE, CELL = 4, 2, 64, 32  # images, images of a group, pixels of a crop and of a patch
NUM = (SIDE // CELL) ** 2  # patches of a crop
NOW = {"teacher_temperature": 0.07, "local_weight": 1.0}


# A student of one teacher with the ConvNeXt: it sees the same crops reduced.
BESIDE = (
    *("model.name=vits", "model.patch_size=16", "model.width=16", "model.num_heads=2"),
    *("crops.patch_size=32", "optim.layer_decay=0.9"),
)


@pytest.fixture(scope="module", params=[(), BESIDE], ids=["convnext", "vit"])
def at(request):
    """A student and its teacher whose blocks do nothing: a patch depends on its own pixels alone.

    run: views -> the patches [U, M, ...] of both at the masked places; seen: the student's crops of
    those that are cut.
    """
    built = small.convnext("mesh.devices=1", "batch_size=4", "model.drop_path=0.0", *request.param)
    reduction = built.step.view_spec.reduction
    objective = built.step.objective
    draws = [rng.group_keys(jax.random.key(0), name, B // V) for name in ("drop", "rope")]

    def patches(student, teacher, views):
        inputs = Inputs(views, *draws)
        whole, _ = objective._student_features(student["backbone"], inputs)
        own = masked_patches(whole.patches, views.masks_BGP, views.masked_UM)
        return own, objective.teacher_outputs(teacher, None, inputs).ibot_UMZ

    student = silent(small.numbers(built).student)
    teacher = silent(small.teacher_numbers(built))
    compiled = jax.jit(patches, compiler_options=small.FAST)
    return SimpleNamespace(
        run=lambda views: compiled(student, teacher, views),
        seen=lambda crops: halved(crops) if reduction == 2 else crops,
    )


def silent(params: dict) -> dict:
    """Blocks whose branches are multiplied by 0."""

    def scale(path, leaf):
        return jnp.zeros_like(leaf) if path[-1].key in ("scale1", "scale2") else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


def views(cut_BGHWC: np.ndarray, student, teacher) -> Views:
    """Every patch is masked. student, teacher: global crops as they are cut -> as it sees them."""
    masks = np.ones((B, 2, NUM), bool)
    places = np.broadcast_to(np.arange(V * 2 * NUM), (B // V, V * 2 * NUM))
    return Views(
        global_BGHWC=student(cut_BGHWC),
        local_BLHWC=np.zeros((B, 1, CELL, CELL, 1), np.float32),
        gram_BGHWC=None,
        masks_BGP=masks,
        masked_UM=places.astype(np.int32),
        mask_weights_UM=np.full(places.shape, 1 / NUM, np.float32),
        teacher_BGHWC=teacher(cut_BGHWC),
    )


def halved(global_BGHWC):
    flat = reduced(global_BGHWC.reshape(-1, SIDE, SIDE, 1), 2)
    return np.asarray(flat).reshape(B, 2, SIDE // 2, SIDE // 2, 1)


def moved(at, teacher) -> list[list[set[int]]]:
    """For each cell of the grid, the patches of student and teacher that see what is inside it.

    Image number i has other pixels inside cell number i of its second crop: all but the border of
    the cell, which a reduction blends with its neighbours.
    """
    plain = np.random.default_rng(0).normal(size=(B, 2, SIDE, SIDE, 1)).astype(np.float32)
    changed = plain.copy()
    for cell in range(NUM):
        top, left = CELL * (cell // 2), CELL * (cell % 2)
        inside = slice(top + 1, top + CELL - 1), slice(left + 1, left + CELL - 1)
        changed[cell, 1, *inside] *= -1.0
    found = []
    for before, after in zip(
        *(at.run(views(crops, at.seen, teacher)) for crops in (plain, changed)), strict=True
    ):
        differs = np.abs(np.asarray(before) - np.asarray(after)).max(axis=-1) > 1e-4
        differs = differs.reshape(B, 2, NUM)
        assert not differs[:, 0].any(), "the other crop"
        found.append([set(np.flatnonzero(row).tolist()) for row in differs[:, 1]])
    return found


OWN = [{cell} for cell in range(NUM)]


def test_student_and_teacher_see_the_same_pixels_in_the_same_patch(at):
    assert moved(at, halved) == [OWN, OWN]


@pytest.mark.parametrize(
    "plant",
    [
        lambda crops: np.roll(halved(crops), CELL // 2, axis=2),
        lambda crops: np.roll(halved(crops), CELL // 2, axis=3),
        lambda crops: np.roll(halved(crops), 4, axis=3),
        lambda crops: np.swapaxes(halved(crops), 2, 3),
        lambda crops: halved(crops)[:, :, :, ::-1],
    ],
    ids=["a row lower", "a column further", "a few pixels", "transposed", "mirrored"],
)
def test_a_planted_misalignment_is_seen(at, plant):
    student, teacher = moved(at, plant)
    assert student == OWN and teacher != OWN


def test_a_teacher_of_unreduced_crops_is_refused(at):
    """As the reference's: its 4 x 4 patches would be picked with places in a grid of 2 x 2."""
    crops = np.zeros((B, 2, SIDE, SIDE, 1), np.float32)
    with pytest.raises(ValueError, match="4 x 4 patches of a global crop.*masks have 2 x 2"):
        at.run(views(crops, at.seen, lambda crops: crops))


def test_reduced_crops_are_weighted_means_of_their_own_pixels():
    """A slow triangle filter: weight 1 - d / f at d pixels from the centre, those inside only."""
    crops = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    for factor in (2, 3):
        size = 12 // factor
        weights = np.zeros((size, 12))
        for new in range(size):
            for old in range(12):
                distance = abs((old + 0.5) - (new + 0.5) * factor)
                weights[new, old] = max(0.0, 1.0 - distance / factor)
            weights[new] /= weights[new].sum()
        want = np.einsum("yh,xw,bhwc->byxc", weights, weights, crops.astype(np.float64))
        got = np.asarray(jax.jit(reduced, static_argnums=1)(crops, factor))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
        if factor == 2:
            np.testing.assert_allclose(weights[1, :6], np.array([0, 1, 3, 3, 1, 0]) / 8)
    flat = np.asarray(reduced(np.full((1, 8, 8, 1), 7.0, np.float32), 2))
    np.testing.assert_allclose(flat, 7.0, rtol=1e-6)


@pytest.fixture(scope="module")
def places():
    """The step on one device, and on eight with sharded weights and micro-batches."""
    found = []
    for devices, strategy, parts in ((1, "dp", 1), (8, "hsdp", 2)):
        keys = (f"mesh.devices={devices}", f"mesh.strategy={strategy}", f"accumulate={parts}")
        built = small.convnext(*keys, "batch_size=32", "model.drop_path=0.3")
        found.append(small.compiled_program(built, small.teacher_numbers(built)))
    return found


@pytest.mark.slow
def test_no_place_changes_the_step_of_a_convnext(places):
    one, eight = places
    (state, seen), (there, recorded) = one(), eight()
    small.assert_close(recorded, seen)
    small.assert_close(there, state)
    assert not small.same(state.student, small.numbers(one.program).student)
    zero = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(seen["grads"])
        if not np.max(np.abs(grad)) > 1e-9
    ]
    assert not zero, "without a gradient"


@pytest.mark.slow
def test_of_a_sharded_convnext_only_weights_travel_whole(places):
    eight = places[1]
    student = eight.program.abstract_state().student
    kernel = student["backbone"]["stages_2"]["pwconv1"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 32 // 4, 128)
    params = {small.sides(leaf.shape) for leaf in jax.tree.leaves((student, *eight.teacher))}
    stages = [tree for name, tree in student["backbone"].items() if name.startswith("stages")]
    blocks = jax.tree.leaves((stages, eight.teacher[0]["backbone"]["blocks"]))
    params |= {small.travelling(leaf, whole=True) for leaf in blocks}  # one at a time
    between = [tree for name, tree in student["backbone"].items() if name.startswith("downsample")]
    convolutions = jax.tree.leaves(between)
    params |= {small.travelling(leaf, whole=True, stacked=False) for leaf in convolutions}
    gathered = [found for name, found in small.collectives(eight.step) if name == "all-gather"]
    assert gathered
    assert {shape for found in gathered for shape in found} <= params


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The directory of a run of a ViT with patches of 16 pixels."""
    directory = tmp_path_factory.mktemp("teacher") / "run"
    small.saved_run(directory, "model.patch_size=16", "dino_head.hidden=40")
    return directory


@pytest.mark.slow
def test_a_convnext_is_distilled_measured_and_exported(teacher, tmp_path, monkeypatch, capsys):
    """From a run to files of transformers and timm, which are proven where those are installed."""
    monkeypatch.setattr(tiles, "SPLITS", dict.fromkeys(tiles.SPLITS, 64))
    own = ("batch_size=8", "mesh.devices=1", "log.pictures=True", "log.every=1")
    looks = ("knn.every=2", "knn.mosaics=2", "knn.batch_size=32")
    run = tmp_path / "run"
    config = small.config(*small.CONVNEXT, *own, *looks, f"distill.teacher={teacher}")
    state = training.train(config, run)
    seen = {name for row in read_metrics(run / "metrics.jsonl") for name in row}
    assert {"knn/both", "dense/mosaic", "locality", "ibot", "probe/drift"} <= seen
    with Image.open(run / "pictures/crops.png") as sheet:  # two global, a local, two of the teacher
        assert sheet.size[0] == 2 * 64 + 32 + 2 * 32 + 6 * 4
    evaluate("knn", run, (), None)
    assert "step 2, 64 images in the bank" in capsys.readouterr().out
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 1)).astype(np.float32)
    ema = convert.load(run)
    assert small.same(ema.params, state.ema["backbone"])
    for name in ("hf", "timm"):
        export(convert.network_of_run(run), tmp_path / name, format=name)
        small.assert_close(convert.load(tmp_path / name)(images), ema(images))


def test_a_convnext_starts_from_weights_of_its_own_shape_only(teacher, tmp_path):
    shapes = {
        "same": ConvNextSpec((1,) * 4, (8, 16, 32, 64), channels=1),
        "deeper": ConvNextSpec((1, 2, 1, 1), (8, 16, 32, 64), channels=1),
        "vit": RELEASED,
    }
    given = (*small.CONVNEXT, f"distill.teacher={teacher}", "start.heads=new")
    for name, spec in shapes.items():
        export(random_network(spec), tmp_path / name, format="dinojax", certify=False)

    def check(name):
        config = small.config(*given, f"start.source={tmp_path / name}")
        initialize.check(config, tmp_path / "run", began=False)

    check("same")
    with pytest.raises(
        ConfigError, match=r"model.depth: \(1, 2, 1, 1\) there, \(1, 1, 1, 1\) here"
    ):
        check("deeper")
    with pytest.raises(ConfigError, match="holds a ViT, but model.name='convnext_tiny' is none"):
        check("vit")

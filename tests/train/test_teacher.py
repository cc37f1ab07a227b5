"""The frozen teacher: where it may come from, what is refused, and that it never changes."""

import jax
import numpy as np
import pytest

from dinojax.config import ConfigError
from dinojax.runs.loss_ranges import loss_ranges
from dinojax.sharding import mesh
from dinojax.train import checks, program
from dinojax.train.teacher import open_teacher
from dinojax.train.teacher_forward import SharedTeacher, for_student
from dinojax.weights import run
from dinojax.weights.export import export
from tests.support import small

PARTS = ("backbone", "dino_head", "ibot_head")


def student(teacher: str, *overrides: str):
    return small.config("distill.enabled=True", f"distill.teacher={teacher}", *overrides)


@pytest.fixture(scope="module")
def teacher_features(tmp_path_factory):
    """A run whose heads are unlike those of the student: (directory, ema)."""
    directory = tmp_path_factory.mktemp("teacher") / "run"
    state = small.saved_run(directory, "model.width=24", "dino_head.hidden=40")
    return directory, jax.tree.map(np.asarray, state.ema)


@pytest.fixture(scope="module")
def exports(teacher_features, tmp_path_factory):
    """Own exports of that run, with heads and without."""
    folder = tmp_path_factory.mktemp("exports")
    network = run.network_of_run(teacher_features[0])
    for name in ("with_heads", "without_heads"):
        export(
            network,
            folder / name,
            format="dinojax",
            with_heads=name == "with_heads",
            certify=False,
        )
    return folder


@pytest.mark.parametrize("what", ["run", "step", "export"])
def test_a_teacher_is_the_same_from_wherever_it_comes(what, teacher_features, exports):
    place = {
        "run": teacher_features[0],
        "step": teacher_features[0] / "checkpoints/pretrain/3",
        "export": exports / "with_heads",
    }[what]
    teacher = open_teacher(student(str(place)))
    assert teacher.networks.dino_head.spec.prototype_norm == "unit"
    assert teacher.networks.dino_head.spec.hidden == 40
    layout = mesh.make("fsdp", 8)
    assert small.same(teacher.load(layout), {part: teacher_features[1][part] for part in PARTS})
    assert small.same(
        teacher.load_prototypes(layout)["ibot_head"]["prototypes"],
        teacher_features[1]["ibot_head"]["prototypes"],
    )
    assert teacher.fingerprint == open_teacher(student(str(teacher_features[0]))).fingerprint


def test_kernels_are_stored_in_the_dtype_they_are_used_in(teacher_features):
    teacher = open_teacher(student(str(teacher_features[0]), "distill.compute=bfloat16"))
    params = teacher.load(mesh.make("dp", 1))
    kernel = params["backbone"]["blocks"]["attn"]["qkv"]["kernel"]
    assert kernel.dtype == np.dtype("bfloat16")
    rest = jax.tree_util.tree_leaves_with_path(params)
    assert all(
        leaf.dtype == np.float32
        for path, leaf in rest
        if path[0].key != "backbone" or path[-1].key != "kernel"
    )


REFUSALS = {
    "": "distill.teacher is empty; set it to a run",
    "/absent": "distill.teacher=/absent does not exist; give a run directory",
    "smoke:nothing": "no recipe nothing; give a file or a run directory, or one of",
    "smoke:vit7b16": "is 4 x 4 patches of model.patch_size=8 to the student and 2 x 2 patches of "
    "16 pixels to the teacher, and no reduction of its crops by a whole number makes the grids "
    "one; use a student of patch_size 16, or a teacher of patch_size 1, 2, 4, 8. Or set "
    "crops.patch_size=16 and sizes of crops that it divides: both then see them reduced.",
    "smoke:vit7b16 crops.patch_size=8": "the grids one; use crops.patch_size=16, or a teacher of "
    "patch_size 1, 2, 4, 8.",
    "smoke:tiny dino_head.prototypes=32": "set dino_head.prototypes=64",
    "smoke:tiny image.normalize=fixed image.mean=0.5, image.std=0.5,": "set that",
    "{exports}/without_heads": "comes without dino_head and ibot_head, and targets are made by "
    "trained heads. Give a run or an export made with --with-heads, or choose distill.targets",
}


@pytest.mark.parametrize("given", REFUSALS)
def test_a_teacher_that_cannot_teach_is_refused_with_what_would(given, exports):
    teacher, *overrides = given.split(" ") if given else [""]
    with pytest.raises(ConfigError) as refused:
        open_teacher(student(teacher.format(exports=exports), *overrides))
    assert REFUSALS[given] in str(refused.value)


RULES = {
    "gram.enabled=True gram.anchor=file": "distill.enabled=True and gram.enabled=True",
    "optim.freeze_backbone=True": "leaves nothing of a student to learn",
    "distill.targets=features until.left_chance=0.1 until.every=1 num_steps=3": (
        "distill.targets='features' has no prototypes to guess"
    ),
    "distill.targets=features losses.centering=softmax": "'features' has none",
}


@pytest.mark.parametrize("keys", RULES)
def test_keys_that_exclude_each_other(keys):
    with pytest.raises(ConfigError, match=RULES[keys]):
        student("smoke:tiny", *keys.split(" "))


def test_crops_of_other_patches_are_for_distillation():
    with pytest.raises(ConfigError, match="crops.patch_size=8 .* but distill.enabled is False"):
        small.config("crops.patch_size=8")


def test_features_need_no_heads_and_projectors_are_as_wide_as_the_teacher(exports):
    config = student(f"{exports}/without_heads", "distill.targets=features")
    objective = program.build_objective(config, images_per_step=2)
    assert objective.is_features
    assert objective.dino_head.spec.bottleneck == 24 and objective.dino_head.spec.prototypes == 0


def test_losses_of_features_lie_between_equal_and_unlike():
    ranges = loss_ranges(student("smoke:tiny", "distill.targets=features").values())
    assert (ranges["dino_local"].floor, ranges["dino_local"].chance) == (0.0, 1.0)
    assert ranges["ibot"].chance == 0.5  # half of the crops have masks
    assert loss_ranges(student("smoke:tiny").values())["dino_local"].chance > 4


def test_a_run_that_had_another_teacher_is_refused():
    checks.check_teacher({"teacher": "a" * 64}, "a" * 64)
    with pytest.raises(ConfigError, match="aaaaaaaaaaaaaaaa then, bbbbbbbbbbbbbbbb now"):
        checks.check_teacher({"teacher": "a" * 64}, "b" * 64)


# -- at work -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(teacher_features):
    """A step on one device that holds the teacher, as one program: (state, scalars) after it."""
    config = student(str(teacher_features[0]), "mesh.devices=1")
    built = program.build(config, mesh.from_section(config.mesh))
    with mesh.use(built.layout):
        state, now = small.numbers(built), built.now(small.STEP)
        return jax.jit(built.step)(state, small.images(built), now, teacher_features[1])


def running(built):
    """The teacher of one student, on its devices."""
    place = built.teacher_forward.layout.sharding("image")
    return SharedTeacher([built.teacher_forward], place)


def features(teacher, built, number, batch):
    """What the student's step takes of the teacher's forward pass."""
    heads = teacher.heads(built.layout)
    return for_student(teacher(0, number, batch), heads, built.layout, is_spread=True)


@pytest.mark.slow
def test_two_programs_on_eight_devices_take_the_step_of_one_program_on_one(
    teacher_features, plain, monkeypatch
):
    """The teacher sharded, the student whole on each device, two micro-batches, on a torus."""
    monkeypatch.setattr(mesh.topology, "arrange", small.twisted)
    places = ("mesh.devices=8", "mesh.strategy=dp", "accumulate=2", "distill.strategy=fsdp")
    config = student(str(teacher_features[0]), *places)
    built = program.build(config, mesh.from_section(config.mesh))
    with mesh.use(built.layout):
        teacher = running(built)
        state, batch = small.numbers(built), small.images(built)
        teacher_features_now = features(teacher, built, small.STEP, batch)
        state, scalars = built.lower().compile()(
            state, batch, built.now(small.STEP), teacher_features_now
        )
    small.assert_close(scalars, plain[1])
    small.assert_close(state, plain[0])


@pytest.mark.slow
def test_features_are_learned_and_the_teacher_is_the_same_after_a_hundred_steps(exports):
    config = student(
        str(exports / "without_heads"),
        *("mesh.devices=1", "distill.targets=features", "batch_size=4"),
    )
    built = program.build(config, mesh.from_section(config.mesh))
    with mesh.use(built.layout):
        teacher = running(built)
        state, batch = small.numbers(built), small.images(built)
        before = jax.tree.map(np.asarray, teacher.params)
        step, totals = built.lower().compile(), []
        now = built.now(small.STEP) | {"lr": np.float32(1e-2)}
        for number in range(small.STEP, small.STEP + 100):
            state, scalars = step(state, batch, now, features(teacher, built, number, batch))
            totals.append(float(scalars["total"]))
    assert small.same(teacher.params, before)
    assert 0 < scalars["dino_global"] < 2 and 0 < scalars["ibot"] < 2
    assert np.mean(totals[-10:]) < 0.9 * np.mean(totals[:10])

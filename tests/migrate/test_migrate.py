"""Files of the reference become recipes: released values come out as ours, and nothing is lost."""

import dataclasses

import pytest
import yaml

from dinojax import config
from dinojax.cli import main
from dinojax.config.recipe import ConfigError
from dinojax.migrate import tables, untranslated
from dinojax.migrate.files import read_yaml
from dinojax.migrate.translate import migrate
from dinojax.train import program

# Values of the released training configurations, with the dead keys they carry; as a mapping from
# dotted keys, in an order of our own.
HEADS = {
    f"{part}.head_{key}": value
    for part in ("dino", "ibot")
    for key, value in {"nlayers": 3, "norm_last_layer": False}.items()
}
DINOV3 = HEADS | {
    "MODEL.META_ARCHITECTURE": "SSLMetaArch",
    "MODEL.DTYPE": "float32",
    "compute_precision.param_dtype": "bf16",
    "compute_precision.reduce_dtype": "fp32",
    "dino.loss_weight": 1.0,
    "dino.global_ignore_diagonal": True,
    "dino.koleo_loss_weight": 0.1,
    "dino.koleo_loss_distributed": False,
    "dino.koleo_topk": 1,
    "dino.koleo_distributed_replicas": 0,
    "dino.force_weight_norm": False,
    "ibot.mask_ratio_min_max": [0.1, 0.5],
    "ibot.separate_head": True,
    "train.saveckp_freq": 20,
    "train.centering": "sinkhorn_knopp",
    "train.compile": True,
    "train.cell_augmentation": False,
    "train.dataset_path": None,
    "student.patch_size": 16,
    "student.layerscale": 1e-5,
    "student.ffn_ratio": 3,
    "student.proj_bias": True,
    "student.pos_embed_rope_base": 100,
    "student.pos_embed_rope_dtype": "fp32",
    "student.pos_embed_rope_normalize_coords": "separate",
    "student.resume_from_teacher_chkpt": "",
    "student.fp8_enabled": True,
    "distillation.enabled": False,
    "distillation.full_cfg_path": "",
    "multidistillation.enabled": False,
    "hrft.enabled": False,
    "optim.scaling_rule": "sqrt_wrt_1024",
    "optim.dino_head_wd_multiplier": 1.0,
    "optim.patch_embed_lr_mult": 0.2,
    "crops.local_crops_number": 8,
    "crops.share_color_jitter": False,
    "crops.global_crops_scale": [0.32, 1.0],
    "checkpointing.max_to_keep": 3,
}
VITL = DINOV3 | {
    "dino.head_n_prototypes": 65_536,
    "ibot.head_hidden_dim": 2048,
    "train.batch_size_per_gpu": 64,
    "train.OFFICIAL_EPOCH_LENGTH": 1250,
    "student.arch": "vit_large",
    "student.drop_path_rate": 0.3,
    "student.norm_layer": "layernorm",
    "student.fp8_enabled": False,
    "teacher.momentum_teacher": 0.992,
    "teacher.warmup_teacher_temp_epochs": 30,
    "optim.epochs": 100,
    "optim.lr": 1e-3,
    "optim.warmup_epochs": 10,
    "optim.layerwise_decay": 0.9,
    "crops.horizontal_flips": True,
    "checkpointing.period": 3750,
}
VIT7B = DINOV3 | {
    "dino.head_n_prototypes": 262_144,
    "dino.head_bottleneck_dim": 512,
    "dino.head_hidden_dim": 8192,
    "ibot.head_n_prototypes": 98_304,
    "ibot.head_bottleneck_dim": 384,
    "ibot.head_hidden_dim": 4096,
    "gram.use_loss": False,
    "gram.compute_stats": False,
    "train.batch_size_per_gpu": 16,
    "train.OFFICIAL_EPOCH_LENGTH": 1000,
    "train.checkpointing": True,
    "student.arch": "vit_7b",
    "student.ffn_layer": "swiglu64",
    "student.qkv_bias": False,
    "student.mask_k_bias": True,
    "student.drop_path_rate": 0.4,
    "student.norm_layer": "layernormbf16",
    "student.n_storage_tokens": 4,
    "student.untie_global_and_local_cls_norm": True,
    "student.pos_embed_rope_rescale_coords": 2,
    "optim.epochs": 1000,
    "optim.lr": None,
    "optim.clip_grad": 30.0,
    "optim.layerwise_decay": 0.98,
    "optim.adamw_beta2": 0.99,
    "crops.global_crops_size": 256,
    "crops.local_crops_size": 112,
    "crops.horizontal_flips": False,
    "checkpointing.period": 1000,
    "checkpointing.keep_every": 50_000,
    **{
        f"schedules.{name}.{key}": value
        for name, values in {
            "lr": (0, 5e-5, 5e-5, 100),
            "weight_decay": (0.04, 0.04, 0.04, 0),
            "teacher_temp": (0.04, 0.07, 0.07, 100),
            "momentum": (0.994, 0.994, 0.994, 0),
        }.items()
        for key, value in zip(("start", "peak", "end", "warmup_epochs"), values, strict=True)
    },
    "schedules.lr.freeze_last_layer_epochs": 5,
}
DINOV2_L = {
    "dino.head_n_prototypes": 131_072,
    "dino.head_bottleneck_dim": 384,
    "ibot.separate_head": True,
    "ibot.head_n_prototypes": 131_072,
    "train.batch_size_per_gpu": 32,
    "train.dataset_path": "ImageNet22k",
    "train.centering": "sinkhorn_knopp",
    "student.arch": "vit_large",
    "student.patch_size": 14,
    "student.drop_path_rate": 0.4,
    "student.ffn_layer": "swiglufused",
    "student.block_chunks": 4,
    "teacher.momentum_teacher": 0.994,
    "optim.epochs": 500,
    "optim.weight_decay_end": 0.2,
    "optim.base_lr": 2e-4,
    "optim.warmup_epochs": 80,
    "optim.layerwise_decay": 1.0,
    "crops.local_crops_size": 98,
}
DINOV2_G = DINOV2_L | {"train.batch_size_per_gpu": 12, "student.arch": "vit_giant2"}

RELEASED = {  # recipe of ours -> file, GPUs of the reference's run, values that may differ
    "vitl16_in1k": (VITL, 32, {"checkpoint.keep_every"}),
    "vit7b16": (VIT7B, 256, {"model.mask_k_bias"}),  # without effect: there is no bias
    "dinov2_vitl14": (DINOV2_L, 96, {"checkpoint.keep_every"}),
    "dinov2_vitg14": (DINOV2_G, 256, {"checkpoint.keep_every", "model.remat"}),
}
OF_THIS_PROJECT = {"data.num_workers"}


def write(path, given):
    tree = {}
    for key, value in given.items():
        *sections, leaf = key.split(".")
        place = tree
        for name in sections:
            place = place.setdefault(name, {})
        place[leaf] = value
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_becomes_our_recipe(name, tmp_path, capsys):
    given, gpus, different = RELEASED[name]
    source, out = write(tmp_path / "theirs.yaml", given), tmp_path / "mine.py"
    arguments = ["config", "migrate", str(source), "--gpus", str(gpus), "--out", str(out)]
    assert main.main(arguments) == main.FINISHED
    assert f"{out}: " in capsys.readouterr().out
    mine, ours = config.load(out), config.load(name)
    changed = {key: values for key, *values in config.diff(mine, ours)}
    for key in different | OF_THIS_PROJECT:
        changed.pop(key, None)
    # What is written out here and None (the network's own) there: the same networks.
    assert changed.keys() <= {"model.ffn", "model.qkv_bias"}
    spec, want = (objective(loaded).backbone.spec for loaded in (mine, ours))
    assert dataclasses.replace(spec, mask_k_bias=False, remat="none") == dataclasses.replace(
        want, mask_k_bias=False, remat="none"
    )


def objective(loaded):
    return program.build_objective(loaded, images_per_step=loaded.group_size)


@pytest.mark.parametrize("name", RELEASED)
def test_every_key_of_a_file_is_accounted_for_once(name):
    given, gpus, _ = RELEASED[name]
    found = migrate(given, gpus=gpus)
    lists = [*found.used, *found.ignored, *found.refused, *found.unknown]
    assert sorted(lists) == sorted(given)
    assert not found.refused and not found.unknown
    assert all(found.ignored.values())


def test_ignored_keys_say_why():
    ignored = migrate(VIT7B, gpus=256).ignored
    assert "computes in bfloat16" in ignored["student.pos_embed_rope_dtype"]
    assert ignored["hrft.enabled"] == ignored["dino.force_weight_norm"] == untranslated.DEAD
    assert "takes its place" in ignored["optim.lr"]
    assert "use_loss is off" in ignored["gram.compute_stats"]


@pytest.mark.parametrize("file", [VIT7B, DINOV2_L])
def test_a_period_of_evaluation_of_0_means_never(file):
    """The references evaluate only where it is positive; ours is a number of steps or None."""
    key = "evaluation.eval_period_iterations"
    assert migrate(file | {key: 0}, gpus=256).values["knn.every"] is None
    assert migrate(file | {key: 77}, gpus=256).values["knn.every"] == 77


def test_the_dtype_of_sums_over_devices_comes_over():
    key = "compute_precision.reduce_dtype"
    released = migrate(VIT7B, gpus=256)
    assert key in released.used and "precision.reduce" not in released.values, "float32, as here"
    assert migrate(VIT7B | {key: "bf16"}, gpus=256).values["precision.reduce"] == "bfloat16"
    assert key in migrate(VIT7B | {key: "fp16"}, gpus=256).refused
    nested = "compute_precision.student.backbone.mixed_precision.reduce_dtype"
    assert "precision.reduce" in migrate(DINOV2_L | {nested: "fp16"}, gpus=96).ignored[nested]


GRAM = {"use_loss": True, "ckpt": "ignore", "rep_update": True, "max_updates": 3}
GRAM |= {"update_frequency": 10_000, "it_first_update": 1_010_000, "it_load_ema_teacher": -1}


def test_a_gram_stage_comes_over_but_for_weights_that_are_not_named():
    gram = GRAM | {"normalized": True, "img_level": True, "remove_only_teacher_neg": True}
    curve = {"start": 0, "peak": 0, "end": 2.0, "warmup_epochs": 0, "cosine_epochs": 1}
    given = VIT7B | {f"gram.{key}": value for key, value in gram.items()}
    given |= {f"gram.loss_weight_schedule.{key}": value for key, value in curve.items()}
    given |= {"crops.gram_teacher_crops_size": 512, "crops.gram_teacher_no_distortions": True}
    found = migrate(given, gpus=256)
    assert sorted(found.refused) == ["gram.ckpt"] and "put their path" in found.refused["gram.ckpt"]
    assert found.values["crops.gram_size"] == 512 and found.values["gram.clip"] == "teacher"
    assert found.values["schedules.gram_weight.end"] == 2.0
    assert found.values["schedules.gram_weight.cosine"] == 1000
    lists = [*found.used, *found.ignored, *found.refused, *found.unknown]
    assert sorted(lists) == sorted(given)


def gram_file(**changes):
    return VIT7B | {f"gram.{key}": value for key, value in (GRAM | changes).items()}


def test_the_anchor_and_its_refreshes_come_over():
    """Both count from the first iteration of the file's run, and a copy follows iteration n - 1."""
    found = migrate(gram_file(ckpt="runs/7b"), gpus=256)
    gram = {k: v for k, v in found.values.items() if k.startswith("gram.")}
    assert not found.refused and gram == {
        "gram.enabled": True,
        "gram.anchor": "runs/7b",
        "gram.per_image": False,
        "gram.refresh_every": 10_000,
        "gram.refresh_from": 1_010_000,
        "gram.max_refreshes": 3,
    }
    late = migrate(gram_file(ckpt="x", it_load_ema_teacher=500, rep_update=False), gpus=256)
    assert (late.values["gram.anchor"], late.values["gram.anchor_step"]) == ("ema", 500)
    assert "gram.refresh_every" not in late.values
    assert "gram.rep_update alone" in late.ignored["gram.update_frequency"]
    plain = migrate(gram_file(ema_teacher=True, ckpt=None, rep_update=False), gpus=256)
    assert plain.values["gram.teacher"] == "ema" and "gram.anchor" not in plain.values


HIGH = {
    "crops.global_crops_size": (512, 768, 768),
    "crops.local_crops_size": (112, 160, 224),
    "crops.gram_teacher_crops_size": (768, 1152, 1152),
    "crops.gram_teacher_no_distortions": True,
    "crops.global_local_crop_pairs_ratios": (0.5, 0.4, 0.1),
}


def test_several_sizes_come_over_with_their_shares(tmp_path, capsys):
    given = gram_file(ckpt="runs/7b", it_first_update=0) | HIGH
    found = migrate(given, gpus=256)
    crops = {k: v for k, v in found.values.items() if "_size" in k and k[0] in "cd" or "more_" in k}
    assert not found.refused and crops == {
        **{"crops.global_size": 512, "crops.local_size": 112, "crops.gram_size": 768},
        **{"crops.more_rates": (0.4, 0.1), "crops.more_global": (768, 768)},
        **{"crops.more_local": (160, 224), "crops.more_gram": (1152, 1152)},
        **{"data.box_size": 1024, "crops.more_box": (1536, 1536)},
    }
    without = migrate(VIT7B | HIGH, gpus=256)  # the Gram loss is off, and so are its crops
    assert "crops.more_gram" not in without.values and not without.refused
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
    source, out = write(tmp_path / "theirs.yaml", listed), tmp_path / "mine.py"
    arguments = ["config", "migrate", str(source), "--gpus", "256", "--out", str(out)]
    assert main.main(arguments) == main.FINISHED
    assert config.load(out).crops.more_local == (160, 224)
    released = listed | {"crops.local_crops_size": [112, 168, 224]}
    assert main.main([*arguments[:2], str(write(source, released)), *arguments[3:]]) == main.REFUSED
    assert "168 is not a multiple of model.patch_size=16; use 160" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distillation.enabled": True}, "distillation.enabled: True: a distillation, which"),
        ({"distillation.enabled": True, "distillation.checkpoint_path": "x"}, "path: 'x': a dist"),
        ({"student.arch": "convnext_tiny"}, "student.arch: 'convnext_tiny' is none of vit_small"),
        ({"student.norm_layer": "batch"}, "student.norm_layer: 'batch' is none of 'layernorm'"),
        ({"crops.global_crops_size": [512, 768]}, "pairs_ratios is 1.0: give as many of each"),
        (
            {key: list(HIGH[key]) for key in (*tables.SIZES.values(), tables.RATIOS)}
            | {"crops.local_crops_size": [112, 160]},
            "crops.local_crops_size: (112, 160), but",
        ),
        ({"crops.global_local_crop_pairs_ratios": [0.5, 0.4]}, "they sum to 0.9, not to 1"),
        ({"gram.use_loss": True}, "gram.ckpt: None stands for the weights of the Gram network"),
        ({"gram.use_loss": True, "gram.ema_teacher": True}, "gram.rep_update: True: with gram.ema"),
        (
            {"gram.use_loss": True, "gram.ema_teacher": True, "gram.ckpt": "x"},
            "gram.ckpt: 'x': with gram.ema_teacher the reference refuses it, too; set it to null",
        ),
        ({"crops.share_color_jitter": True}, "crops.share_color_jitter: True: every crop has"),
        ({"student.patchsize": 14}, "student.patchsize is not a key; nearest: student.patch_size"),
        ({"student.resume_from_teacher_chkpt": "x"}, "'x': starts from weights"),
        ({"schedules.lr.start": 0}, "schedules.lr.peak: the file leaves it out; add it"),
    ],
)
def test_what_would_be_another_run_is_refused_unless_partial(change, message, tmp_path, capsys):
    source = write(tmp_path / "theirs.yaml", VITL | change)
    arguments = ["config", "migrate", str(source), "--gpus", "32"]
    assert main.main(arguments) == main.REFUSED
    assert message in capsys.readouterr().err
    if change == {"gram.use_loss": True}:  # what is left breaks a rule, and no part of it is made
        assert main.main([*arguments, "--partial"]) == main.REFUSED
        assert "set gram.anchor=STAGE/STEP" in capsys.readouterr().err
        return
    assert main.main([*arguments, "--partial"]) == main.FINISHED
    assert message.split(":")[0] in capsys.readouterr().out


def test_defaults_of_dinov2_are_refused_as_well_as_its_keys():
    """The short setup of DINOv2: one head for both losses, which its file does not even say."""
    found = migrate({"student.block_chunks": 4}, gpus=32)
    assert found.flavour == "dinov2" and list(found.refused) == ["ibot.separate_head"]
    assert found.values["losses.centering"] == "softmax"
    again = migrate({"student.block_chunks": 4}, gpus=32, flavour="dinov3")
    assert not again.refused and "losses.centering" not in again.values


def test_a_key_given_twice_and_a_file_that_is_none_are_errors(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  seed: 0\n  num_workers: 2\n  seed: 1\n")
    with pytest.raises(ConfigError, match=r"a.yaml:2: seed stands twice in this section"):
        read_yaml(path)
    for text in ("- 1\n", "a: [\n", "1: 2\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="a.yaml"):
            read_yaml(path)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: 1e-3, c: [2e+1, x], d: 2.0e-04, e: vit_7b}\n")
    found = read_yaml(tmp_path / "a.yaml")
    assert found == {"a.b": 1e-3, "a.c": (20.0, "x"), "a.d": 2e-4, "a.e": "vit_7b"}


def test_a_recipe_that_breaks_a_rule_is_not_written(tmp_path, capsys):
    source = write(tmp_path / "theirs.yaml", VITL | {"crops.local_crops_size": 97})
    out = tmp_path / "mine.py"
    arguments = ["config", "migrate", str(source), "--gpus", "32", "--out", str(out)]
    assert main.main(arguments) == main.REFUSED
    assert "crops.local_size=97 is not a multiple" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.yaml"]


def test_every_translation_names_a_key_of_ours():
    known = set(config.load("tiny").values())
    assert set(tables.SAME.values()) | {ours for ours, _ in tables.RENAMED.values()} <= known

"""Files of forks, damaged files and files with odd names: all of it said, none of it run."""

import ast
import json

import pytest

from dinojax import config
from dinojax.cli import main
from dinojax.config import rules
from dinojax.config.recipe import ConfigError, flat
from dinojax.configs import base
from dinojax.migrate import kinds, tables, untranslated
from dinojax.migrate.classify import KNOWN
from dinojax.migrate.files import DEEPEST, LARGEST, MOST, read_yaml
from dinojax.migrate.translate import migrate

DEFAULT = flat(base.get_config())
PLAIN = {"compute_precision.param_dtype": "bf16", "train.centering": "sinkhorn_knopp"}


def told(tmp_path, capsys, text, *arguments, name="theirs.yaml"):
    """(exit code, what is printed, what is said on stderr) of a migration to the terminal."""
    path = tmp_path / name
    path.write_text(text)
    code = main.main(["config", "migrate", str(path), "--gpus", "4", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# -- keys that nothing of ours is made of


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("student.in_chans", 5, "crops.rgb_mean and crops.rgb_std do not have 5 values each"),
        ("teacher.in_chans", 4, "4, but student.in_chans is 3"),
        ("student.pretrained_weights", "/w.pth", "starts from weights"),
        ("train.cell_augmentation", True, "channels augmented and normalised one by one"),
        ("train.cell_augmentation_type", "hpa", "channels augmented and normalised one by one"),
        ("student.pos_embed_type", "learned", "nothing in the reference reads it"),
        ("student.patch_drop", 0.5, "nothing in the reference reads it"),
        ("student.ffn_ratio", 6, "model.ffn_ratio"),
        ("train.chunk_schedule", ["x"], "nothing in the reference reads it"),
        ("optim.optimizer", "lamb", "nothing in the reference reads it"),
        ("optim.dino_head_wd_multiplier", 0.5, "it has no effect"),
        ("sigreg.enabled", True, "SIGReg is not offered"),
        ("guide.enabled", True, "metadata-guided"),
        ("crops.vertical_flips", True, "vertical flips"),
        ("crops.gaussian_blur", False, "augment.blur_rates"),
        ("schedules.lr.freeze_student_iterations", 10_000, "a stage of its own"),
        ("optim.base_lr", 1e-3, "give optim.lr"),
        ("optim.scaling_rule", "sqrt_wrt_1025", "is none of 'sqrt_wrt_1024'"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_at_another_value_than_the_released_ones(
    key, value, message
):
    found = migrate(PLAIN | {key: tuple(value) if isinstance(value, list) else value}, gpus=4)
    assert message in found.refused[key] and repr(value)[1:-1] in found.refused[key]


def test_no_pattern_of_dead_keys_takes_every_value():
    for table in (untranslated.FIXED, *untranslated.FIXED_IN.values()):
        for pattern, (allowed, _, _) in table.items():
            assert "another" not in allowed, pattern
            found = migrate(PLAIN | {pattern.replace("*", "x"): "another"}, gpus=4)
            assert not found.used or pattern.replace("*", "x") not in found.used


@pytest.mark.parametrize("flavour", ["dinov3", "dinov2"])
def test_every_key_that_counts_as_translated_changes_the_recipe(flavour):
    gram = {"gram.use_loss": True, "gram.ckpt": "a.pth", "dino.reweight_dino_local_loss": True}
    gram |= {"dino.koleo_loss_distributed": True, "ibot.separate_head": True}
    gram |= {"train.checkpointing": True, "crops.gram_teacher_crops_size": 256}
    curves = {f"{key.rpartition('.')[0]}.{n}": 1 for key in tables.CURVES for n in CURVE}
    curves["schedules.lr.freeze_last_layer_epochs"] = 1
    lost = []
    for key in sorted(KNOWN):
        given = PLAIN | gram | (curves if key.startswith(("schedules", "gram.loss_w")) else {})
        plain = migrate(given, gpus=4, flavour=flavour)
        other = migrate(given | {key: another(key, given)}, gpus=4, flavour=flavour)
        told = other.ignored | other.refused
        lost += [] if (key in told) != (key in other.used and other != plain) else [key]
        lost += [key] if key in other.used and other.values == plain.values else []
    assert not lost


CURVE = ("start", "peak", "end", "warmup_epochs")


def another(key, given):
    """A value of the right kind that is not the default."""
    if key in given and isinstance(given[key], bool):
        return not given[key]
    if key in tables.RENAMED:
        wanted = tables.RENAMED[key]
        return next(v for v, ours in wanted[1].items() if ours != DEFAULT[wanted[0]])
    choices = {
        "student.arch": "vit_base",
        "student.ffn_layer": "swiglu",
        "student.in_chans": 1,
        "teacher.in_chans": 5,
        "gram.ckpt": "b.pth",
        "crops.global_local_crop_pairs_ratios": (0.5, 0.5),
        "crops.rgb_mean": (0.1, 0.1, 0.1),
        "crops.rgb_std": (0.1, 0.1, 0.1),
        "ibot.mask_ratio_min_max": (0.2, 0.3),
        "crops.global_crops_scale": (0.2, 0.3),
        "crops.local_crops_scale": (0.2, 0.3),
    }
    if key in choices:
        return choices[key]
    default = tables.DEFAULTS.get(key, DEFAULT.get(tables.SAME.get(key)))
    if key in tables.SAME:
        ours = tables.SAME[key]
        if ours in rules.CHOICES:
            return rules.CHOICES[ours][-1]
        return not default if isinstance(default, bool) else 7
    return not default if isinstance(default, bool) else 7


@pytest.mark.parametrize("given", [{"train.cell_augmentation": True, "wandb.tags": ("a",)}])
def test_a_key_is_left_out_by_name_and_reported(given):
    found = migrate(PLAIN | given, gpus=4, ignore=["train.cell_augmentation", "wandb"])
    assert not found.refused and not found.unknown
    assert found.left_out == {"train.cell_augmentation": "True", "wandb.tags": "('a',)"}
    assert any("wandb.tags: ('a',)" in line for line in found.report())
    with pytest.raises(ConfigError, match=r"--ignore wnadb: wnadb is not a key"):
        migrate(PLAIN | given, gpus=4, ignore=["wnadb"])


def test_one_channel_comes_over_with_its_statistics():
    given = {"student.in_chans": 1, "crops.rgb_mean": (0.5,), "crops.rgb_std": (0.2,)}
    found = migrate(PLAIN | given, gpus=4)
    assert not found.refused and found.values["image.channels"] == 1
    assert found.values["augment.hue"] == found.values["augment.saturation"] == 0.0
    assert config.of_values(found.values, "a")["image.mean"] == (0.5,)


# -- values of another kind


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.batch_size_per_gpu", "64"),
        ("train.batch_size_per_gpu", True),
        ("train.batch_size_per_gpu", 0),
        ("train.OFFICIAL_EPOCH_LENGTH", 12.5),
        ("optim.epochs", "100"),
        ("optim.epochs", None),
        ("optim.lr", float("nan")),
        ("optim.lr", 10**30),
        ("optim.warmup_epochs", (1, 2)),
        ("optim.warmup_epochs", 0.0001),
        ("optim.clip_grad", "3"),
        ("student.arch", 7),
        ("student.arch", ("vit_large",)),
        ("student.layerscale", float("inf")),
        ("student.n_storage_tokens", "4"),
        ("crops.global_crops_size", "224"),
        ("crops.global_crops_size", ()),
        ("crops.rgb_mean", 0.5),
        ("ibot.mask_ratio_min_max", (0.1, "0.5")),
        ("checkpointing.keep_every", "never"),
        ("gram.use_loss", "false"),
        ("train.centering", {"a": 1}),
        ("schedules.lr.peak", "1e-3"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(key, value):
    curves = {f"schedules.{n}.{part}": 1 for n in tables.SCHEDULES for part in CURVE}
    more = curves | {"schedules.lr.freeze_last_layer_epochs": 1} if "sched" in key else {}
    found = migrate(PLAIN | more | {key: value}, gpus=4)
    assert set(found.refused) == {key}
    assert repr(value)[:40] in found.refused[key] or value == ()


def test_text_in_place_of_a_number_is_told_with_the_move(tmp_path, capsys):
    text = 'train: {batch_size_per_gpu: "64", centering: sinkhorn_knopp}\n'
    code, out, err = told(tmp_path, capsys, text)
    assert code == main.REFUSED and not out
    assert "train.batch_size_per_gpu: '64': expected an integer" in err


# -- YAML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a {b: *a}\n", "an alias within itself"),
        ("a: &a [*a]\n", "an alias within itself"),
        ("a: &a {<<: *a}\n", "an alias within itself"),
        ("a:\n  1: 2\n", ":2: the key 1 is no name"),
        ("a:\n  ? [1]\n  : 2\n", "the key a list or a section is no name"),
        ("a: {<<: 3}\n", "`<<` merges sections alone"),
        ("a: !!python/object/apply:os.getcwd []\n", "python/object"),
        ("a: !x {b: 1}\n", "the tag !x is not read"),
        ("a: {b: 1}\na.b: 2\n", "a.b stands twice in this file"),
        ("[" * 5000, "not YAML"),
        ("a: 2020-13-45\n", "not YAML"),
        ("a: 1" + "0" * 5000 + "\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("a: \x07\n", "not YAML"),
        ("x: " + "y" * LARGEST, "more than 256 KiB"),
    ],
)
def test_damaged_yaml_is_refused_by_file(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a.yaml") as found:
        read_yaml(tmp_path / "a.yaml")
    assert message in str(found.value)


@pytest.mark.parametrize("form", ["[{}]", "{{<<: [{}]}}", "{{x1: {0}, x2: {0}}}"])
def test_aliases_of_aliases_are_bounded(form, tmp_path):
    lines = ["a0: &a0 {k: 1}\n"]
    for number in range(1, DEEPEST - 4):
        many = f"*a{number - 1}" if "x1" in form else ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {form.format(many)}\n")
    (tmp_path / "a.yaml").write_text("".join(lines))
    with pytest.raises(ConfigError, match=f"more than {MOST:,} values"):
        read_yaml(tmp_path / "a.yaml")


def test_merge_keys_and_aliases_are_written_out(tmp_path):
    text = (
        "base: &base {epochs: 3, lr: 1.0e-3}\nother: &other {lr: 1.0, wd: 2}\n"
        "optim: {<<: [*base, *other], epochs: 5}\nlist: [*base, 1]\n"
    )
    (tmp_path / "a.yaml").write_text(text)
    found = read_yaml(tmp_path / "a.yaml")
    optim = {key: value for key, value in found.items() if key.startswith("optim")}
    assert optim == {"optim.epochs": 5, "optim.lr": 1e-3, "optim.wd": 2}
    assert found["list"] == ({"epochs": 3, "lr": 1e-3}, 1)


# -- what is written


ODD = (
    '"""\nimport pathlib\npathlib.Path("ran").touch()\n""".yaml',
    "a'b\"c\\.yaml",
    "a\nb = 1\n.yaml",
    "$(touch ran) `x`.yaml",
    "\u202e\u2028é.yaml",
)


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_data_in_the_recipe_and_nothing_of_it_runs(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = name.replace("/", "_")
    text = f"train: {{batch_size_per_gpu: 8}}\n? {json.dumps(name)}\n: 1\n"
    out = tmp_path / name.replace(".yaml", ".py")
    code, _, err = told(tmp_path, capsys, text, "--partial", "--out", str(out), name=name)
    assert code == main.FINISHED, err
    written = ast.parse(out.read_text(encoding="utf-8"))
    kinds_of = [type(node).__name__ for node in written.body]
    assert kinds_of == ["Expr", "ImportFrom", "FunctionDef"]
    assert f"Made of {name} by" in ast.get_docstring(written, clean=False)
    assert config.load(out).group_size == 8
    assert not (tmp_path / "ran").exists()


def test_nothing_that_is_written_is_executed_to_check_it(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("executed")

    monkeypatch.setattr("dinojax.config.recipe._import", refuse)
    text = "train: {batch_size_per_gpu: 8, centering: sinkhorn_knopp}\n"
    assert told(tmp_path, capsys, text, "--out", str(tmp_path / "a.py"))[0] == main.FINISHED


def test_the_terminal_gets_the_checks_that_a_file_gets(tmp_path, capsys):
    text = "crops: {local_crops_size: 97}\ntrain: {centering: sinkhorn_knopp}\n"
    code, out, err = told(tmp_path, capsys, text)
    assert code == main.REFUSED and not out and "crops.local_size=97 is not a multiple" in err
    target = tmp_path / "mine.py"
    code, out, err = told(tmp_path, capsys, text, "--out", str(target))
    assert code == main.REFUSED and str(target) in err and "draft" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.yaml"]


def test_a_recipe_is_written_beside_a_link_and_never_through_it(tmp_path, capsys):
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    (tmp_path / "mine.py").symlink_to(kept)
    text = "train: {batch_size_per_gpu: 8, centering: sinkhorn_knopp}\n"
    assert told(tmp_path, capsys, text, "--out", str(tmp_path / "mine.py"))[0] == main.FINISHED
    assert kept.read_text() == "kept" and not (tmp_path / "mine.py").is_symlink()
    assert told(tmp_path, capsys, text, "--out", str(tmp_path / "mine.txt"))[0] == main.REFUSED


def test_kinds_are_known_of_every_key_that_is_read():
    for key in KNOWN - set(tables.RENAMED) - {"optim.base_lr"}:
        assert kinds.wrong(key, object()) is not None, key

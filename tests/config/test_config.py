"""Configs: loading, errors that name the next move, reads, explanations, saving."""

import ast
import json
import os
import re
from pathlib import Path

import pytest

from dinojax import config
from dinojax.config import recipe, rules
from dinojax.configs import base, keys
from dinojax.data import sources
from dinojax.sharding import axes

ROOT = Path(__file__).parent.parent.parent
KEYS = recipe.flat(base.get_config())
TABLES = (tuple(sources.SOURCES), tuple(axes.TABLE))  # named elsewhere, not in what a row says


def write(tmp_path, body, name="mine.py"):
    """A recipe whose get_config has these lines."""
    path = tmp_path / name
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(
        "from dinojax.configs import base\n\n\ndef get_config():\n"
        f"    c = base.get_config()\n{lines}    return c\n"
    )
    return path


def refusal(source, *overrides):
    with pytest.raises(config.ConfigError) as caught:
        config.load(source, overrides)
    return str(caught.value)


def test_a_recipe_loads_by_path_and_by_name():
    by_name, by_path = config.load("tiny"), config.load(ROOT / "configs" / "tiny.py")
    assert by_name == by_path
    assert by_name.model.patch_size == 8 and by_name.data.source == "tiles"


def test_overrides_take_the_type_of_the_default():
    loaded = config.load(
        "tiny",
        [
            "seed=3",
            "schedules.lr.peak=1",  # whole number for a float
            "masks.roll=true",
            "optim.clip=none",
            "model.layer_scale=1e-5",
            "crops.local_area=0.1, 1",
            "data.path=/some where/1",
            "model.ffn=swiglu",
            "log.every=1_000",
        ],
    )
    assert loaded.seed == 3
    assert loaded.schedules.lr.peak == 1.0 and isinstance(loaded.schedules.lr.peak, float)
    assert loaded.masks.roll is True
    assert loaded.optim.clip is None
    assert loaded.model.layer_scale == 1e-5
    assert loaded.crops.local_area == (0.1, 1.0)
    assert loaded.data.path == "/some where/1"
    assert loaded.model.ffn == "swiglu"
    assert loaded.log.every == 1000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1.5", "seed=1.5 has the wrong type: expected an integer"),
        ("seed=True", "seed=True has the wrong type: expected an integer"),
        ("masks.roll=1", "masks.roll=1 has the wrong type: expected True or False"),
        ("optim.eps=small", "optim.eps='small' has the wrong type: expected a number"),
        ("optim.eps=1" + "0" * 400, "has the wrong type: expected a number"),
        ("optim.eps=1e999", "optim.eps=inf has the wrong type: expected a number"),
        ("optim.clip=big", "optim.clip='big' has the wrong type: expected a number or None"),
        ("model.width=1.5", "model.width=1.5 has the wrong type: expected an integer or None"),
        ("knn.neighbors=none", "knn.neighbors=None has the wrong type: expected an integer"),
        ("crops.aspect=(1,2,3)", "crops.aspect=(1, 2, 3) has the wrong type: expected 2 numbers"),
        ("crops.aspect=(1,'2')", "crops.aspect=(1, '2') has the wrong type: expected 2 numbers"),
        ("image.mean=0.5", "image.mean=0.5 has the wrong type: expected numbers"),
        ("model.pathc_size=3", "model.pathc_size is not a key; nearest: model.patch_size"),
        ("lr=1", "lr is not a key; nearest: schedules.lr"),
        ("local_size=16", "local_size is not a key; nearest: crops.local_size"),
        ("schedules.lr=1", "schedules.lr is a section, not a key; its keys: schedules.lr.cosine"),
        ("seed", "--set seed: not of the form key=value"),
    ],
)
def test_a_wrong_override_is_an_error_that_names_key_value_and_type(override, message):
    assert message in refusal("tiny", override)


def test_an_override_given_twice_is_an_error():
    assert refusal("tiny", "seed=1", "seed=2") == "--set seed is given twice; keep one"


def test_a_recipe_is_read_anew_however_soon_it_was_changed_and_leaves_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    found = []
    for seed in (1, 2):
        path = write(tmp_path, f"c.seed = {seed}")
        os.utime(path, (1, 1))
        found.append(config.load(path).seed)
    assert found == [1, 2] and list(tmp_path.iterdir()) == [path]


def test_a_missing_recipe_lists_those_that_exist(tmp_path):
    message = refusal(tmp_path / "absent.py")
    names = message.partition("absent.py; give a file or a run directory, or one of: ")[2].split(
        ", "
    )
    assert names == sorted(names) and {"tiny", "vit7b16", "vitl16_in1k"} <= set(names)
    assert "base" not in names


def test_a_recipe_without_get_config_is_an_error(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def config():\n    return 1\n")
    assert "mine.py has no function get_config" in refusal(path)
    path.write_text("def get_config():\n    return {}\n")
    assert "get_config returns dict, not the config" in refusal(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c.seed = 1\nc.model.pathc_size = 8", "mine.py:7: model.pathc_size is not a key; nearest"),
        (
            "c.crops.update(\n    num_locals=2,\n)",
            "crops.num_locals is not a key; nearest: crops.nu",
        ),
        ("c.schedules.lr.warm = 8", "mine.py:6: schedules.lr.warm is not a key; nearest: schedule"),
        ("c.batch_size = 'x'", "mine.py:6: batch_size: TypeError"),
        ("c.model.width = 'x'", "mine.py: model.width='x' has the wrong type: expected an integer"),
        ("c.crops.aspect = (1,)", "crops.aspect=(1,) has the wrong type: expected 2 numbers"),
    ],
)
def test_a_wrong_key_or_value_in_a_recipe_is_an_error_with_its_place(tmp_path, body, message):
    assert message in refusal(write(tmp_path, body))


@pytest.mark.parametrize(
    "body",
    [
        "c.crops.local_size = 32\nc.seed = 1\nc.crops.local_size = 48",
        "c.crops.local_size = 32\nc.crops.update(num_local=2, local_size=48)",
        "for _ in range(1):\n    c.crops.local_size = 32\n    c.crops.local_size = 48",
    ],
)
def test_a_recipe_that_assigns_a_key_twice_is_an_error(tmp_path, body):
    message = refusal(write(tmp_path, body))
    assert "crops.local_size is assigned twice, first in line" in message


def test_branches_of_a_recipe_may_assign_the_same_key(tmp_path):
    path = write(tmp_path, "if c.seed:\n    c.stage = 'a'\nelse:\n    c.stage = 'b'")
    assert config.load(path).stage == "b"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["crops.local_size=20"], "crops.local_size=20 is not a multiple of model.patch_size=8; "),
        (["crops.local_size=20"], "use 16 or 24."),
        (["batch_size=60"], "group_size=8 does not divide the 60 images of a micro-batch"),
        (["accumulate=3"], "does not split into accumulate=3 micro-batches; use batch_size=63 or"),
        (["accumulate=16"], "the 4 images of a micro-batch (batch_size=64, accumulate=16); use 2 "),
        (["losses.koleo_group=48"], "losses.koleo_group=48 does not divide the 64 images"),
        (["rope.min_period=1"], "rope.base=100.0 excludes rope.min_period=1.0"),
        (["rope.base=none", "rope.min_period=1"], "set base, or both periods"),
        (["rope.base=none", "rope.min_period=9", "rope.max_period=1"], "is not below rope.max_pe"),
        (["num_steps=100"], "schedules.teacher_temperature.warmup=300 exceeds num_steps=100"),
        (["schedules.lr.cosine=1200"], "and cosine=1200 exceed num_steps=1200; use cosine=1140 or"),
        (["optim.freeze_last_layer=1201"], "optim.freeze_last_layer=1201 exceeds num_steps=1200"),
        (["model.norm=batch"], "'batch' is not a choice; use 'layernorm', 'layernorm_1e5', 'rmsno"),
        (["schedules.version=3"], "schedules.version=3 is not a choice; use 1, 2."),
        (["masks.rate=1.5"], "masks.rate=1.5 is out of range; use a value between 0 and 1."),
        (["num_steps=0"], "num_steps=0 is out of range; use a value at least 1."),
        (["masks.ratio=(0.5,0.1)"], "masks.ratio=(0.5, 0.1) is not ascending; use (0.1, 0.5)."),
        (["crops.gram_size=64"], "crops.gram_size=64 but gram.enabled is False"),
        (["gram.enabled=true", "gram.tokens=masked"], "'masked' needs gram.per_image=False"),
        (["gram.enabled=true", "gram.teacher=ema", "crops.gram_size=64"], "uses this step's glob"),
        (["image.normalize=fixed"], "image.mean=(0.485, 0.456, 0.406) has 3 values for image.cha"),
        (["augment.blur_kernel=8"], "augment.blur_kernel=8 is even; use an odd number."),
        (["knn.crop_size=40"], "knn.resize_size=32 is smaller than knn.crop_size=40"),
    ],
)
def test_rules_between_keys_are_errors_that_end_with_a_move(overrides, message):
    assert message in refusal("tiny", *overrides)


def test_all_broken_rules_are_reported_at_once():
    message = refusal("tiny", "crops.local_size=20", "batch_size=60", "num_steps=100")
    assert message.startswith("tiny: ")
    assert all(part in message for part in ("local_size=20", "group_size=8", "warmup=300"))


def test_valid_group_sizes_divide_the_images_of_a_shard():
    assert config.valid_group_sizes(64, 8) == [1, 2, 4, 8]
    assert config.valid_group_sizes(64, 4, 2) == [1, 2, 4, 8]
    assert config.valid_group_sizes(64, 3) == []


def test_a_config_cannot_be_changed_and_names_the_nearest_attribute():
    loaded = config.load("tiny")
    with pytest.raises(AttributeError, match="immutable: model.width"):
        loaded.model.width = 3
    with pytest.raises(AttributeError, match="model.pathc_size is not a key; nearest: model.patch"):
        _ = loaded.model.pathc_size


def test_a_changed_key_that_nothing_read_is_an_error(tmp_path):
    loaded = config.load(write(tmp_path, "c.stage = 'second'"), ["rope.dtype=bfloat16", "seed=0"])
    loaded.to_dict(), loaded.to_json(), loaded.values(), config.check(loaded)  # none is a read
    assert loaded.unread() == ["rope.dtype", "stage"]  # seed has its default: nothing was changed
    assert loaded.stage == "second"
    with pytest.raises(config.ConfigError, match=r"^rope.dtype is set \(by --set\) but nothing re"):
        loaded.check_all_read()
    section = loaded.rope
    assert section.unread() == ["rope.dtype"]
    assert loaded.unread() == ["rope.dtype"]  # handing a section on is not reading its values
    assert section.dtype == "bfloat16"
    loaded.check_all_read()


def test_configs_are_equal_by_value_and_can_be_static_arguments():
    a, b, c = config.load("tiny"), config.load("tiny"), config.load("tiny", ["model.width=48"])
    assert (a == b, hash(a.model) == hash(b.model), a.model == c.model) == (True, True, False)
    assert a.rope == c.rope


def test_no_key_hides_behind_a_method():
    names = {part for key in KEYS for part in key.split(".")}
    assert not names & {name for name in dir(config.Config) if not name.startswith("__")}


def test_a_saved_config_reads_back_equal_with_its_sources(tmp_path):
    loaded = config.load("tiny", ["seed=5"])
    config.save(loaded, tmp_path / "config.json")
    again = config.read(tmp_path)
    assert again == loaded and again.recipe == "tiny"
    assert (again.sources["seed"], again.sources["model.depth"]) == ("--set", "recipe")
    assert again.sources["optim.eps"] == "base"
    assert again.crops.aspect == (0.75, 4 / 3)
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        config.read(tmp_path / "elsewhere")


def test_a_config_saved_by_another_version_is_completed_loudly_or_refused(tmp_path, caplog):
    path = tmp_path / "config.json"
    config.save(config.load("tiny"), path)
    content = json.loads(path.read_text())
    del content["config"]["knn"]["temperature"]
    path.write_text(json.dumps(content))
    assert config.read(path).knn.temperature == 0.07
    assert "lacks knn.temperature, declared since; using 0.07" in caplog.text
    content["config"]["knn"]["temprature"] = 0.1
    path.write_text(json.dumps(content))
    with pytest.raises(config.ConfigError, match="nearest: knn.temperature"):
        config.read(path)


def test_diff_names_the_keys_that_differ():
    a, b = config.load("tiny"), config.load("tiny", ["seed=5", "optim.clip=none"])
    assert config.diff(a, b) == [("optim.clip", 3.0, None), ("seed", 0, 5)]
    assert config.diff(a, a) == []


def test_explain_tells_meaning_default_and_source():
    told = config.explain("crops.global_size")
    assert told.default == 224 and told.source == "[R]"
    assert told.meaning == "pixels, a multiple of model.patch_size"
    assert config.explain("schedules.lr.warmup").meaning == (
        "before lr_scaling: steps of linear warm-up"
    )
    assert config.explain("losses.centering").source == "[R] [D2]"
    with pytest.raises(config.ConfigError, match="nearest: crops.local_size"):
        config.explain("crops.local_sizes")


@pytest.mark.parametrize("key", KEYS)
def test_every_key_states_its_meaning_and_its_source(key):
    told = config.explain(key)
    assert re.search(r"\[(R|P|D2|ours)\]", told.source)
    assert re.sub(r"\[\w+\]|\W", "", told.meaning)


def test_a_row_says_what_its_choices_and_none_mean():
    for key, row in keys.KEYS.items():
        assert (row.default is None or "None" in row.says) == (row.optional is not None), key
        assert row.choices or " | " not in row.says, key
        named = [re.escape(str(choice)) for choice in row.choices]
        told = [re.search(rf"\b{name}\b", row.says) is not None for name in named]
        assert all(told) or (not any(told) and row.choices in TABLES) or key == "data.source", key
        assert row.default in row.choices or row.default is None or not row.choices, key


def test_sources_strategies_and_terms_come_from_their_tables():
    assert rules.CHOICES["data.source"] == (*sources.SOURCES, sources.AUTO)
    assert rules.CHOICES["mesh.strategy"] == rules.CHOICES["distill.strategy"] == tuple(axes.TABLE)
    assert {"dino_local", "dino_global", "ibot", "koleo", "gram"} <= set(keys.ALL_TERMS)
    weighs = ("losses.", "gram.enabled", "text.enabled")
    assert all(key.startswith(weighs) for key in keys.TERMS)


def test_every_key_is_read_somewhere():
    """A leaf's name appears in the package: a key nobody reads is a lie."""
    nodes = [
        node
        for path in (ROOT / "dinojax").rglob("*.py")
        if path.name not in ("config.py", "recipe.py", "rules.py", "cli.py")
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    named = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:  # spec.other("toy")
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "other":
            named |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    assert not [key for key in KEYS if key.rpartition(".")[2] not in named]


def test_every_number_has_limits_that_its_default_is_within():
    for key, default in KEYS.items():
        kind = rules.OPTIONAL.get(key, type(default))
        values = default if isinstance(default, tuple) else (default,)
        if kind not in (int, float, tuple) or any(isinstance(v, str) for v in values):
            continue
        if key not in (*rules.CHOICES, *rules.TABLES):
            low, high = rules.LIMITS[key]
            assert all(low <= value <= high for value in values if value is not None), key


@pytest.mark.parametrize(
    "override",
    [
        *("optim.beta1=1", "optim.eps=0", "checkpoint.minutes=-1", "seed=-1", "seed=4294967296"),
        *(
            "schedules.teacher_temperature.start=0",
            "schedules.momentum.end=1.1",
            "rope.rescale=0.5",
        ),
        *("schedules.truncate_extra=1e39", "batch_size=1000000000000", "model.layer_scale=-1"),
        *("stage=../x", "stage=", "stage=a/b", "stage=.", "data.num_workers=100000"),
    ],
)
def test_what_cannot_work_is_refused_by_its_key(override):
    assert override.split("=")[0] in refusal("tiny", override)


def test_a_recipe_with_a_number_beyond_all_floats_names_the_line(tmp_path):
    path = write(tmp_path, "c.seed = 1\nc.augment.hue = 10**400\n")
    assert f"{path}:7: augment.hue: OverflowError" in refusal(path)

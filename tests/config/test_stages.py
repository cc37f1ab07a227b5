"""Rules of stages, when anchors are renewed, and which size a step has."""

import collections
from pathlib import Path

import pytest

from dinojax import config
from dinojax.config import ConfigError, stages
from dinojax.config.stages import Anchor, BoxDraw, SizeDraw

RECIPE = """
from dinojax.configs import tiny

def get_config():
    c = tiny.get_config()
    c.num_steps = 400
    return c

def first(c):
{first}
    return c

def anchored(c):
    c.gram.enabled = True
    c.gram.anchor = "first/400"

def second(c):
    anchored(c)
{second}
    return c

STAGES = {{"first": first, "second": second}}
"""


def load(tmp_path: Path, second: str = "", *overrides: str, first: str = ""):
    def indented(text):
        return "\n".join("    " + line for line in text.split("; "))

    path = tmp_path / "recipe.py"
    path.write_text(
        RECIPE.format(first=indented(first or "pass"), second=indented(second or "pass"))
    )
    return config.load_stages(path, list(overrides))


def test_stages_share_a_config_count_steps_and_take_overrides_of_their_own(tmp_path):
    found = load(
        tmp_path,
        "",
        "second:num_steps=300",
        "num_steps=200",
        "first:seed=3",
        "schedules.teacher_temperature.warmup=9",
        "second:gram.anchor=first/200",
    )
    told = [(c.stage, c.num_steps, c.seed) for c in found]
    assert told == [("first", 200, 3), ("second", 300, 0)]


def test_a_stage_knows_the_steps_before_it(tmp_path):
    first, second = load(tmp_path)
    assert (first.start.steps_before, second.start.steps_before) == (0, 400)


ALONE = {  # lines of the second stage -> what the message must hold
    "c.gram.anchor = ''": "needs an earlier ema to hold on to, and gram.anchor is empty",
    "c.gram.enabled = False": "gram.anchor='first/400', gram.refresh_every=None but gram.enabled",
    "c.gram.enabled = False; c.gram.anchor = ''; c.crops.gram_size = 64": (
        "crops.gram_size=64 but gram.enabled is False"
    ),
    "c.crops.update(more_rates=(0.5,), more_global=(40,), more_local=(16,), more_gram=(48,))": (
        "crops.more_gram is set but crops.gram_size is None"
    ),
    "c.crops.gram_size = 64; "
    "c.crops.update(more_rates=(0.5,), more_global=(40,), more_local=(16,), more_gram=(32,))": (
        "crops.more_gram[0]=32 is below crops.more_global[0]=40"
    ),
    "c.gram.teacher = 'ema'": "gram.teacher='ema' compares with every step's own ema",
    "c.gram.teacher = 'ema'; c.gram.anchor = ''; c.gram.refresh_every = 5": (
        "but gram.refresh_every=5; set it to None"
    ),
    "c.gram.teacher = 'ema'; c.gram.anchor = ''; c.crops.gram_size = 64": (
        "uses this step's global crops, but crops.gram_size=64"
    ),
    "c.gram.anchor_step = 5": "gram.anchor_step=5 says when the ema is copied, but gram.anchor=",
    "c.gram.anchor = 'ema'; c.gram.anchor_step = 400": "is not before the stage's last step",
    "c.crops.gram_size = 24": "crops.gram_size=24 is below crops.global_size=32",
    "c.crops.gram_distortions = True": "crops.gram_distortions=True but there are no gram crops",
    "c.gram.refresh_from = 10": "gram.refresh_from=10 but gram.refresh_every is None",
    "c.gram.max_refreshes = 10": "gram.max_refreshes=10 but gram.refresh_every is None",
    "c.gram.refresh_every = 401": "no refresh comes within num_steps=400",
    "c.gram.anchor = 'ema'; c.gram.anchor_step = 9; c.gram.refresh_every = 5": (
        "gram.refresh_from=0 comes before the anchor itself"
    ),
    "c.gram.tokens = 'masked'": "gram.tokens='masked' needs gram.per_image=False",
    "c.schedules.gram_weight.update(start=0.0, peak=0.0, end=0.0)": "gram_weight is 0 throughout",
    "c.start.what = 'state'; c.start.heads = 'new'": "takes the heads with their optimizer",
    "c.start.source = 'nothing'; c.start.what = 'state'": "start.what='state' needs something to",
    "c.optim.freeze_backbone = True; c.start.what = 'state'": "so under optim.freeze_backbone=True",
    "c.optim.freeze_backbone = True; c.adapter.rank = 4": "adapter.rank=4 trains adapters of the",
    "c.optim.freeze_backbone = True": "gram.enabled=True moves patches of the backbone that",
    "c.until.left_chance = 0.1; c.until.every = 150": "400 has fewer; set until.every=133",
    "c.until.left_chance = 0.1; c.losses.dino = 0.0; c.losses.ibot = 0.0": "are 0; give one a",
    "c.knn.alarm = 0.1; c.knn.every = None": "knn.alarm=0.1 needs evaluations to compare",
    "c.knn.alarm_stops = True": "knn.alarm_stops=True but knn.alarm is None",
    "c.crops.more_rates = (0.5,)": "crops.more_global has 0 values and crops.more_rates 1",
    "c.crops.more_rates = (0.5,); c.crops.more_global = (36,); c.crops.more_local = (16,)": (
        "36 is not a multiple of model.patch_size=8; use 32 or 40"
    ),
    "c.crops.update(more_rates=(0.6, 0.6), more_global=(32, 40), more_local=(8, 8))": (
        "sum to 1.2"
    ),
}


@pytest.mark.parametrize("lines", ALONE)
def test_what_a_stage_cannot_be_is_refused(tmp_path, lines):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, lines)
    assert ALONE[lines] in str(refused.value)


BETWEEN = {
    "c.model.width = 48": "model.width=48, but the weights come from stage first with model",
    "c.dino_head.prototypes = 64": "keep that, or set start.heads='new'",
    "c.start.what = 'state'; c.losses.centering = 'softmax'": "losses.centering='softmax', but the",
    "c.gram.anchor = 'third/400'": "third is not a stage before this one (first)",
    "c.gram.anchor = 'second/100'": "in the same stage use gram.anchor='ema'",
    "c.gram.anchor = 'first/200'": "will have no checkpoint 200 when it is done",
    "c.start.source = 'nothing'; c.gram.anchor = 'ema'": "would hold on to random weights",
}


EARLY = {  # of a stage whose end is not known beforehand
    "c.start.schedules = 'continue'": "which may end before it (until.left_chance=0.1)",
    "pass": "gram.anchor='first/400': stage first may end before that step",
    "c.start.what = 'state'; c.optim.freeze_backbone = False": "optim.freeze_backbone=False, but",
    "c.start.what = 'state'; c.adapter.rank = 2": "adapter.rank=2, but the weights come from stage",
}


@pytest.mark.parametrize("lines", EARLY)
def test_a_stage_that_may_end_early_or_trains_other_things_is_not_simply_gone_on_from(
    tmp_path, lines
):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, lines, first="c.until.left_chance = 0.1; c.optim.freeze_backbone = True")
    assert "stage second: " in str(refused.value) and EARLY[lines] in str(refused.value)


@pytest.mark.parametrize("lines", BETWEEN)
def test_what_a_stage_does_not_get_from_those_before_it_is_refused(tmp_path, lines):
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, lines, first="c.checkpoint.every = 200; c.checkpoint.keep_last = 1")
    assert "stage second: " in str(refused.value) and BETWEEN[lines] in str(refused.value)


def test_the_first_stage_has_nothing_to_take(tmp_path):
    with pytest.raises(ConfigError, match="start.what='state', but no stage comes before"):
        load(tmp_path, first="c.start.what = 'state'")


def test_an_override_for_a_stage_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match="no stage thrid; stages: first, second"):
        load(tmp_path, "", "thrid:seed=1")


@pytest.mark.parametrize(
    ("stages", "message"),
    [("['first']", "STAGES must map names to functions"), ("{'../x': first}", "becomes a folder")],
)
def test_stages_that_are_no_names_of_functions_are_refused(tmp_path, stages, message):
    path = tmp_path / "recipe.py"
    path.write_text(f"def first(c): ...\n\nSTAGES = {stages}\n")
    with pytest.raises(ConfigError, match=message):
        config.load_stages(path)


def test_new_heads_may_have_another_shape(tmp_path):
    found = load(tmp_path, "c.start.heads = 'new'; c.dino_head.prototypes = 64")
    assert found[1].dino_head.prototypes == 64 != found[0].dino_head.prototypes


def test_an_anchor_is_renewed_as_often_as_it_says():
    """The 7B recipe: after 10,000, 20,000 and 30,000 steps, then no more."""
    anchor = Anchor("pretrain/100", 0, 10_000, 10_000, 3)
    assert [n for n in range(1, 60_001) if anchor.renews(n)] == [10_000, 20_000, 30_000]
    assert anchor.refresh_steps(60_000) == [10_000, 20_000, 30_000]
    assert anchor.refresh_steps(25_000) == [10_000, 20_000]
    late = Anchor("ema", 7, 5, 12, None)
    assert [n for n in range(1, 31) if late.renews(n)] == [7, 15, 20, 25, 30]
    assert late.refresh_steps(30) == [15, 20, 25, 30]
    assert not any(Anchor("pretrain/1", 0, None, 0, None).renews(n) for n in range(1, 99))


def test_sizes_come_in_their_shares_and_depend_on_seed_and_step_alone():
    draw = SizeDraw(5, (0.3, 0.3, 0.05, 0.05))
    drawn = [draw(step) for step in range(4000)]
    assert drawn[1234] == SizeDraw(5, (0.3, 0.3, 0.05, 0.05))(1234)
    shares = collections.Counter(drawn)
    for number, rate in enumerate((0.3, 0.3, 0.3, 0.05, 0.05)):
        error = (rate * (1 - rate) / 4000) ** 0.5
        assert abs(shares[number] / 4000 - rate) < 4 * error
    assert [SizeDraw(6, draw.more_rates)(step) for step in range(50)] != drawn[:50]
    assert {SizeDraw(5, ())(step) for step in range(50)} == {0}
    boxes = BoxDraw(draw, (8, 16, 24, 32, 40))
    assert [boxes(step) for step in range(9)] == [8 * (1 + n) for n in drawn[:9]]
    assert boxes.largest == 40


def test_a_later_stage_has_a_seed_of_its_own():
    assert stages.stage_seed(3, 0) == 3
    seeds = {stages.stage_seed(seed, before) for seed in (0, 1) for before in (0, 10, 20)}
    assert len(seeds) == 6


def test_what_is_kept_of_a_stage():
    values = {"num_steps": 10, "checkpoint.every": 3, "checkpoint.keep_every": 6}
    values |= {"checkpoint.keep_last": 2, "checkpoint.minutes": None}
    assert stages.kept_steps(values) == [6, 9, 10]
    assert stages.kept_steps(values | {"checkpoint.minutes": 5.0}) == [6, 10]


def saved(folder: Path, found) -> Path:
    """A run directory of these configs, as far as they are read."""
    (folder / "stages").mkdir(parents=True)
    names = [c.stage for c in found]
    config.save(found[0], folder / "config.json", stages=names)
    for one in found:
        config.save(one, folder / "stages" / f"{one.stage}.json", stages=names)
    return folder


def test_a_run_gives_the_config_that_it_resolved(tmp_path):
    found = load(tmp_path, "", "second:num_steps=300", "seed=3")
    run = saved(tmp_path / "run", found)
    assert config.load_stages(run) == found
    first, second = config.load_stages(run, ["first:num_steps=500", "second:gram.anchor=first/500"])
    assert (first.num_steps, second.start.steps_before, second.seed) == (500, 500, 3)
    assert (first.sources["seed"], first.recipe) == ("--set", found[0].recipe)
    assert config.stage_names(run) == ("first", "second") and config.student_names(run) == ()
    with pytest.raises(ConfigError, match="has no STUDENTS; `dinojax train`"):
        config.load_students(run)
    with pytest.raises(ConfigError, match="first/501"):  # rules hold for it too
        config.load_stages(run, ["second:gram.anchor=first/501"])


def test_a_run_of_students_gives_all_of_theirs(tmp_path):
    family = config.load_students("distill_tiny", ["distill.teacher=smoke:tiny", "shallow:seed=5"])
    for name, found in family.items():
        saved(tmp_path / name, found)
    (tmp_path / "family.json").write_text('{"students": ["narrow", "shallow"]}')
    assert config.load_students(tmp_path) == family
    assert config.load_stages(tmp_path / "shallow")[0].seed == 5
    with pytest.raises(ConfigError, match="is for several students .narrow, shallow."):
        config.load_stages(tmp_path)


def test_the_name_of_a_packaged_recipe_is_that_recipe_beside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "tiny", config.load_stages("tiny", ["seed=8"]))
    assert config.load("tiny").seed == 0 and config.load("./tiny").seed == 8
    assert config.load_stages(config.of_run("tiny"))[0].seed == 8
    with pytest.raises(ConfigError, match="absent holds no run to continue"):
        config.of_run("absent")

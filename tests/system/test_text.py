"""A text stage from captions to words for patches, with a stop in between."""

import jax
import numpy as np
import pytest
from PIL import Image

from dinojax import config as configs
from dinojax.cli.main import main
from dinojax.config import ConfigError
from dinojax.data.sources import open_captioned
from dinojax.eval import describe as describing
from dinojax.eval import text_model as model
from dinojax.eval.evaluate import evaluate
from dinojax.eval.text_export import export
from dinojax.runs import records
from dinojax.runs.scalars import read_metrics
from dinojax.train import loop
from dinojax.train.records import Records
from tests.support import several, small
from tests.support.stopping import Stop, at, die, rows, same_state
from tests.support.stored_data import saved, tar_shard

COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210)}
SETTINGS = [
    *("data.source=tar", "num_steps=4", "batch_size=4", "group_size=2", "mesh.devices=1"),
    *("log.every=1", "checkpoint.every=2", "precision.compute=float32", "mesh.strategy=dp"),
    *("model.norm=layernorm", "log.pictures=False", "pairs.every=4"),
]


def config(path, *more):
    own = [*SETTINGS, f"data.path={path}", f"pairs.images={path}"]
    given = {setting.split("=")[0] for setting in more}
    kept = [setting for setting in own if setting.split("=")[0] not in given]
    return configs.load("dinotxt_vitl16", [*kept, *more], smoke=True)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """24 images of a colour with captions that name it."""
    files, random = {}, np.random.default_rng(0)
    for number in range(24):
        name = list(COLORS)[number % 3]
        noise = random.integers(-20, 20, (40, 48, 3))
        pixels = np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8)
        files[f"{number}.png"] = saved(Image.fromarray(pixels), "PNG")
        files[f"{number}.txt"] = f"a {name} square\n{name}".encode()
    path = tmp_path_factory.mktemp("pairs") / "s.tar"
    tar_shard(path, files)
    return path


@pytest.fixture(scope="module")
def whole(shard, tmp_path_factory):
    """A run that nothing disturbed: its directory and last state."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small.share_programs(patch)
        return directory, loop.train(config(shard), directory)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(whole, shard, tmp_path, monkeypatch):
    small.share_programs(monkeypatch)
    with at(monkeypatch, (Records, "add"), 4, die), pytest.raises(Stop):
        loop.train(config(shard), tmp_path / "run")
    same_state(loop.train(config(shard), tmp_path / "run"), whole[1])
    assert rows(tmp_path / "run") == rows(whole[0])


@pytest.mark.slow
def test_rows_evaluation_export_and_words_of_a_run(whole, tmp_path, capsys):
    directory, state = whole
    found = [row for row in read_metrics(directory / "metrics.jsonl") if "total" in row]
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert {"contrastive", "pair_accuracy", "logit_scale", "grad_norm/text_tower"} <= set(found[0])
    measured = [row for row in read_metrics(directory / "metrics.jsonl") if "pairs/text@1" in row]
    assert [row["step"] for row in measured] == [0, 4]

    evaluate("pairs", directory, [], None)
    (told,) = records.read(directory / "eval")
    assert told["values"]["pairs/text@1"] == pytest.approx(measured[-1]["pairs/text@1"], abs=1e-3)

    loaded = model.load(directory)
    jax.tree.map(
        np.testing.assert_array_equal, loaded.params["text_tower"], state.student["text_tower"]
    )
    export(directory, tmp_path / "out")
    again = model.load(tmp_path / "out")
    texts = ["a red square", "blue"]
    np.testing.assert_allclose(again.texts(texts), loaded.texts(texts), atol=1e-6)
    pixels = np.zeros((1, 32, 32, 3), np.float32)
    ours, theirs = (m.images(pixels).patches for m in (loaded, again))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32, 0], image[:, 32:, 2] = 200, 200
    Image.fromarray(image).save(tmp_path / "two.png")
    words = describing.describe(loaded, tmp_path / "two.png", ["red", "blue"], size=32)
    assert words.best.shape == (2, 4)  # patches of 16 pixels, the aspect kept
    sheet = describing.picture(words)
    assert sheet.size[0] > sheet.size[1] / 2
    out = tmp_path / "words.png"
    command = ["describe", str(tmp_path / "two.png"), "--words", "red,blue", "--size", "32"]
    assert main([*command, "--weights", str(directory), "--out", str(out)]) == 0
    with Image.open(out) as drawn:
        assert drawn.size == sheet.size
    assert "2 x 4 patches" in capsys.readouterr().out
    with pytest.raises(ValueError, match="two or more words"):
        describing.describe(loaded, tmp_path / "two.png", ["red"], size=32)


@pytest.mark.slow
def test_a_folder_of_maps_is_measured_alike_of_a_run_and_of_its_export(whole, tmp_path):
    directory, data = whole[0], tmp_path / "data"
    image, values = np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8)
    image[:, :32, 0], image[:, 32:, 2], values[:, 32:] = 200, 200, 1
    for name, pixels in (("images", image), ("maps", values)):
        (data / name).mkdir(parents=True)
        Image.fromarray(pixels).save(data / name / "two.png")
    (data / "classes.txt").write_text("red\nblue\n")
    export(directory, tmp_path / "out")
    weights = {"weights": str(tmp_path / "out"), "out": str(tmp_path / "records")}
    own = ["openvocab.resize=32", "openvocab.templates=a photo of {}", "openvocab.side=32"]
    for mode in ("whole", "slide"):
        given = [*own, "openvocab.stride=16", f"openvocab.mode={mode}"]
        (one,) = evaluate("openvocab", directory, given, None, data=str(data))
        (other,) = evaluate("openvocab", None, given, None, data=str(data), **weights)
        assert one.values == pytest.approx(other.values, abs=1e-3)
    assert len(list((directory / "eval").glob("openvocab-*-words.png"))) == 2
    with pytest.raises(ConfigError, match="--prefix x.: .* has the names of dino.txt"):
        evaluate("openvocab", None, own, None, data=str(data), **weights, prefix="x.")


@pytest.mark.slow
def test_another_vocabulary_is_refused_where_a_run_goes_on(whole, shard, tmp_path):
    model.load(whole[0]).tokenizer.vocabulary.write(tmp_path / "own.txt")
    lines = (tmp_path / "own.txt").read_text().splitlines()
    (tmp_path / "own.txt").write_text("\n".join([lines[0], lines[2], lines[1], *lines[3:]]) + "\n")
    with pytest.raises(ConfigError, match=r"text.vocabulary=.*is not the one this run began with"):
        loop.train(
            config(shard, f"text.vocabulary={tmp_path / 'own.txt'}"),
            whole[0],
            accept=["new-config"],
        )


def test_faults_are_told_before_any_device_work(tmp_path, shard, monkeypatch):
    def never(*args, **options):
        raise AssertionError("a program was built")

    monkeypatch.setattr("dinojax.train.program.build_sizes", never)
    tar_shard(tmp_path / "bare.tar", {"0.png": saved(Image.new("RGB", (8, 8)), "PNG")})
    for path, more, told in (
        (tmp_path / "bare.tar", (), r"1 of 1 images looked at have no caption"),
        (shard, ("text.vocabulary=nothing.txt",), r"text.vocabulary=nothing.txt does not exist"),
        (tmp_path / "missing.tar", (), r"does not exist"),
    ):
        with pytest.raises((ValueError, OSError), match=told):
            loop.train(config(path, *more), tmp_path / "run")
    (tmp_path / "words.json").write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ValueError, match="no vocabulary of byte-pair encoding"):
        loop.train(config(shard, f"text.vocabulary={tmp_path / 'words.json'}"), tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.source=folder", "data source 'folder' has no captions"),
        ("text.num_heads=3", "text.width=32 is not a multiple of text.num_heads=3"),
        ("text.outputs=7", "text.outputs=7 is odd"),
        ("text.scale=200", "text.scale=200 exceeds text.max_scale=100"),
        ("text.freeze_tower=True", "set text.tower to a file"),
        ("distill.enabled=True", "distill.enabled=True has no meaning beside text.enabled=True"),
        ("text.loss=softmax", "text.loss='softmax' is not a choice"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(shard, setting, told):
    with pytest.raises(ConfigError, match=told):
        config(shard, setting)


def test_the_shard_has_a_caption_for_every_image(shard):
    section = config(shard).data
    source = open_captioned(section, channels=3)
    assert all(len(source.encoded(i).captions) == 2 for i in range(len(source)))


# The recipe in the sizes of its smoke, for processes that take settings alone.
SMALL = [
    *("crops.global_size=32", "data.box_size=64", "model.width=32", "model.depth=2"),
    *("model.num_heads=2", "model.remat=none", "text.vocabulary=tiles", "text.context=24"),
    *("text.width=32", "text.depth=2", "text.num_heads=2", "schedules.lr.warmup=1"),
]


@pytest.mark.exhaustive
def test_two_processes_learn_what_one_does(shard, tmp_path):
    kept = [s for s in SETTINGS if not s.startswith(("mesh.", "pairs."))]
    settings = [*kept, *SMALL, f"data.path={shard}", "optim.eps=1e-3"]
    begin = ("train", "--config", "dinotxt_vitl16")
    found = []
    for count, strategy in ((1, "dp"), (2, "fsdp")):
        run, own = tmp_path / str(count), [*settings, f"mesh.strategy={strategy}"]
        ended = several.train(run, own, count=count, devices=1, begin=begin)
        assert all(one.code == 0 for one in ended), "\n".join(one.told for one in ended)
        found.append(rows(run))
    for ours, theirs in zip(*found, strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)

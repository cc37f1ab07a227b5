"""The lines printed and written with an export run as they are, and its card is what HF reads."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import dinojax
from dinojax import config
from dinojax.cli.main import main
from dinojax.config import recipe
from dinojax.models import zoo
from dinojax.weights import run as convert
from dinojax.weights.card import card
from dinojax.weights.export import export
from dinojax.weights.formats import LIBRARIES
from dinojax.weights.preprocess import Preprocessing
from dinojax.weights.specs import family
from dinojax.weights.writers import Network, snippet
from tests.support.library_models import needs
from tests.support.networks_small import (
    CONVNEXT,
    DINOV2,
    PLAIN,
    RELEASED,
    SMOOTH,
    TRAINED,
    random_network,
)

FOLDER = Path(__file__).parents[2] / "configs"
RECIPES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "base"))


def networks(name):
    """Random weights of what a recipe trains, small, with its own preprocessing; no two alike."""
    path = recipe.find(FOLDER / f"{name}.py")
    if recipe.students(path):
        loaded = [stages[-1] for stages in config.load_students(path, smoke=True).values()]
    else:
        loaded = [config.load_stages(path, smoke=True)[-1]]
    found = {}
    for own in loaded:
        spec = zoo.backbone(
            own.model,
            own.rope,
            channels=own.image.channels,
            attention="plain",
            dtype=jnp.dtype(jnp.float32),
        ).spec
        pixels = convert.preprocessing_of(own)
        found.setdefault((spec, pixels), Network(spec, {}, {}, pixels, {"from": name}))
    return [
        Network(spec, random_network(spec).tensors, {}, pixels, origin.origin)
        for (spec, pixels), origin in found.items()
    ]


def run(lines):
    """The names that the lines leave behind."""
    names: dict = {}
    exec(compile(lines, "snippet", "exec"), names)
    return names


def same_features(names):
    """The library's features are ours, which the last lines made.

    Where torchvision resizes bytes and we with Pillow, some pixels are a level apart.
    """
    ours, allowed = names["features"], 5e-3 if "processor" in names else 1e-5
    for name in ("cls", "patches", *(["registers"] if "registers" in names else [])):
        found = np.asarray(names[name], np.float32)
        want = np.asarray(getattr(ours, name))
        assert found.shape == want.shape
        apart = np.linalg.norm(found - want) / max(np.linalg.norm(want), 1e-9)
        assert apart < allowed, (name, apart)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of other people's libraries
@pytest.mark.parametrize("format", ["hf", "timm"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_lines_run_as_pasted_for_what_every_recipe_trains(name, format, tmp_path, monkeypatch):
    needs(format)
    monkeypatch.chdir(tmp_path)  # the lines name the folder as it was given
    for number, network in enumerate(networks(name)):
        library = LIBRARIES[format, family(network.spec)]
        if library.refusals(network.spec):
            with pytest.raises(ValueError, match="cannot hold this network"):
                export(network, tmp_path / "no", format=format, certify=False)
            continue
        out = f"out{number}"
        export(network, tmp_path / out, format=format, certify=False)
        lines = snippet(out, format, network.spec)
        same_features(run(lines))


PER_CROP = Preprocessing(16, 20, "per_crop", None, None)
CASES = {
    "grey per crop": (TRAINED, PER_CROP),
    "colour per crop": (RELEASED, PER_CROP),
    "grey": (TRAINED, Preprocessing(16, 20, "fixed", (0.4,), (0.2,))),
    "convnext": (CONVNEXT, Preprocessing(64, 72, "fixed", (0.4,) * 3, (0.2,) * 3)),
    "rectangle": (RELEASED, Preprocessing((16, 24), 26, "fixed", (0.4,) * 3, (0.2,) * 3)),
    "squashed": (
        RELEASED,
        Preprocessing(16, (16, 16), "fixed", (0.4,) * 3, (0.2,) * 3, "exact", "bilinear", "floats"),
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("format", ["hf", "timm", "stablehlo", "dinojax"])
@pytest.mark.parametrize("case", [*CASES, "five channels"])
def test_the_lines_run_as_pasted_for_every_kind_of_pixels(case, format, tmp_path, monkeypatch):
    if format in ("hf", "timm"):
        needs(format)
    monkeypatch.chdir(tmp_path)
    if case == "five channels":
        spec = type(RELEASED)(**{**vars(RELEASED), "channels": 5})
        own = Preprocessing(16, 20, "fixed", (0.4,) * 5, (0.2,) * 5)
    else:
        spec, own = CASES[case]
    made = random_network(spec)
    network = Network(spec, made.tensors, {}, own, {"from": "a test"})
    name = 'a "quoted" name'
    if (case, format) == ("rectangle", "timm"):  # it has no such pair of sizes
        with pytest.raises(ValueError, match="--format timm: its transform does not do these two"):
            export(network, tmp_path / name, format=format, certify=False)
        return
    export(network, tmp_path / name, format=format, certify=False)
    names = run(snippet(name, format, spec))
    if format == "dinojax":
        assert np.isfinite(names["features"].cls).all()
    else:
        same_features(names)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("spec, format", [(PLAIN, "hf"), (SMOOTH, "timm"), (RELEASED, "hf")])
def test_the_lines_run_as_pasted_for_weights_in_bfloat16(spec, format, tmp_path, monkeypatch):
    needs(format)
    monkeypatch.chdir(tmp_path)
    export(random_network(spec), tmp_path / "o", format=format, dtype="bfloat16", certify=False)
    same_features(run(snippet("o", format, spec)))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_what_the_command_prints_runs_and_stands_in_the_card(tmp_path, monkeypatch, capsys):
    needs("hf")
    monkeypatch.chdir(tmp_path)
    made = random_network(TRAINED)
    export(Network(made.spec, made.tensors, {}, PER_CROP, {"from": "x"}), "own", format="dinojax")
    main(["export", "--weights", "own", "--format", "hf", "--out", "out", "--no-certificate"])
    printed = capsys.readouterr().out
    assert "preprocessing: torchvision resizes" in printed
    lines = printed.partition("To use it:\n\n")[2].rstrip("\n") + "\n"
    same_features(run(lines))
    assert f"```python\n{lines}```" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("case", CASES)
def test_pixels_by_hand_are_those_of_the_preprocessing(case, tmp_path):
    spec, own = CASES[case]
    network = Network(spec, random_network(spec).tensors, {}, own, {"from": "a test"})
    export(network, tmp_path / "out", format="dinojax", certify=False)
    lines = snippet(tmp_path / "out", "stablehlo", spec, own)
    lines = lines[: lines.index("program = ")].replace("from jax import export\n", "")
    names = run(lines)
    want = dinojax.load(tmp_path / "out").preprocessing(np.asarray(names["image"]))
    np.testing.assert_allclose(names["images_BHWC"][0], want, atol=1e-5)


def front_matter(text):
    """The fields at the head of a card, and the rest."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1]), found[2]


@pytest.mark.parametrize("format", ["hf", "timm", "meta", "dinojax"])
@pytest.mark.parametrize("spec", [RELEASED, DINOV2, CONVNEXT], ids=["dinov3", "dinov2", "convnext"])
def test_an_export_has_a_card_with_origin_preprocessing_and_the_lines(spec, format, tmp_path):
    if format in ("hf", "timm") and spec is DINOV2:
        spec = PLAIN if format == "hf" else SMOOTH
    export(random_network(spec, size=64), tmp_path / "out", format=format, certify=False)
    fields, text = front_matter((tmp_path / "out" / "README.md").read_text())
    assert fields["license"] == "other" and "dinojax" in fields["tags"]
    assert fields["pipeline_tag"] == "image-feature-extraction"
    for section in ("Use", "Preprocessing", "Origin", "Certificate", "Licence", "Citation"):
        assert f"\n## {section}\n" in text
    own = dinojax.load(tmp_path / "out").preprocessing
    assert snippet("out", format, spec, own, files=tmp_path / "out") in text
    assert "arXiv:2" in text and str(tmp_path) not in text
    assert "resize the short side to 64 pixels, bicubic" in text


def test_the_card_of_a_run_tells_recipe_stage_step_and_data(tmp_path):
    values = config.load("tiny", ["data.path=/data/x`y"]).to_dict()
    made = random_network(TRAINED)
    origin = {"from": "/home/someone/runs/tiny3", "from_format": "run", "step": 1200}
    origin |= {"network": "ema", "stage": "pretrain", "recipe": "tiny", "config": values}
    network = Network(made.spec, made.tensors, {}, made.preprocessing, origin)
    parity = {"library": None, "reason": "left out on request"}
    text = card(network, "hf", name="o", folder=tmp_path, notes=["a note"], parity=parity)
    assert "from `tiny3`, format run" in text and "/home/someone" not in text
    assert "recipe `tiny`, stage `pretrain`, ema of step 1,200 of 1,200" in text
    assert "data: source `tiles`, path `/data/xy`" in text
    assert "- a note" in text and "left out on request" in text
    json.dumps(front_matter(text)[0])

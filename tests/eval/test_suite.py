"""The table of evaluations: what is added to it from outside is seen everywhere."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dinojax.eval import row, suite
from dinojax.eval.network import Network, parsed
from dinojax.runs import records

ROOT = Path(__file__).parent.parent.parent
NAMES = list(suite.SUITE)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_has_a_file_with_keys_and_a_main_column_of_its_own(name):
    evaluation = suite.SUITE[name]
    defaults = {
        f"{evaluation.section}.{k}": v for k, v in suite.defaults()[evaluation.section].items()
    }
    assert f"{evaluation.section}.every" in defaults
    main = evaluation.main_column(defaults)
    assert [other.owns(main) for other in suite.SUITE.values()].count(True) == 1
    assert evaluation.owns(main) and evaluation.prefix.endswith("/")
    assert not evaluation.is_watched or evaluation.unit == "%"
    source = Path(row.importlib.util.find_spec(evaluation.module).origin).read_text()
    assert "\ndef build(section, setting: Setting)" in source


def test_keys_are_read_from_the_text_and_no_file_is_run(tmp_path, monkeypatch):
    path = tmp_path / "strange.py"
    monkeypatch.syspath_prepend(tmp_path)
    path.write_text("raise SystemExit\nKEYS: dict = {'a': {'default': 1, 'says': 'b; [ours]'}}\n")
    assert row.keys_of("strange") == {"a": {"default": 1, "says": "b; [ours]"}}
    assert row.protocols_of("strange") == {} and "strange" not in sys.modules
    for name, text, told in (
        ("called", "KEYS = dict(a=1)", "KEYS is no literal"),
        (
            "named",
            "KEYS = {'a': {'default': 1, 'say': 'b'}}",
            r"KEYS\['a'\] has \['default', 'say'\]",
        ),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(ValueError, match=rf"{name}\.py: {told}"):
            row.keys_of(name)
    with pytest.raises(ValueError, match="suite.py names dinojax.eval.absent, which is not there"):
        row.keys_of("dinojax.eval.absent")


def test_outputs_are_named_by_kind_block_and_norm():
    assert parsed(("cls", "mean@0", "patches@-2:raw"), depth=4) == {
        "cls": ("cls", 3, True),
        "mean@0": ("mean", 0, True),
        "patches@-2:raw": ("patches", 2, False),
    }
    with pytest.raises(ValueError, match="'cls@4': this backbone has blocks 0 to 3"):
        parsed(("cls@4",), depth=4)
    with pytest.raises(ValueError, match="'token': give cls, mean, patches or registers"):
        parsed(("token",), depth=4)


def test_features_are_extracted_once_for_all_that_ask_for_the_same(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "dinojax.eval.features.extract_outputs", lambda apply, source, **how: seen.append(source)
    )
    network, one, other = Network(lambda params, images: None, {}), *map(_Source, "ab")
    for source in (one, other, one):
        network.extract(source, "transform", batch_size=2)
    network.extract(one, "transform", ("patches",), batch_size=2)
    assert seen == [one, other, one]


class _Source:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


def added(tree):
    """The tree with the two blocks of the worked example; how many files that touched."""
    for folder in ("dinojax", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "golden", "recorded")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    page = (ROOT / "docs/evaluation.md").read_text().split("## Adding one")[1]
    file, table_row = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tree / "dinojax/eval/likeness.py").write_text(file)
    table = tree / "dinojax/eval/suite.py"
    text = table.read_text()
    end = "\n}\n\n\ndef sections"
    assert text.count(end) == 1
    table.write_text(text.replace(end, f"\n{table_row.rstrip()}{end}"))


@pytest.mark.slow
def test_an_evaluation_added_by_a_file_and_a_row_is_seen_everywhere(tmp_path):
    """In train, config, command line, report and lists: the worked example of the docs."""
    added(tmp_path)
    run = tmp_path / "run"
    environ = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.toy_evaluation", str(run), str(tmp_path / "other")],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    told = ended.stdout + ended.stderr
    assert ended.returncode == 0, told
    assert re.findall(r"^> .* -> (\d+)$", told, re.MULTILINE) == ["0"] * 5 + ["2"], told
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    during = {r["step"]: r["likeness/cls"] for r in rows if "likeness/cls" in r}
    assert during.keys() == {0, 2} and all(-1 <= value <= 1 for value in during.values())
    assert f"step 2: likeness {during[2]:.4g}" in told
    (record,) = records.read(run / "eval")
    assert record["values"]["likeness/cls"] == pytest.approx(during[2], abs=1e-6)
    assert record["intervals"]["likeness/cls"][0] < during[2] and record["n"] == 24
    assert f"protocol {record['fingerprint']}" in (run / "report.html").read_text()
    assert "likeness: likeness, mean cosine between the cls tokens" in told
    assert "likeness.batch_size: images per pass" in told
    assert "likeness.every=0 is out of range; use a value at least 1" in told
    report = (run / "report.html").read_text()
    assert "<b>Likeness</b> Mean cosine between the cls tokens of two images." in report
    assert "likeness.batch_size" in report
    np.testing.assert_allclose(during[0], during[2], atol=0.2)

"""Recorded numbers of the reference agree with ours, and a planted error is found."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests import replay_golden

GOLDEN = Path(__file__).parent / "data"
FAST = {"collate", "gram_resize", "param_groups", "schedules", "softmax_centering", "dino_head_n3"}
FAST |= {"vit_storage_maskk", "vit_drop_path", "dinotxt_clip_loss_n8"}
FAST |= {"metrics_classification", "metrics_imagenet_c", "metrics_imagenet_c_b", "fewshot_lsr"}
FAST |= {"logreg_binary", "logreg_multiclass", "eval_subsets", "eval_transforms", "knn_module_b"}
FAST |= {"retrieval_revisitop", "retrieval_amstertime", "retrieval_met", "linear_probe_sgd"}
FAST |= {"seg_miou", "seg_losses"}
FAST |= {"dense_schedules", "dense_transforms", "canopy_metrics", "correspondence_spair"}
FAST |= {"objects_tokencut", "demo_pca_foreground", "video_davis_jf"}
FAST |= {"curation_allocation", "curation_batch_mixing", "curation_kmeans_b"}
FAST |= {"curation_dedup_own_truth"}
FAST |= {"gradient_scaling", "detection_boxes", "detection_coco_ap"}
NEEDS = {"dinotxt_tokenizer": "open_clip"}  # which ships the vocabulary
FILES = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else [pytest.mark.slow])
    for path in sorted(GOLDEN.iterdir())
    if path.suffix != ".md"
]


def altered(tmp_path, name, **meta):
    """A copy of a recorded .npz with other metadata."""
    with np.load(GOLDEN / name) as arrays:
        entries = dict(arrays)
    entries["__meta__"] = json.dumps({**json.loads(str(entries["__meta__"])), **meta})
    np.savez(tmp_path / name, **entries)
    return str(tmp_path / name)


@pytest.mark.parametrize("path", FILES)
def test_recorded_numbers_are_reproduced(path):
    package = NEEDS.get(path.stem, "numpy")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    lines = list(replay_golden.replay(path))
    assert any(line.endswith("ok") for line, _ in lines)
    assert [line for line, failed in lines if failed] == []


def test_a_temperature_off_by_a_percent_fails(tmp_path, capsys):
    path = altered(tmp_path, "softmax_centering.npz", teacher_temp=0.0707)
    assert replay_golden.main([path]) == 1
    output = capsys.readouterr().out
    assert "out/cls/probs0" in output and "FAIL" in output
    (center,) = [line for line in output.splitlines() if " out/cls/center1:" in line]
    assert center.endswith("ok")


def test_a_schedule_off_by_a_percent_fails(tmp_path, capsys):
    entries = json.loads((GOLDEN / "schedules.json").read_text())
    name = next(iter(entries))
    entries = {name: entries[name]}
    entries[name]["samples"][5]["wd"] *= 1.01
    path = tmp_path / "schedules.json"
    path.write_text(json.dumps(entries))
    assert replay_golden.main([str(path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert len(failed) == 1 and f"{name}/wd" in failed[0]


def test_what_is_skipped_is_said_aloud_and_not_counted(capsys, tmp_path):
    entries = json.loads((GOLDEN / "param_groups.json").read_text())
    path = tmp_path / "param_groups.json"
    path.write_text(json.dumps({k: v for k, v in entries.items() if "UNUSED" in k}))
    assert replay_golden.main([str(path)]) == 1
    output = capsys.readouterr().out
    assert "skipped, a function the reference's training does not call" in output
    assert "no quantity was compared FAIL" in output


def test_a_file_of_another_name_is_told_by_its_content(tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes((GOLDEN / "schedules.json").read_bytes())
    assert replay_golden.main([str(path)]) == 0


def test_an_unknown_file_fails_and_names_the_kinds(tmp_path, capsys):
    np.savez(tmp_path / "mystery.npz", x=np.zeros(3))
    assert replay_golden.main([str(tmp_path / "mystery.npz")]) == 1
    output = capsys.readouterr().out
    assert "mystery.npz: 0 kinds of recording fit" in output and "loss_dino" in output


def test_a_missing_file_and_no_file_fail(tmp_path):
    assert replay_golden.main([str(tmp_path / "nothing.npz")]) == 1
    assert replay_golden.main([]) == 1


def check(ours, recorded, bound):
    return replay_golden.errors(replay_golden.Check("x", ours, recorded, bound))


def test_nan_and_another_shape_are_failures():
    assert not check(np.array([np.nan, 1.0]), np.array([1.0, 1.0]), 1e9)[2]
    assert not check(np.ones((1, 2)), np.ones(2), 1e9)[2]


def test_errors_are_largest_and_relative_to_the_largest_magnitude():
    absolute, relative, ok = check(np.array([0.1, 9.0]), np.array([0.0, 10.0]), 0.5)
    assert (absolute, relative, ok) == (1.0, 0.1, False)
    assert check(np.array([0.1, 9.0]), np.array([0.0, 10.0]), 1.0)[2]


def test_bounds_follow_the_number_format_and_the_file(tmp_path):
    record = replay_golden.Record(altered(tmp_path, "softmax_centering.npz"))
    values = np.array([-4.0, 2.0], np.float32)
    assert record.bound(values) == pytest.approx(8e-5)
    assert record.bound(values.astype(np.float64)) == pytest.approx(4e-9)
    assert record.bound(np.array([3, 4])) == 0.0
    record.meta["f32_vs_f64_maxabs"] = 1e-6
    assert record.bound(values) == pytest.approx(3e-6)
    record.meta["f32_vs_f64_maxabs"] = 1.0
    assert record.bound(values) == pytest.approx(8e-5)

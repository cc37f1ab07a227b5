"""The benchmark of COCO's numbers: neither too easy nor too hard, and it sees another answer."""

import json

import numpy as np
import pytest

from benchmarks import detection_ap

SMALL = ["detection_ap", "--images", "6", "--classes", "3", "--queries", "120"]


def row(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", SMALL)
    detection_ap.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(("change", "equal"), [(0.0, True), (1e-6, False)])
def test_a_peer_that_says_something_else_is_not_equal(monkeypatch, capsys, change, equal):
    ours = detection_ap.ours
    monkeypatch.setattr(detection_ap, "theirs", lambda *given: ours(*given) + change)
    found = row(monkeypatch, capsys)
    assert found["equal"] is equal
    assert found["largest_difference"] == pytest.approx(change, abs=1e-12)
    assert 0.1 < found["ap"] < 0.9  # neither all right nor all wrong
    assert found["value"] >= 0 and found["unit"] == "processor s"


def test_the_objects_as_a_file_are_those_as_columns():
    truth = detection_ap.objects(5, 4, seed=0)
    content = detection_ap.content(truth, 4)
    assert [x["image_id"] for x in content["annotations"]] == truth[0].tolist()
    boxes = np.array([x["bbox"] for x in content["annotations"]])
    np.testing.assert_array_equal(boxes, np.concatenate(truth[2:4], axis=1))
    assert len(content["images"]) == 5 and len(content["categories"]) == 4
    areas = [x["area"] for x in content["annotations"]]
    np.testing.assert_allclose(areas, boxes[:, 2] * boxes[:, 3])


def test_the_numbers_are_those_of_pycocotools(monkeypatch, capsys):
    pytest.importorskip("pycocotools")
    assert row(monkeypatch, capsys)["equal"] is True

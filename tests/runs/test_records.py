"""Records of evaluations: what they hold, and what may stand in one column."""

import pytest

from dinojax.runs import records
from dinojax.runs.records import Record


def record(step, value=50.0, neighbors=20, checksum="a", **changes):
    return Record(
        evaluation="knn",
        values={"knn/cls": value},
        intervals={"knn/cls": (value - 1, value + 1)},
        n=100,
        protocol={"settings": {"neighbors": neighbors}, "data": [{"fingerprint": "d"}]},
        weights={"from": "run", "checksum": checksum},
        step=step,
        stage="pretrain",
        **changes,
    )


def test_a_fingerprint_is_of_content_and_not_of_the_order_of_keys():
    assert records.fingerprint({"a": 1, "b": [2]}) == records.fingerprint({"b": [2], "a": 1})
    assert record(1).fingerprint == record(2, 3.0).fingerprint != record(1, neighbors=5).fingerprint
    with pytest.raises(ValueError):
        records.fingerprint({"a": float("nan")})


def test_other_protocols_stand_apart_and_the_newest_of_equal_ones_counts(tmp_path):
    for one in (record(20), record(10), record(20, 60.0), record(20, 70.0, neighbors=5)):
        records.append(tmp_path / "eval", one)
    groups = records.grouped(records.read(tmp_path / "eval"))
    found = {
        key[1]: [(r["step"], r["values"]["knn/cls"]) for r in rows] for key, rows in groups.items()
    }
    assert found == {
        record(1).fingerprint: [(10, 50.0), (20, 60.0)],
        record(1, neighbors=5).fingerprint: [(20, 70.0)],
    }


def test_what_earlier_versions_wrote_is_left_out_and_what_is_no_record_is_named(tmp_path):
    path = records.append(tmp_path, record(1, more={"told": "100 queries"}))
    path.write_text('{"step": 4, "cls": 31.2}\n' + path.read_text())
    (row,) = records.read(tmp_path)
    assert row["told"] == "100 queries" and row["intervals"] == {"knn/cls": [49.0, 51.0]}
    path.write_text(path.read_text().replace('"n": 100', '"n": "many"'))
    with pytest.raises(ValueError, match=r"knn\.jsonl:2: n is 'many'"):
        records.read(tmp_path)

"""Rows in little memory are the rows that were read."""

import tracemalloc

from dinojax.runs.rows import Rows

ROW = {"step": 7, "stage": "pretrain", "total": 1.5, "knn": None, "time": "2026-11-30T00:00:00Z"}


def test_rows_come_back_as_they_were_in_their_order_of_columns():
    other = {"step": 8, "time": 1.0, "probe/drift": -0.0}
    rows = Rows([ROW, other, ROW])
    assert list(rows) == [ROW, other, ROW] and rows[-2:] == [other, ROW]
    assert list(rows[0]) == list(ROW) and type(rows[0]["step"]) is int
    assert len(Rows()) == 0 and Rows()[-1:] == []


def test_a_column_is_the_numbers_of_the_rows_that_have_one():
    rows = Rows([ROW, {"step": 8, "knn": 3.0}, {"knn": -1.0, "step": 9, "total": 2.0}])
    assert rows.column("knn") == [(8, 3.0), (9, -1.0)] and type(rows.column("knn")[0][0]) is int
    assert rows.column("total") == [(7, 1.5), (9, 2.0)]
    assert rows.column("stage") == rows.column("absent") == []


def test_rows_take_a_fraction_of_what_dicts_take():
    def made():
        for step in range(500):
            yield {"step": step, "stage": "pretrain", **{f"c{i}": step + i / 7 for i in range(50)}}

    def taken(kind):
        tracemalloc.start()
        kept = kind(made())
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(kept) == 500
        return size

    assert 4 * taken(Rows) < taken(list)

"""Dense features that degrade while k-NN does not: told with the way on, and nothing else is."""

import pytest

from dinojax import config
from dinojax.runs.degradation import advice, degraded
from dinojax.runs.early_stopping import Watch

VALUES = config.load("tiny", ["knn.features=cls", "stage=pretrain"]).values()
DENSE = (30.0, 40.0, 42.0, 40.5, 40.0, 39.0)


def rows(dense=DENSE, knn=(20, 30, 40, 41, 41, 42), cosine=(0.1, 0.2, 0.3, 0.35, 0.4, 0.5)):
    for number, values in enumerate(zip(dense, knn, cosine, strict=True)):
        yield {"step": 100 * number, "probe/drift": 0.1}
        named = dict(zip(("ridge/miou", "knn/cls", "tokens/cls_patch"), values, strict=True))
        yield {"step": 100 * number, **named}


def test_three_below_the_best_with_the_other_signs_are_told():
    found = degraded(VALUES, rows())
    assert found.best == 200
    assert "42.0 % at step 200, then 40.5, 40.0, 39.0 %" in found.evidence
    assert "knn/cls 40.0 % -> 42.0 %; tokens/cls_patch 0.300 -> 0.500" in found.evidence
    assert "gram.anchor=pretrain/200" in advice(VALUES, found.best)


@pytest.mark.parametrize(
    "other",
    [
        {"dense": (30.0, 40.0, 42.0, 41.2, 40.0, 39.0)},  # two alone are more than a point below
        {"dense": (30.0, 40.0, 42.0, 40.5, 43.0, 39.0)},
        {"knn": (20, 30, 40, 41, 41, 39.9)},
        {"cosine": (0.1, 0.2, 0.3, 0.35, 0.4, 0.3)},
        {"cosine": (None,) * 6},
    ],
    ids=["above", "new best", "k-NN falls", "cosine", "not measured"],
)
def test_without_one_of_the_signs_nothing_is_said(other):
    assert degraded(VALUES, rows(**other)) is None


def test_few_evaluations_say_nothing():
    assert degraded(VALUES, list(rows())[:6]) is None and degraded(VALUES, []) is None


def test_evaluations_at_other_steps_count_where_they_were_last_measured():
    spread = [
        {"step": row["step"] + shift, name: value}
        for row in rows()
        for shift, (name, value) in enumerate(row.items())
        if name != "step"
    ]
    assert degraded(VALUES, sorted(spread, key=lambda row: row["step"])).best == 201


def test_a_watch_warns_once_also_after_a_stop(caplog):
    loaded = config.load("tiny", ["knn.features=cls"])
    watch = Watch(loaded.until, loaded.knn, values=loaded.values())
    seen = list(rows())
    watch.begin(watch.of_interest(seen[:-2]))
    for row in (seen[-1], seen[-1] | {"step": 600}):
        watch.add_evaluation(row["step"], {k: v for k, v in row.items() if k != "step"})
    told = [record.message for record in caplog.records]
    assert [text.startswith("ALARM: dense features degrade") for text in told] == [True]

"""Mixtures: shares, homogeneous batches, and the same draws on any hosts and after any restart."""

import dataclasses
import pickle

import numpy as np
import pytest

from dinojax import config
from dinojax.cli import main
from dinojax.config.stages import BoxDraw, SizeDraw
from dinojax.configs import base
from dinojax.data.decode import DecodeError
from dinojax.data.loader import Loader
from dinojax.data.mixture import NUM_CARDS, Deck, Mixture, Part, batch_ids, cards, num_drawn
from dinojax.data.order import image_index
from dinojax.data.quarantine import Quarantine, TooManyBadImages, read_list, read_or_replace
from dinojax.data.sources import open_knn_sources, open_source
from dinojax.monitor import autopsy
from dinojax.runs.scalars import read_metrics
from dinojax.train import loop, trainer
from tests.support import small, stored_data
from tests.support.number_source import NumberSource
from tests.support.spoiled import Spoiled

SIZES = {"in1k": 1000, "web": 70_000, "street": 300}


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers(NumberSource):
    """Image i is filled with i modulo 251."""

    def read(self, index, box_size=None):
        return super().read(index % 251, box_size)


def mixture(weights=(0.0, 3.0, 1.0), alone=(0.1, 0.0, 0.0)):
    rows = zip(SIZES, SIZES.values(), weights, alone, strict=True)
    return Mixture(tuple(Part(n, Numbers(size=s), w, a) for n, s, w, a in rows))


def draws(found, num_steps, batch_size=20, seed=3, start=0):
    """Ids int64 [steps, B]."""
    return np.stack(
        [
            batch_ids(found, seed=seed, position=start + n * batch_size, batch_size=batch_size)
            for n in range(num_steps)
        ]
    )


def kinds(ids):
    """Number of the part of every id."""
    return np.searchsorted(np.cumsum(list(SIZES.values())), ids, side="right")


@pytest.fixture(scope="module")
def drawn():
    return draws(mixture(), 1000)


def test_homogeneous_batches_hold_one_source_and_mixed_ones_never_hold_it(drawn):
    alone = (kinds(drawn) == 0).mean(axis=1)
    assert set(alone.tolist()) == {0.0, 1.0}
    assert (kinds(drawn[alone == 0]) == 2).any(axis=1).mean() > 0.98  # mixed: 0.75**20 = 0.3 %


def test_shares_are_those_asked_for_within_the_error_of_as_many_independent_draws(drawn):
    alone = (kinds(drawn) == 0).all(axis=1)
    assert abs(alone.mean() - 0.1) < 3 * np.sqrt(0.1 * 0.9 / len(drawn))
    mixed = kinds(drawn[~alone])
    assert abs((mixed == 1).mean() - 0.75) < 3 * np.sqrt(0.75 * 0.25 / mixed.size)
    # Where in a batch, and how many in one, is left to chance: a mix does not alternate.
    assert abs((mixed == 1).mean(axis=0) - 0.75).max() < 5 * np.sqrt(0.19 / len(mixed))
    spread = (mixed == 1).sum(axis=1).var()
    assert 0.8 < spread / (20 * 0.75 * 0.25) < 1.2


def test_shares_are_exact_over_a_whole_deck():
    deck = Deck(7, cards("ab", [0.29, 0.71]))
    for start in (0, NUM_CARDS):
        assert np.bincount(deck.kinds(start, NUM_CARDS)).tolist() == [2900, 7100]
    assert not np.array_equal(deck.kinds(0, NUM_CARDS), deck.kinds(NUM_CARDS, NUM_CARDS))


def test_every_source_goes_through_its_own_epochs_in_its_own_order(drawn):
    found, flat = mixture(), drawn.reshape(-1)
    for number, (name, ids) in enumerate(found.ids().items()):
        own = flat[kinds(flat) == number] - ids.start
        whole = len(own) // len(ids) * len(ids)
        assert whole or name == "web"
        for epoch in own[:whole].reshape(-1, len(ids)):
            assert sorted(epoch) == list(range(len(ids)))
        assert len(set(own[whole:])) == len(own) - whole
    # Another source beside it, or another weight, leaves the order of a source as it is.
    other = draws(mixture(weights=(0.0, 1.0, 1.0), alone=(0.2, 0.0, 0.1)), 300).reshape(-1)
    streets = [x[kinds(x) == 2][:500] for x in (flat, other)]
    np.testing.assert_array_equal(*streets)


def test_the_count_of_images_drawn_needs_no_history(drawn):
    found = mixture()
    for step in (0, 1, 77, 999):
        counted = np.bincount(kinds(drawn[:step]).reshape(-1), minlength=3)
        told = num_drawn(found, seed=3, position=step * 20, batch_size=20)
        assert list(told.values()) == counted.tolist()
    far = num_drawn(found, seed=3, position=10**7 * 4096, batch_size=4096)
    assert far == {"in1k": 10**6 * 4096, "web": 27 * 4096 * 250_000, "street": 9 * 4096 * 250_000}
    assert batch_ids(found, seed=3, position=10**7 * 4096, batch_size=4096).shape == (4096,)


def test_hosts_and_restarts_draw_alike():
    """Also across the boundary of a deck."""
    found, start = mixture(), (NUM_CARDS - 2) * 6

    def take(num, **options):
        settings = dict(batch_size=6, box_size=2, seed=1, num_threads=0, start=start)
        with Loader(found, **settings | options) as loader:
            return np.stack([next(loader)["ids"] for _ in range(num)])

    whole = take(8)
    hosts = [take(8, num_hosts=2, host_index=host) for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(hosts, axis=1), whole)
    np.testing.assert_array_equal(take(5, start=start + 18), whole[3:])
    with pytest.raises(ValueError, match="100 images are no whole number of batches of 6"):
        take(1, start=100)


def test_hosts_draw_the_same_size_for_every_step():
    """With several sizes of crops: or the hosts would run different programs, and wait for ever."""
    boxes = BoxDraw(SizeDraw(5, (0.3, 0.3)), (2, 3, 4))

    def take(**options):
        settings = dict(batch_size=6, box_size=boxes, seed=1, num_threads=0, start=0)
        with Loader(mixture(), **settings | options) as loader:
            return [next(loader) for _ in range(12)]

    whole, hosts = take(), [take(num_hosts=2, host_index=host) for host in range(2)]
    assert {batch["images"].shape[1] for batch in whole} == {2, 3, 4}
    for step, batch in enumerate(whole):
        for name in ("images", "ids", "sizes"):
            joined = np.concatenate([host[step][name] for host in hosts])
            np.testing.assert_array_equal(joined, batch[name])


def test_an_ordinary_source_keeps_its_order():
    ids = batch_ids(NumberSource(), seed=1, position=6, batch_size=6)
    np.testing.assert_array_equal(ids, image_index(1, np.arange(6, 12), 23))
    assert num_drawn(NumberSource(), seed=1, position=6, batch_size=6) == {}


def test_only_homogeneous_batches_need_no_weights():
    ids = draws(mixture(weights=(0.0, 0.0, 0.0), alone=(0.3, 0.6, 0.1)), 200)
    assert ((kinds(ids) == kinds(ids)[:, :1]).all(axis=1)).all()
    assert abs((kinds(ids)[:, 0] == 0).mean() - 0.3) < 0.1


def test_a_share_that_would_never_be_drawn_is_an_error():
    with pytest.raises(ValueError, match=r"the share of street, 1e-05, is below 1/10,000"):
        mixture(weights=(0.0, 1.0, 1e-5)).check()
    assert cards("abc", [1.0, 1.0, 1.0]) == (3334, 3333, 3333)


def test_a_mixture_is_a_source_that_travels_and_whose_fingerprint_covers_all(tmp_path):
    found = pickle.loads(pickle.dumps(mixture()))
    assert len(found) == sum(SIZES.values()) and found.labels is None
    assert found.read(71_003).pixels[0, 0, 0] == 3 and found[1005].pixels[0, 0, 0] == 5
    with pytest.raises(IndexError, match="image 71300 of a mixture of 71300"):
        found.part_of(71_300)
    images = {f"{n}.png": stored_data.png(n) for n in range(3)}
    stored_data.folder(tmp_path / "a", images), stored_data.folder(tmp_path / "b", images)
    section = config.load("tiny", two_folders(tmp_path)).data
    before = open_source(section, channels=1).fingerprint
    assert open_source(section, channels=1).fingerprint == before
    (tmp_path / "b" / "2.png").unlink()
    assert open_source(section, channels=1).fingerprint != before


def two_folders(root):
    rows = (base.part("a", "a", weight=1), base.part("b", str(root / "b"), weight=3, alone=0.25))
    return [f"data.mixture={rows}", f"data.path={root}"]


def test_a_substitute_comes_from_the_same_source_and_is_listed_with_its_name(tmp_path):
    parts = [Part("good", NumberSource(), 1.0, 0.0), Part("poor", Spoiled(), 1.0, 0.0)]
    found = Mixture(tuple(parts))
    example, bad = read_or_replace(found, 23 + 17, 2)
    assert bad.substitute in found.ids()["poor"] and bad.id == 40
    assert example.pixels[0, 0, 0] == bad.substitute - 23
    alone = read_or_replace(Spoiled(), 17, 2)[1]
    assert (bad.substitute - 23, bad.reason) == (alone.substitute, alone.reason)
    listed = Quarantine(tmp_path, max_share=1.0, parts=found.ids())
    listed.add([bad], range(63))
    assert read_list(listed.path)[0]["source"] == "poor"


def test_a_bad_source_is_not_hidden_by_a_large_good_one(tmp_path):
    class Rotten(NumberSource):
        def read(self, index, box_size=None):
            if index % 2:
                raise DecodeError(f"cannot decode {index}.jpg")
            return super().read(index, box_size)

    parts = [Part("web", Numbers(size=9000), 0.99, 0.0), Part("new", Rotten(30), 0.01, 0.0)]
    found = Mixture(tuple(parts))
    quarantine = Quarantine(tmp_path, max_share=0.01, parts=found.ids())
    settings = dict(batch_size=100, box_size=2, seed=1, num_threads=0, quarantine=quarantine)
    with (
        Loader(found, **settings) as loader,
        pytest.raises(TooManyBadImages, match=r"11 of \d\d images of new could not be read"),
    ):
        for _ in range(100):
            next(loader)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "(('a', 'folder', '/a', 1.0),)",
            "expected rows of (text, text, text, a number, a number)",
        ),
        ("(('a', 'folder', '/a', 'x', 0),)", "expected rows of"),
        ("1", "data.mixture=1 has the wrong type"),
        ("(('A', 'folder', '/a', 1, 0),)", "'A' is no name or there twice"),
        ("(('a','folder','/a',1,0), ('a','folder','/b',1,0))", "'a' is no name or there twice"),
        ("(('a', 'zip', '/a', 1, 0),)", "has source 'zip'; use 'folder', 'manifest'"),
        ("(('a', 'folder', '', 1, 0),)", "'a' has no path"),
        ("(('a', 'folder', '/a', 0, 0),)", "weight=0.0 and alone=0.0; use"),
        ("(('a','folder','/a',0,.6), ('b','folder','/b',0,.6))", "sum to 1.2, which exceeds 1"),
        ("(('a', 'folder', '/a', 0, 0.5),)", "0.5 of the batches are mixed, but the weights sum"),
        (
            "(('a', 'folder', '/a', 1, 1.0),)",
            "0 of the batches are mixed, but the weights sum to 1",
        ),
    ],
)
def test_a_wrong_mixture_is_refused_with_the_move(rows, message):
    with pytest.raises(config.ConfigError) as caught:
        config.load("tiny", [f"data.mixture={rows}"])
    assert message in str(caught.value)


def test_a_source_beside_a_mixture_steps_aside_or_is_refused(folders):
    embedded = config.load("tiny", two_folders(folders))
    assert embedded.data.source == "tiles" and len(open_source(embedded.data, channels=1)) == 12
    other = config.load("tiny", [*two_folders(folders), "data.source=tar"])
    with pytest.raises(ValueError, match="data.source='tar' has no meaning beside data.mixture"):
        open_source(other.data, channels=1)


def test_a_missing_folder_and_a_missing_bank_are_named(tmp_path):
    loaded = config.load("tiny", two_folders(tmp_path))
    with pytest.raises(FileNotFoundError, match="path of a in data.mixture=.*/a does not exist"):
        open_source(loaded.data, channels=1)
    assert open_knn_sources(loaded.data, loaded.knn, channels=1) is None
    queries = config.load("tiny", [*two_folders(tmp_path), f"knn.query={tmp_path}"])
    with pytest.raises(ValueError, match="a mixture has no labels to vote with: set knn.bank"):
        open_knn_sources(queries.data, queries.knn, channels=1)


def test_a_mixture_survives_the_run_directory(tmp_path):
    loaded = config.load("tiny", two_folders(tmp_path))
    config.save(loaded, tmp_path / "config.json")
    assert config.read(tmp_path) == loaded
    assert loaded.data.mixture[1] == ("b", "folder", str(tmp_path / "b"), 3.0, 0.25)


@pytest.fixture
def folders(tmp_path):
    for name, numbers in {"a": range(5), "b": range(5, 12)}.items():
        images = {f"{number}.png": stored_data.png(number) for number in numbers}
        stored_data.folder(tmp_path / name, images)
    return tmp_path


def test_data_check_reads_every_source_of_a_recipe(folders, capsys):
    (folders / "b" / "bad.png").write_bytes(b"broken")
    sets = [word for setting in two_folders(folders) for word in ("--set", setting)]
    assert main.main(["data", "check", "--config", "tiny", *sets]) == main.FINISHED
    told = capsys.readouterr().out
    first, second, drawn = told.split("== ")[1:]
    assert first.startswith("a\nimages            5, ") and "unreadable        0" in first
    assert second.startswith("b\nimages            8, ") and "unreadable        1" in second
    assert "drawn from 5 images, 18.7% of all, 2,876.40 epochs" in drawn  # 0.75 / 4 = 18.75 %
    with pytest.raises(SystemExit):
        main.main(["data", "check", "--source", "tar", "--config", "tiny"])


def count_steps(state, batch, now):
    """Stands for a step: it takes any batch and says that all is well."""
    del batch, now
    names = (*autopsy.ALL_TERMS, "total", "bad_steps")
    return dataclasses.replace(state, step=state.step + 1), dict.fromkeys(names, 0.0)


@pytest.mark.slow
def test_a_run_on_a_mixture_logs_what_it_drew_and_resumes_exactly(folders, tmp_path, monkeypatch):
    settings = [*two_folders(folders), "num_steps=4", "log.every=1", "knn.every=none"]
    loaded = small.config(*settings, "mesh.devices=1", "checkpoint.every=2")
    monkeypatch.setattr(trainer, "compile_step", lambda run: count_steps)  # nothing need be learned
    seen = []
    keep = autopsy.Autopsy.keep

    def watch(self, number, batch):
        seen.append((number, batch["ids"].tolist()))
        keep(self, number, batch)
        if number == 4 and len(seen) == 4:
            raise RuntimeError("killed")

    monkeypatch.setattr(autopsy.Autopsy, "keep", watch)
    with pytest.raises(RuntimeError, match="killed"):
        loop.train(loaded, tmp_path / "run")
    loop.train(loaded, tmp_path / "run")
    assert [number for number, _ in seen] == [1, 2, 3, 4, 3, 4] and seen[2:4] == seen[4:]
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    ids = np.array([ids for _, ids in seen[:4]])
    for row in rows:
        counted = np.bincount((ids[: int(row["step"])] >= 5).reshape(-1), minlength=2)
        assert [row["images/a"], row["images/b"]] == counted.tolist()
    told_last = (tmp_path / "run/log.txt").read_text().splitlines()[-1]
    assert f"b: {(ids >= 5).sum()} drawn from 7 images" in told_last

"""Bad images: the same substitutes everywhere, a list, and an end when there are too many."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from dinojax.data.loader import Loader, WorkerDied
from dinojax.data.order import substitute
from dinojax.data.quarantine import (
    FILE,
    BadImage,
    Quarantine,
    Skipped,
    TooManyBadImages,
    note_skipped,
    read_all,
    read_list,
    read_or_replace,
)
from tests.support.spoiled import Spoiled


@dataclasses.dataclass(frozen=True, eq=False)
class Killer(Spoiled):
    """Reading image 11 kills the process, as the system does when memory runs out."""

    parent: int = 0

    def read(self, index, box_size=None):
        if index == 11 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index, box_size)


def quarantine(folder, **options):
    return Quarantine(folder, **{"max_share": 1.0, "parts": {"": range(40)}} | options)


def images(folder, num_batches=10, source=None, **options):
    """First pixels of the images of some batches."""
    settings = dict(batch_size=8, box_size=2, seed=1, quarantine=quarantine(folder))
    with Loader(source or Spoiled(), **settings | options) as loader:
        batches = [next(loader) for _ in range(num_batches)]
    assert all(sorted(batch) == ["ids", "images", "sizes"] for batch in batches)
    return (
        np.concatenate([batch["ids"] for batch in batches]),
        np.concatenate([batch["images"][:, 0, 0, 0] for batch in batches]),
    )


def test_attempts_walk_through_all_other_images_once():
    for num_images in (2, 3, 16, 37, 100):
        for index in {0, 1, num_images - 1}:
            walk = [substitute(index, k, num_images) for k in range(num_images - 1)]
            assert sorted([*walk, index]) == list(range(num_images))
    with pytest.raises(ValueError, match="1 images leave 0 substitutes"):
        substitute(0, 0, 1)


def test_substitutes_are_spread_over_the_data():
    first = np.array([substitute(index, 0, 1000) for index in range(1000)])
    assert len(set(first)) > 550  # of random draws 632 differ
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1
    # part of the meaning of a run, as the order is
    assert [substitute(5, k, 1000) for k in range(3)] == [268, 578, 888]


def test_a_bad_image_is_replaced_by_its_first_readable_substitute():
    assert read_or_replace(Spoiled(), 5, 2)[1] is None
    example, bad = read_or_replace(Spoiled(), 3, 2)
    walk = [substitute(3, k, 40) for k in range(39)]
    want = next(index for index in walk if index not in Spoiled.bad)
    assert example.pixels[0, 0, 0] == want
    assert bad == BadImage(3, "cannot decode 3.jpg: truncated", want)
    # The walk does not depend on what else is bad: one more changes only those it was given to.
    more = Spoiled(bad=(*Spoiled.bad, want))
    again = next(index for index in walk if index not in more.bad)
    assert read_or_replace(more, 3, 2)[1].substitute == again


def test_other_errors_are_not_taken_for_bad_images():
    class Broken(Spoiled):
        def read(self, index, box_size=None):
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        read_or_replace(Broken(), 3, 2)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_a_source_without_a_readable_image_ends_with_the_reason(size):
    with pytest.raises(TooManyBadImages, match="image 0 cannot be read, nor can the .* others"):
        read_or_replace(Spoiled(size, bad=tuple(range(size))), 0, 2)


def test_rows_keep_their_ids_and_the_list_has_each_bad_image_once(tmp_path):
    ids, pixels = images(tmp_path)  # two epochs
    good = ~np.isin(ids, Spoiled.bad)
    np.testing.assert_array_equal(pixels[good], ids[good])
    rows = read_list(tmp_path / FILE)
    assert sorted(row["id"] for row in rows) == [3, 4, 17]
    for row in rows:
        assert row["reason"] == f"cannot decode {row['id']}.jpg: truncated"
        assert (pixels[ids == row["id"]] == row["substitute"]).all()


def test_hosts_threads_and_restarts_replace_alike(tmp_path):
    ids, pixels = images(tmp_path)
    for options in ({"num_threads": 0, "prefetch": 0}, {"num_threads": 4}):
        np.testing.assert_array_equal(images(tmp_path, **options)[1], pixels)
    np.testing.assert_array_equal(images(tmp_path, 6, start=32)[1], pixels[32:])
    for host in range(2):
        part = images(tmp_path, 5, num_hosts=2, host_index=host, batch_size=16)[1]
        np.testing.assert_array_equal(part, pixels.reshape(5, 2, 8)[:, host].ravel())


def test_workers_replace_alike_and_tell_the_loop(tmp_path):
    wanted = images(tmp_path / ".", 4)[1]
    (tmp_path / "workers").mkdir()
    np.testing.assert_array_equal(images(tmp_path / "workers", 4, num_workers=2)[1], wanted)
    assert read_list(tmp_path / "workers" / FILE) == read_list(tmp_path / FILE) != []


def test_a_batch_that_meets_an_image_twice_lists_it_once(tmp_path):
    images(tmp_path, 1, batch_size=80)
    assert sorted(row["id"] for row in read_list(tmp_path / FILE)) == [3, 4, 17]


def test_a_restart_lists_nothing_twice_and_mends_a_torn_line(tmp_path):
    images(tmp_path)
    rows = read_list(tmp_path / FILE)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"id": 9')
    images(tmp_path)
    assert read_list(tmp_path / FILE) == rows


def test_a_spoiled_list_is_refused_by_name(tmp_path):
    (tmp_path / FILE).write_text("no json\n")
    with pytest.raises(ValueError, match=rf"{FILE}:1 is not JSON"):
        quarantine(tmp_path)


def test_every_host_has_a_list_of_its_own(tmp_path):
    quarantine(tmp_path, host=3).add([BadImage(1, "x", 2)], range(8))
    assert json.loads((tmp_path / "bad_images.3.jsonl").read_text())["substitute"] == 2


def bad_images(*ids):
    return [BadImage(index, f"reason {index}", 0) for index in ids]


def test_ten_bad_images_are_always_allowed_and_the_eleventh_is_not(tmp_path):
    found = quarantine(tmp_path, max_share=0.001, parts={"": range(10**6)})
    for _ in range(100):
        found.add(bad_images(*range(10)), range(64))  # met again and again, they count once
    with pytest.raises(TooManyBadImages) as caught:
        found.add(bad_images(10), range(64))
    told = str(caught.value)
    assert "11 of 6464 images could not be read" in told and "data.max_bad_share=0.001" in told
    assert "reason 0\n  reason 1\n  reason 2\n" in told and "reason 3" not in told
    assert str(tmp_path / FILE) in told and len(read_list(tmp_path / FILE)) == 11


def test_the_share_is_of_different_images_read(tmp_path):
    found = quarantine(tmp_path, max_share=0.01, parts={"": range(2000)})
    found.add([], range(1900))
    found.add(bad_images(*range(19)), range(0))  # 1 % of 1,900
    found.add([], 25 * list(range(2000)))  # further epochs add no images: 1 % of 2,000 from here on
    found.add(bad_images(19), range(0))
    with pytest.raises(TooManyBadImages, match="21 of 2000"):
        found.add(bad_images(20), range(0))


def test_a_share_of_zero_allows_none(tmp_path):
    found = quarantine(tmp_path, max_share=0.0)
    found.add([], range(8))
    with pytest.raises(TooManyBadImages, match="1 of 16"):
        found.add(bad_images(0), range(8))


def test_too_many_bad_images_end_the_loader(tmp_path):
    with pytest.raises(TooManyBadImages):
        images(
            tmp_path,
            source=Spoiled(bad=tuple(range(12))),
            quarantine=quarantine(tmp_path, max_share=0.1),
        )


def test_a_dead_worker_ends_the_run_with_its_exit_code(tmp_path):
    source = Killer(parent=os.getpid())
    with pytest.raises(WorkerDied, match=r"exit code -9.*lower data\.num_workers"):
        images(tmp_path, source=source, num_workers=1)


def test_images_left_out_are_listed_once_and_limited_as_replaced_ones_are(tmp_path, caplog):
    def note(count, **options):
        images = [Skipped("bank", i, f"cannot decode {i}.jpg") for i in range(count)]
        note_skipped(images, what="k-NN", path=tmp_path / "bad.jsonl", **options)

    note(0, num_read=5, max_share=0.0)
    assert not (tmp_path / "bad.jsonl").exists()
    note(3, num_read=5, max_share=0.001), note(3, num_read=5, max_share=0.001)  # up to ten
    assert [row["id"] for row in read_list(tmp_path / "bad.jsonl")] == [0, 1, 2]
    assert "k-NN: 3 of 5 images cannot be read; the first: cannot decode 0.jpg" in caplog.text
    with pytest.raises(TooManyBadImages, match="max_bad_share=0.001 allows. All are listed in"):
        note(11, num_read=1000, max_share=0.001)
    assert len(read_list(tmp_path / "bad.jsonl")) == 11
    note(11, num_read=1000, max_share=0.1)
    with pytest.raises(TooManyBadImages):
        note(1, num_read=1000, max_share=0.0)


def test_images_of_pictures_are_replaced_and_listed(tmp_path):
    path = tmp_path / "bad.jsonl"
    found = read_all(Spoiled(), [2, 3, 4], what="pictures", max_share=0.001, path=path)
    assert found[0].name == "2" and len(found) == 3 and not {3, 4} & {int(e.name) for e in found}
    assert [row["id"] for row in read_list(path)] == [3, 4]

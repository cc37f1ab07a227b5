"""Videos: objects that are followed in miniatures of public layouts, and probes of moving dots."""

import json

import numpy as np
import pytest

from dinojax.config import ConfigError
from dinojax.data.decode import DecodeError
from dinojax.eval import clips, clips_evaluator, propagation_evaluator
from dinojax.eval.baselines import raw_pixels
from dinojax.eval.network import Network
from tests.support.dense import PATCH, changed, constant, save, section, setting
from tests.support.miniatures import LAYOUTS, dots, videos_in

OWN = {"size": 5 * PATCH, "radius": 2.0, "neighbors": 1, "temperature": 0.01, "context": 2}


def propagation(data, **values):
    own = section(propagation_evaluator, data=data, rule="notebook", **OWN)
    return propagation_evaluator.build(changed(own, **values), setting())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_squares_are_followed_in_every_layout(tmp_path, layout):
    evaluation = propagation(videos_in(tmp_path, layout), batch_size=3)
    found = evaluation.measure(raw_pixels(PATCH))
    assert found.values == dict.fromkeys(("propagation/jf", "propagation/j", "propagation/f"), 100)
    assert found.num == 3 and found.told == "3 objects of 2 videos"
    assert evaluation.videos[0].name == "bear" and found.pictures.keys() == {"bear", "camel"}
    notes = evaluation.sources[0].notes
    published = {"davis2017": "2 found, 30 published", "youtube_vos": "2 found, 3,471 published"}
    assert any(published.get(layout, "") in note for note in notes) or not layout
    assert not layout or "terms of use: " in notes[0]


def test_what_moves_out_of_the_radius_and_what_looks_alike_is_lost(tmp_path):
    data = videos_in(tmp_path, "davis2017")
    lost = propagation(data, radius=0.0).measure(raw_pixels(PATCH)).values
    blind = propagation(data).measure(Network(constant, {})).values
    assert lost["propagation/j"] < 60 and blind["propagation/j"] < 60
    soft = propagation(data, rule="paper").measure(raw_pixels(PATCH)).values
    assert 80 < soft["propagation/j"] < 100  # corners between patches become round


def test_frames_without_a_mask_are_followed_and_not_judged(tmp_path):
    found = propagation(videos_in(tmp_path, "youtube_vos", marked=(0, 3, 4))).measure(
        raw_pixels(PATCH)
    )
    assert found.values["propagation/jf"] == 100 and found.num == 3
    few = propagation(videos_in(tmp_path / "few", "mose", marked=(0, 4)))
    with pytest.raises(ValueError, match="nothing can be judged"):
        few.measure(raw_pixels(PATCH))


def test_what_is_wrong_with_videos_is_said_by_file(tmp_path):
    data = videos_in(tmp_path, "davis2017")
    with pytest.raises(ConfigError, match=r"val.txt cannot be read .*; is it the root\?"):
        propagation(f"davis2017:{tmp_path / 'ImageSets'}")
    with pytest.raises(ConfigError, match="davis2017 has no split 'test'; it has train, val"):
        propagation(data.replace(":", "/test:"))
    with pytest.raises(ConfigError, match="there is no folder"):
        propagation("mose:/nowhere")
    with pytest.raises(
        ConfigError, match="has labels; this key takes davis2017, youtube_vos, mose"
    ):
        propagation(f"imagenet:{tmp_path}")
    with pytest.raises(ConfigError, match="propagation.num=3, and there are 2 videos"):
        propagation(data, num=3)
    maps = tmp_path / "Annotations/480p"
    save(maps / "bear/00002.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DecodeError, match="00002.png: the mask is 4 x 4, its frame 40 x 64"):
        propagation(data).measure(raw_pixels(PATCH))
    content = (maps / "camel/00001.png").read_bytes()
    (maps / "camel/00001.png").write_bytes(content[: len(content) // 2])
    save(maps / "bear/00002.png", np.zeros((40, 64), np.uint8))
    with pytest.raises(DecodeError, match="camel/00001.png: this map cannot be read"):
        propagation(data).measure(raw_pixels(PATCH))
    (maps / "camel/00000.png").unlink()
    with pytest.raises(ConfigError, match="the first frame of camel has no mask"):
        propagation(data)


PROBE = {
    **{"frames": 3, "size": 24, "width": 24, "depth": 2, "heads": 2, "batch_size": 8},
    **{"epochs": 200.0, "rates": (1e-7, 3e-3), "decays": (0.0,), "hold_out": 0.25},
}


@pytest.mark.slow
def test_a_probe_with_places_in_time_tells_directions(tmp_path, monkeypatch):
    monkeypatch.setattr(clips_evaluator, "AREA", (1.0, 1.0))
    lists = {name: dots(tmp_path, name, num, 3) for name, num in (("train", 16), ("val", 8))}
    evaluation = clips_evaluator.build(section(clips_evaluator, **lists, **PROBE), setting())
    found = evaluation.measure(raw_pixels(PATCH))
    assert found.values["clips/accuracy"] == 100 and "rate 0.003" in found.told
    assert evaluation.measure(raw_pixels(PATCH)).values == found.values
    blind = evaluation.measure(Network(constant, {})).values["clips/accuracy"]
    assert blind == 50
    views = dict(PROBE, views=6, epochs=1.0)
    many = clips_evaluator.build(section(clips_evaluator, **lists, **views), setting())
    assert np.isfinite(many.measure(raw_pixels(PATCH)).values["clips/accuracy"])


def test_moments_are_shares_of_the_length_and_short_videos_repeat(tmp_path):
    path = dots(tmp_path, "v", 2, 0)
    np.save(tmp_path / "v0/timestamps.npy", [1.0, 1.5, 3.0])
    found = clips.open_clips(path, channels=3, key="clips.val")
    assert found.class_names == ("0", "1") and found.labels.tolist() == [0, 1]
    assert found.open(0).times.tolist() == [0, 0.25, 1] and found.open(1).times.tolist() == [
        0,
        0.5,
        1,
    ]
    assert found.part(np.array([1])).paths == (tmp_path / "v1",)
    np.save(tmp_path / "v0/timestamps.npy", [1.0])
    with pytest.raises(DecodeError, match=r"timestamps.npy has times \(1,\) for 3 frames"):
        found.open(0)


def test_a_list_that_does_not_fit_is_refused_by_line(tmp_path):
    path = dots(tmp_path, "v", 2, 0)
    for text, told in {
        "v0 0\nv1\n": "line 2: 'v1' is no path with a class",
        "v0 0\nv9 1\n": "line 2: there is no .*v9",
        "v0 0\nv.txt 1\n": "neither a folder of frames nor a file mp4",
        "": "lists no video",
    }.items():
        (tmp_path / "v.txt").write_text(text)
        with pytest.raises(ConfigError, match=told):
            clips.open_clips(path, channels=3, key="clips.val")
    (tmp_path / "v.csv").write_text("path,label\nv0,a\nv1,b\n")
    table = str(tmp_path / "v.csv")
    assert clips.open_clips(table, channels=3, key="k").class_names == ("a", "b")
    with pytest.raises(ConfigError, match="the class 'b' is not among those learnt from"):
        clips.open_clips(table, channels=3, key="k", classes=("a",))
    with pytest.raises(ConfigError, match="set both clips.train and clips.val"):
        clips_evaluator.build(section(clips_evaluator, train=path), setting())


def test_files_of_videos_are_decoded(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for grey in (0, 80, 160, 240):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), grey, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "list.txt").write_text("a.mp4 0\n")
    video = clips.open_clips(str(tmp_path / "list.txt"), channels=3, key="k").open(0)
    assert video.times == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [round(float(video.read(n).mean()), -1) for n in (3, 1)] == [240, 80]


def test_the_met_and_copydays_are_read_as_published(tmp_path):
    from dinojax.eval import copies_evaluator, met_evaluator

    colours = np.random.default_rng(0).integers(0, 256, (4, 3), np.uint8)

    def photograph(path, number, shape):
        save(tmp_path / path, np.broadcast_to(colours[number], (*shape, 3)).copy())
        return path

    rows = {
        "MET_database": [("MET/0/0.png", 0, (40, 64)), ("MET/1/0.png", 1, (64, 40)),
                         ("MET/2/0.png", 2, (40, 64))],
        "valset": [("test_met/1.png", 1, (48, 64)), ("test_noart/0.png", 3, (64, 64))],
        "testset": [("test_met/2.png", 2, (64, 48)), ("test_met/0.png", 0, (64, 64))],
    }  # fmt: skip
    for name, images in rows.items():
        listed = []
        for path, number, shape in images:
            photograph(f"met/images/{path}", number, shape)
            key = "id" if name == "MET_database" else "MET_id"
            listed.append({"path": path} | ({key: number} if number < 3 else {}))
        (tmp_path / "met/ground_truth").mkdir(exist_ok=True)
        (tmp_path / f"met/ground_truth/{name}.json").write_text(json.dumps(listed))
    own = section(met_evaluator, path=str(tmp_path / "met"), size=64, whiten=2)
    evaluation = met_evaluator.build(own, setting())
    found = evaluation.measure(mean_colour())
    assert found.values["met/accuracy"] == 100 and found.values["met/gap"] == 100
    assert found.statistic(found.samples["met/gap"]) == pytest.approx(100)
    assert evaluation.sources[0].notes == ("Met, MET_database: 3 images found, 397,121 published",)
    for kind, ending in (("original", "00"), ("strong", "07")):
        for number in range(4):
            photograph(f"copies/{kind}/200{number}{ending}.jpg", number, (40, 56))
    own = section(copies_evaluator, path=str(tmp_path / "copies"), size=32)
    found = copies_evaluator.build(own, setting()).measure(mean_colour())
    assert found.values == {"copies/map": 100, "copies/first": 100} and found.num == 4
    (tmp_path / "copies/original/200300.jpg").unlink()
    with pytest.raises(ConfigError, match=r"1 of them have no original \(200307.jpg\)"):
        copies_evaluator.build(own, setting())
    (tmp_path / "met/images/MET/1/0.png").unlink()
    with pytest.raises(ConfigError, match="1 of 3 images are not there, the first: .*MET/1/0.png"):
        met_evaluator.build(section(met_evaluator, path=str(tmp_path / "met"), size=64), setting())


def mean_colour():
    def embed(params, images_BHWC):
        mean = np.asarray(images_BHWC).mean(axis=(1, 2)).astype(np.float32)
        return mean, mean, np.repeat(mean[:, None], 2, axis=1)

    return Network(embed, {})

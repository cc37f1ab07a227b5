"""dinojax data check | convert | bench, from the command line to files and exit codes."""

import json

import numpy as np
import pytest
from PIL import Image

from dinojax.cli import main
from tests.support import stored_data
from tests.support.stored_data import folder, png, saved


@pytest.fixture
def images(tmp_path):
    files = {f"{'ab'[i % 2]}/{i}.png": png(i) for i in range(4)}
    return folder(tmp_path / "images", files | {"a/bad.png": b"broken", "b/twin.png": png(0)})


def test_check_tells_what_there_is_and_what_to_do(images, capsys):
    assert main.main(["data", "check", str(images), "--config", "tiny"]) == main.FINISHED
    told = capsys.readouterr().out
    assert "images            6, " in told
    assert "unreadable        1 (16.667%; data.max_bad_share allows 0.100%)" in told
    assert "  a/bad.png: cannot decode a/bad.png: it is none of AVIF, BMP" in told
    assert "  a/0.png = b/twin.png" in told
    assert "5 have a short side below crops.global_size" in told
    line = next(line for line in told.splitlines() if line.startswith("mean"))
    setting = line.split("--set ")[1].strip("'")
    args = ["config", "show", "--config", "tiny", "--set", setting]
    assert main.main(args) == main.FINISHED  # what it proposes is accepted


@pytest.mark.slow
def test_check_writes_a_report_and_a_crop_sheet(images, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["data", "check", str(images), "--config", "tiny", "--out", str(out)]
    assert main.main([*args, "--processes", "2"]) == main.FINISHED
    assert sorted(path.name for path in out.iterdir()) == ["crops.png", "report.json"]
    report = json.loads((out / "report.json").read_text())
    assert report["images"] == 6 and report["unreadable_images"][0]["name"] == "a/bad.png"
    sheet = np.asarray(Image.open(out / "crops.png"))
    # eight rows of two global crops of 32 and four local ones of 16 pixels
    assert sheet.shape == (8 * 36 + 4, 2 * 36 + 4 * 20 + 4, 3) and sheet.std() > 20
    assert f"{out}: report.json, crops.png" in capsys.readouterr().out


def test_convert_and_check_what_was_converted(images, tmp_path, capsys):
    out = str(tmp_path / "records")
    args = ["data", "convert", str(images), "--out", out, "--shards", "2"]
    assert main.main(args) == main.FINISHED
    assert f"{out}: 6 images; train on them" in capsys.readouterr().out
    assert main.main(args) == main.FINISHED
    assert main.main([*args[:-1], "3"]) == main.REFUSED
    capsys.readouterr()
    assert main.main(["data", "check", out, "--config", "tiny"]) == main.FINISHED
    assert "classes           2 (images of one: smallest 3" in capsys.readouterr().out


def test_bench_ends_with_a_verdict(images, capsys):
    args = ["data", "bench", str(images), "--config", "tiny", "--seconds", "0.1"]
    assert main.main([*args, "--step-seconds", "1000"]) == main.FINISHED
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()[1:6]] == [
        "read",
        "decode",
        "fit",
        "batch",
        "all",
    ]
    assert told.splitlines()[-1].startswith("Keeps up: ")


def test_the_embedded_tiles_have_a_name(capsys):
    args = ["data", "bench", "tiles", "--config", "tiny", "--seconds", "0.1"]
    assert main.main(args) == main.FINISHED
    assert "of one core, 4,000 images" in capsys.readouterr().out


def test_the_kind_of_source_can_be_forced(images, capsys):
    assert main.main(["data", "check", str(images), "--source", "tar"]) == main.REFUSED
    assert "holds no .tar file" in capsys.readouterr().err
    (images / "a" / "0.png").write_bytes(saved(Image.new("RGB", (3, 3)), "PNG"))
    assert main.main(["data", "check", str(images), "--source", "folder"]) == main.FINISHED


@pytest.mark.parametrize("command", [["check"], ["bench", "--seconds", "0.1"]])
@pytest.mark.parametrize(
    ("key", "read"),
    [("data.box_size=40", True), ("optim.beta2=0.5", False), ("log.every=3", False)],
)
def test_a_key_that_a_command_does_not_read_is_refused_before_any_work(
    command, key, read, images, capsys
):
    code = main.main(["data", *command, str(images), "--config", "tiny", "--set", key])
    told = capsys.readouterr()
    assert code == (main.FINISHED if read else main.REFUSED)
    if not read:
        assert f"--set {key.split('=')[0]}: nothing here reads it" in told.err and not told.out


@pytest.mark.parametrize(
    "args, message",
    [
        (["check", "/nowhere"], "PATH=/nowhere does not exist"),
        (["check", "/nowhere", "--config", "absent"], "absent"),
        (["bench", "/nowhere.csv"], "/nowhere.csv"),
    ],
)
def test_user_errors_are_one_message(args, message, capsys):
    assert main.main(["data", *args]) == main.REFUSED
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


@pytest.mark.parametrize(
    "args",
    [["check"], ["check", ".", "--processes", "0"], ["convert", "."]]
    + [["bench", ".", "--seconds", value] for value in ("0", "inf", "x")],
)
def test_wrong_usage_exits_with_2(args):
    with pytest.raises(SystemExit) as caught:
        main.main(["data", *args])
    assert caught.value.code == main.REFUSED


@pytest.mark.parametrize("command", [[], ["check"], ["convert"], ["bench"]])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(["data", *command, "--help"])
    assert caught.value.code == 0 and "examples:\n  dinojax data" in capsys.readouterr().out


def test_a_conversion_keeps_the_place_of_files_that_cannot_be_read(tmp_path, capsys):
    from dinojax.data.arrayrecord import arrayrecord
    from dinojax.data.quarantine import read_list

    root = folder(tmp_path / "in", {"a/0.png": png(0), "a/1.png": png(1), "b/2.png": png(2)})
    (root / "list.csv").write_text("path,label\na/0.png,x\na/gone.png,y\nb/2.png,x\n")
    args = ["data", "convert", str(root / "list.csv"), "--out", str(tmp_path / "out")]
    assert main.main([*args, "--shards", "2"]) == main.FINISHED
    assert "3 images (1 cannot be read and are listed in bad_images.jsonl)" in (
        capsys.readouterr().out
    )
    (row,) = read_list(tmp_path / "out" / "bad_images.jsonl")
    assert row["id"] == 1 and "gone.png" in row["reason"]
    source = arrayrecord(path=str(tmp_path / "out"), channels=3)
    assert source.labels.tolist() == [0, 1, 0] and source[2].label == 0
    with pytest.raises(OSError, match="unreadable when it was converted: .*gone.png"):
        source[1]
    args[-1] = str(tmp_path / "strict")
    assert main.main([*args, "--max-bad-share", "0"]) == main.REFUSED
    assert "kept without bytes: 1 of 3 images cannot be read, more than max_bad_share=0.0" in (
        capsys.readouterr().err
    )


def test_images_of_any_channels_and_values_are_converted_as_they_are(tmp_path, capsys):
    pytest.importorskip("tifffile")
    five = stored_data.tiff(stored_data.bands(0, num=5).astype(np.float32))
    root = folder(tmp_path / "in", {"0.tif": five})
    assert main.main(["data", "convert", str(root), "--out", str(tmp_path / "out")]) == 0

"""Files appear whole or not at all, and nothing is written through a link."""

import os
import subprocess
import sys

import pytest

from dinojax.files import drafts
from dinojax.files.drafts import NotOurs


def test_a_file_that_fails_half_way_leaves_the_old_one_and_no_draft(tmp_path):
    path = tmp_path / "a.json"
    drafts.write_text(path, "old")
    with pytest.raises(RuntimeError), drafts.open_new(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_no_draft_is_written_through_a_link_whatever_its_name(tmp_path, monkeypatch):
    """Even one that guesses the name of this process."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.html.draft").symlink_to(precious)
    drafts.write_text(run / "report.html", "page")
    assert precious.read_text() == "mine" and (run / "report.html").read_text() == "page"

    guessed = run / "b.draft"
    guessed.symlink_to(precious)
    monkeypatch.setattr(drafts, "_beside", lambda path, suffix: guessed)
    with pytest.raises(FileExistsError):
        drafts.write_text(run / "b", "page")
    assert precious.read_text() == "mine"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "config.json").symlink_to(precious)
    drafts.write_json(tmp_path / "config.json", {})
    assert precious.read_text() == "mine" and not (tmp_path / "config.json").is_symlink()


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "fifo"])
def test_what_is_appended_to_must_be_a_file_of_its_own(tmp_path, kind):
    path, precious = tmp_path / "log.txt", tmp_path / "precious"
    if kind == "link":
        precious.write_text("mine")
    if "link" in kind:
        path.symlink_to(precious)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(NotOurs, match="log.txt is (a link|no regular file)"):
        drafts.open_append(path)
    assert precious.exists() == (kind == "link")


def test_a_draft_of_a_killed_process_is_removed_and_one_of_a_living_process_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = os.uname().nodename.split(".")[0]
    dead = tmp_path / f"a.{host}-{ended.pid}-01234567.draft"
    alive, elsewhere = (
        tmp_path / f"a.{name}-01234567.draft"
        for name in (f"{host}-{os.getpid()}", f"other-{ended.pid}")
    )
    dead.mkdir()
    (dead / "weights").write_text("half")
    alive.write_text(""), elsewhere.write_text("")
    drafts.write_text(tmp_path / "a", "whole")
    assert set(os.listdir(tmp_path)) == {"a", alive.name, elsewhere.name}


def test_two_drafts_of_one_folder_do_not_meet_and_the_last_one_to_end_is_told(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OSError), drafts.draft_folder(out) as first:
        (first / "a").write_text("first")
        with drafts.draft_folder(out) as second:
            (second / "a").write_text("second")
    assert (out / "a").read_text() == "second" and os.listdir(tmp_path) == ["out"]


def test_setting_aside_always_finds_a_name(tmp_path):
    """The third torn checkpoint of one step has room beside the first two."""
    for number in range(3):
        torn = tmp_path / "12"
        torn.mkdir()
        (torn / "part").write_text(str(number))
        drafts.set_aside(torn, "torn")
    assert sorted(os.listdir(tmp_path)) == ["12.torn", "12.torn.2", "12.torn.3"]

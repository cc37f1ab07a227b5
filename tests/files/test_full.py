"""Storage that takes no more is told in one sentence, whatever was being written."""

import errno
import os
import resource

import pytest

from dinojax.cli import main as cli
from dinojax.distributed.interrupt import FAILED
from dinojax.files import drafts, full


def raising(error):
    def command(*args, **kwargs):
        raise error

    return command


def closing(error):
    """A command that meets a full disk, and then another error while it closes its files."""

    def command(*args, **kwargs):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "part-3")
        finally:
            raise error

    return command


COMMANDS = {
    "embed": ["embed", "--weights", "w", "--data", "d", "--out", "o"],
    "export": ["export", "--weights", "w", "--format", "hf", "--out", "o"],
    "report": ["report", "r"],
    "train": ["train", "--config", "tiny", "--run", "r"],
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", full.FULL)
def test_every_command_ends_with_the_same_code_and_sentence(name, number, monkeypatch, capsys):
    error = OSError(number, os.strerror(number), "part-3")
    monkeypatch.setattr(cli, "_program", lambda _: raising(error))
    assert cli.main(COMMANDS[name]) == FAILED
    told = capsys.readouterr().err
    assert told == f"dinojax: error: {full.told(error)}\n"
    assert "part-3 cannot be written to" in told and full.WAY_ON in told


@pytest.mark.parametrize("error", [OSError(errno.EIO, "odd"), ValueError("closed"), KeyError(1)])
def test_an_error_while_closing_does_not_hide_a_full_disk(error, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_program", lambda _: closing(error))
    assert cli.main(COMMANDS["embed"]) == FAILED
    assert "part-3 cannot be written to (No space left" in capsys.readouterr().err


def test_what_a_library_says_in_text_alone_is_understood():
    text = "RESOURCE_EXHAUSTED: Error writing: [OS error 28: ENOSPC No space left on device]"
    assert full.cause(RuntimeError(text)) is not None
    assert full.cause(FileNotFoundError(errno.ENOENT, "No such file")) is None


def test_a_limit_on_files_is_met_like_a_full_disk_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError) as met:
            drafts.write_bytes(tmp_path / "big", bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.cause(met.value) is met.value and os.listdir(tmp_path) == []

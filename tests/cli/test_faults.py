"""The command line where its surroundings are not what it expects."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dinojax.cli import main
from dinojax.cli import output as cli_output
from dinojax.distributed import cluster
from dinojax.distributed.channel import HostError


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "vit"}', "config.json: no 'config'; expected an object"),
        ("[]", "config.json: found []; expected an object with 'config'"),
        ('{"config": {"stage": "a"', "config.json is not JSON"),
        ('{"config": {"seed": "0"}}', "seed='0' has the wrong type: expected an integer"),
    ],
)
def test_the_folder_of_another_project_is_refused_and_stays_as_it_is(
    content, message, tmp_path, capsys
):
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.txt").write_text("theirs")
    before = files(tmp_path)
    assert main.main(["train", "--config", "tiny", "--run", str(tmp_path)]) == main.REFUSED
    told = capsys.readouterr().err
    assert message in told and "use another --run" in told.lower() and "Traceback" not in told
    assert files(tmp_path) == before


def test_a_file_in_place_of_a_run_is_refused(tmp_path, capsys):
    (tmp_path / "run").write_text("x")
    args = ["train", "--config", "tiny", "--run", str(tmp_path / "run")]
    assert main.main(args) == main.REFUSED
    assert "is no folder; use another --run" in capsys.readouterr().err


@pytest.mark.parametrize("given", [{}, {"SLURM_JOB_ID": "3"}, {"SLURM_JOB_ID": "x"}])
def test_slurm_without_srun_is_told_in_a_sentence(given, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HostError) as found:
        cluster.find(None, None, None, "slurm")
    told = str(found.value)
    assert "KeyError" not in told and "this is none of its processes" in told
    assert "srun" in told and "--coordinator" in told


def run(*words, then=""):
    """(exit codes of `dinojax` and of what reads it, what the former says on stderr)."""
    command = f'"$0" -m dinojax "$@" | {then}; echo "${{PIPESTATUS[@]}}" >&2'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, *words], capture_output=True, text=True
    )
    *said, codes = done.stderr.splitlines()
    return list(map(int, codes.split())), said


@pytest.mark.parametrize("words", [("config", "show", "--config", "tiny"), ("--help",)])
def test_a_reader_that_closes_the_pipe_ends_the_command_in_silence(words):
    codes, said = run(*words, then="exec true")
    assert codes == [cli_output.CLOSED, 0] and said == []


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("dinojax ")


def test_a_name_that_stdout_cannot_take_is_escaped(tmp_path):
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    (tmp_path / "é.yaml").write_text("train: {centering: sinkhorn_knopp}\n")
    words = ["config", "migrate", str(tmp_path / "é.yaml"), "--gpus", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "dinojax", *words, "--out", str(tmp_path / "é.py")],
        capture_output=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\xe9.py: " in done.stdout


def test_a_lock_that_holds_anything_names_another_process(tmp_path):
    from dinojax.runs import lock

    for content in ("[]", "3", '{"pid": "x"}', "[" * 2000, json.dumps({"pid": 1})):
        (tmp_path / "lock").write_text(content)
        assert lock._holder(tmp_path / "lock") == "another process"


def test_what_makes_a_folder_no_run_is_named(tmp_path, capsys):
    (tmp_path / "model.txt").write_text("theirs")
    assert main.main(["train", "--config", "tiny", "--run", str(tmp_path)]) == main.REFUSED
    told = capsys.readouterr().err
    assert f"{tmp_path} is not empty and no run directory, for it has no config.json" in told
    assert files(tmp_path) == {Path("model.txt"): b"theirs"}

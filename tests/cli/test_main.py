"""The command line: what it passes on, what it prints, and its exit codes."""

import subprocess
import sys
import types

import pytest

from dinojax.cli import main
from dinojax.distributed.interrupt import SAVED, Interrupted, StorageError


@pytest.fixture
def program(monkeypatch):
    """Replaces the program behind a command; returns the list of calls it received."""

    def install(command, raises=None):
        calls = []

        def run(*args, **options):
            calls.append((*args, options) if options else args)
            if raises is not None:
                raises()

        module = types.ModuleType("stand_in")
        module.run = run
        monkeypatch.setitem(sys.modules, "stand_in", module)
        monkeypatch.setitem(main.PROGRAMS, command, ("stand_in", "run"))
        return calls

    return install


def test_train_passes_the_resolved_config_and_the_run_directory(program, tmp_path):
    calls = program("train")
    code = main.main(
        ["train", "--config", "tiny", "--run", str(tmp_path), "--set", "seed=3"]
        + ["--set", "optim.clip=none", "--stage", "pretrain", "--accept-new-data"]
    )
    (((config,), options),) = calls
    asked = {"accept": ["new-data"], "stage": "pretrain", "max_wall": None}
    assert options == {**asked, "run": str(tmp_path)}
    assert code == main.FINISHED
    assert config.seed == 3 and config.optim.clip is None


OPTIONS = {"data": None, "protocol": None, "cache": True, "stage": None, "out": None, "prefix": ""}
OPTIONS |= {"backbone": None, "baselines": False}


def test_eval_knn_passes_run_overrides_and_step(program, tmp_path, capsys):
    calls = program("eval")
    args = ["eval", "knn", "--run", str(tmp_path), "--step", "20", "--set", "knn.neighbors=5"]
    assert main.main(args) == main.FINISHED
    assert calls == [("knn", tmp_path, ["knn.neighbors=5"], 20, OPTIONS | {"weights": None})]
    follow = program("eval --follow")
    assert main.main([*args[:4], "--follow", "--poll", "5"]) == main.FINISHED
    own = {"data": None, "protocol": None, "cache": True, "seconds": 5.0}
    assert follow == [("knn", tmp_path, [], own)]
    assert main.main([*args, "--follow"]) == main.REFUSED
    told = "--follow takes all checkpoints of a --run, no --stage or --step"
    assert told in capsys.readouterr().err


def test_a_user_error_is_one_message_and_exit_code_2(capsys):
    code = main.main(["train", "--config", "tiny", "--run", "r", "--set", "model.pathc_size=8"])
    told = capsys.readouterr().err
    assert code == main.REFUSED
    assert told.startswith("dinojax: error: --set model.pathc_size is not a key; nearest")
    assert told.count("\n") == 1


def test_an_unknown_stage_names_the_one_there_is(capsys):
    assert main.main(["train", "--config", "tiny", "--run", "r", "--stage", "gram"]) == main.REFUSED
    assert "tiny has no stage gram; its only stage is pretrain" in capsys.readouterr().err


def test_traceback_shows_where_a_user_error_came_from(capsys):
    code = main.main(["config", "show", "--config", "absent", "--traceback"])
    assert code == main.REFUSED and "Traceback" in capsys.readouterr().err


def test_a_missing_file_is_refused_but_a_library_error_is_a_failure(program, capsys):
    args = ["train", "--config", "tiny", "--run", "r"]
    program("train", raises=lambda: open("/absent/file"))
    assert main.main(args) == main.REFUSED
    assert "Traceback" not in capsys.readouterr().err
    program("train", raises=lambda: int("not ours"))  # a ValueError that dinojax did not raise
    assert main.main(args) == main.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_stopping_has_its_own_exit_codes(program, capsys, monkeypatch):
    ends = []
    monkeypatch.setattr(main, "end_now", ends.append)
    args = ["train", "--config", "tiny", "--run", "r"]

    def interrupted():
        raise Interrupted("SIGTERM", 7)

    program("train", raises=interrupted)
    assert main.main(args) == SAVED == 75 == ends[0]
    assert "stopped by SIGTERM after step 7; saved" in capsys.readouterr().err

    def full():
        raise StorageError("no space; step 3 stands")

    program("train", raises=full)
    assert main.main(args) == main.FAILED
    assert "step 3 stands" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [[], ["train"], ["trian"], ["train", "--config", "tiny"], ["plan"]]
)
def test_wrong_usage_exits_with_2(args, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(args)
    assert caught.value.code == main.REFUSED


def test_config_show_marks_who_set_a_value(capsys):
    assert main.main(["config", "show", "--config", "tiny", "--set", "seed=7"]) == main.FINISHED
    lines = capsys.readouterr().out.splitlines()
    assert "seed = 7  (--set)" in lines
    assert "model.patch_size = 8  (recipe)" in lines
    assert "optim.eps = 1e-08" in lines


def test_config_explain_and_diff(capsys, tmp_path):
    assert main.main(["config", "explain", "seed", "--config", "tiny"]) == main.FINISHED
    assert "every random draw derives from it\ndefault: 0" in capsys.readouterr().out
    assert main.main(["config", "diff", "tiny", "vitl16_in1k"]) == main.FINISHED
    assert "model.patch_size: 8 -> 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [[], ["train"], ["eval", "knn"], ["config"], ["config", "diff"]]
)
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main([*command, "--help"])
    told = capsys.readouterr().out
    assert caught.value.code == 0
    assert "examples:" in told and "dinojax " in told


def test_the_module_runs_without_importing_jax():
    """Looking at a config must not start an accelerator."""
    script = (
        "import sys; from dinojax.cli.main import main; "
        "code = main(['config', 'show', '--config', 'tiny']); "
        "sys.exit(code or 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "dinojax", "config", "show", "--config", "absent"]
    assert subprocess.run(command, capture_output=True).returncode == main.REFUSED

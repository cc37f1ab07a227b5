"""Scripts in launch/: their syntax, what they start, and when they start it again."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dinojax.cli import main

LAUNCH = Path(__file__).parent.parent.parent / "launch"


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "set -euo pipefail" in path.read_text() or path.name == "env.sh"


def flags(words):
    """Parsed by the command line itself, so that a script cannot name a flag that is not there."""
    return main._parser().parse_args(["train", *words])


def test_the_jobset_is_yaml_whose_hosts_and_flags_fit():
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["parallelism"] == spec["completions"]
    container = spec["template"]["spec"]["containers"][0]
    args = flags(container["args"])
    assert args.cluster == "auto" and f"expect.hosts={spec['parallelism']}" in args.set


STAND_IN = """\
import os, sys
with open(os.environ["TOLD"], "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
sys.exit(int(os.environ["CODES"].split()[open(os.environ["TOLD"]).read().count("\\n") - 1]))
"""


def node(tmp_path, codes, **more):
    """(exit code, what each started process was given) of launch/node.sh with a stand-in."""
    told = tmp_path / "told"
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    environment = os.environ | {
        "DINOJAX": f"{sys.executable} {tmp_path / 'stand_in.py'}",
        "TOLD": str(told),
        "CODES": codes,
        **more,
    }
    command = ["bash", LAUNCH / "node.sh", "--config", "tiny", "--run", "a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, told.read_text().splitlines()


def test_a_node_starts_again_what_was_lost_and_nothing_else(tmp_path):
    assert node(tmp_path, "77 77 0") == (0, ["train --config tiny --run a b"] * 3)
    (tmp_path / "told").unlink()
    assert node(tmp_path, "75") == (75, ["train --config tiny --run a b"])
    (tmp_path / "told").unlink()
    assert node(tmp_path, "77 77", RESTARTS="1")[0] == 77


def test_a_node_starts_as_many_processes_as_asked_each_with_its_number(tmp_path):
    code, told = node(tmp_path, "0 0", PROCESSES="2")
    assert code == 0
    given = [flags(line.replace("a b", "ab").split()[1:]) for line in told]
    assert {args.process_id for args in given} == {0, 1}
    assert {(args.coordinator, args.num_processes) for args in given} == {("localhost:8476", 2)}


def stood_in(tmp_path, script, *words, code=0, **more):
    """(exit code, what the tools were called with) of a script, the tools of a cluster stood in."""
    for tool in ("srun", "scontrol", "gcloud"):
        path = tmp_path / tool
        ends = code if tool == "srun" else 0
        path.write_text(
            f'#!/bin/sh\nprintf "%s|" {tool} "$@" >> "$TOLD"; echo >> "$TOLD"; exit {ends}\n'
        )
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TOLD": str(tmp_path / "told"),
        **more,
    }
    done = subprocess.run(["bash", LAUNCH / script, *words], env=environment, timeout=60)
    return done.returncode, [
        line.split("|")[:-1] for line in (tmp_path / "told").read_text().splitlines()
    ]


@pytest.mark.parametrize(("code", "queued"), [(0, False), (2, False), (75, True), (77, True)])
def test_slurm_puts_a_job_that_was_stopped_back_into_the_queue(tmp_path, code, queued):
    more = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"}
    words = ("--config", "tiny", "--run", "a b")
    ended, calls = stood_in(tmp_path, "slurm.sh", *words, code=code, **more)
    assert ended == code
    args = flags(calls[0][calls[0].index("train") + 1 :])
    assert (args.run, args.cluster, args.set) == ("a b", "slurm", ["expect.hosts=4"])
    assert calls[1:] == ([["scontrol", "requeue", "7"]] if queued else [])


def test_every_worker_of_a_tpu_pod_gets_the_same_words(tmp_path):
    words = ("--config", "tiny", "--run", "a b")
    ended, calls = stood_in(tmp_path, "tpu_pod.sh", *words, TPU="pod", ZONE="here")
    command = calls[0][-1].removeprefix("--command=true && dinojax train ")
    assert ended == 0 and "--worker=all" in calls[0]
    args = flags(shlex.split(command))
    assert (args.run, args.cluster, args.set) == ("a b", "auto", ["expect.platform=tpu"])

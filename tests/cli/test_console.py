"""The console holds dinojax's own lines, whatever JAX, absl and plugins have to say."""

import logging
import os
import subprocess
import sys

from dinojax.cli import console
from dinojax.runs.scalars import RunLog

NOISE = """
import logging, sys, warnings
from pathlib import Path
from dinojax.cli import main as cli
from dinojax.runs.scalars import RunLog

def noise(folder):
    with RunLog(Path("log.txt")):
        import jax
        from absl import logging as absl
        absl.warning("absl has a word")
        jax.config.update("jax_compilation_cache_dir", "cache")
        jax.config.update("jax_explain_cache_misses", True)
        jax.jit(lambda x: x + 1)(1.0)
        warnings.warn("a library is deprecated")
        logging.getLogger("dinojax.train").warning("ours in the run")
    absl.warning("absl has a word after it")
    logging.getLogger("dinojax.train").warning("ours after the run")
    print("ours, printed")

cli._program = lambda name: noise
sys.exit(cli.main(["report", "r"]))
"""
PLUGIN = "def initialize():\n    raise RuntimeError('no such card')\n"


def test_the_console_holds_only_ours_and_the_log_what_libraries_say(tmp_path):
    """Cache misses, absl's warnings, and a plugin of JAX that fails to load."""
    (tmp_path / "jax_plugins" / "broken").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "broken" / "__init__.py").write_text(PLUGIN)
    path = os.pathsep.join([os.getcwd(), str(tmp_path)])
    ended = subprocess.run(
        [sys.executable, "-c", NOISE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "ours in the run\nours after the run\n"
    assert ended.stdout == "ours, printed\n"
    told = (tmp_path / "log.txt").read_text()
    for said in ("absl has a word", "CACHE MISS", "no such card", "a library is deprecated"):
        assert said in told
    assert "Traceback" not in told


def test_a_fall_back_to_the_cpu_is_told_in_our_words(capsys):
    with console.ours():
        logging.getLogger("jax._src.xla_bridge").warning("no jaxlib. Falling back to cpu.")
    assert capsys.readouterr().err.startswith("dinojax: JAX found an accelerator")


def test_after_a_command_logging_is_as_before(tmp_path):
    before = list(logging.root.handlers)
    with console.ours(), RunLog(tmp_path / "log.txt"):
        pass
    assert logging.root.handlers == before

"""Processes that are waited for."""

import os
import subprocess
import sys
import time

import pytest

from dinojax.plan import waiting


def run(code, **options):
    options = {"environment": os.environ, "timeout": 60.0, "doing": "compiling x"} | options
    return waiting.run([sys.executable, "-c", code], **options)


def test_what_takes_long_is_told_with_its_time(monkeypatch, capsys):
    monkeypatch.setattr(waiting, "EVERY", (0.1, 0.1))
    code = "import sys, time; time.sleep(0.5); print(1); print(2, file=sys.stderr); sys.exit(3)"
    assert run(code) == (3, "1\n", "2\n")
    assert "compiling x, 0:00\n" in capsys.readouterr().err
    assert run("print('x' * 10**6)")[1] == "x" * 10**6 + "\n"  # more than a pipe holds


def test_what_is_quick_is_not_told(capsys):
    assert run("print(1)") == (0, "1\n", "")
    assert capsys.readouterr().err == ""


def test_a_process_beyond_its_time_is_ended(monkeypatch):
    monkeypatch.setattr(waiting, "EVERY", (0.1, 0.1))
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run("import time; time.sleep(60)", timeout=0.3)
    assert time.monotonic() - began < 20

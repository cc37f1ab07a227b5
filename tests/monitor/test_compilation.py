"""Compiled programs: where they are kept, what they cost, and a recompilation with its argument."""

import jax
import jax.numpy as jnp
import pytest

from dinojax.monitor import compilation


@pytest.fixture
def unset(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compilation.VARIABLE, raising=False)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_unless_told_otherwise(unset, monkeypatch):
    folder = compilation.keep_programs()
    assert folder is not None and unset in folder.parents and folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    monkeypatch.setenv(compilation.VARIABLE, "off")
    assert compilation.keep_programs() == folder, "what is set stays"


def test_programs_can_be_kept_elsewhere_or_not_at_all(unset, monkeypatch):
    monkeypatch.setenv(compilation.VARIABLE, "off")
    assert compilation.keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(compilation.VARIABLE, str(unset / "mine"))
    assert compilation.keep_programs() == unset / "mine"


def test_a_folder_that_cannot_be_made_is_told_and_harms_nothing(unset, monkeypatch, caplog):
    (unset / "file").write_text("")
    monkeypatch.setenv(compilation.VARIABLE, str(unset / "file" / "below"))
    assert compilation.keep_programs() is None
    assert "not kept" in caplog.text


def test_a_step_that_compiles_anew_is_told_with_the_argument(caplog):
    @jax.jit
    def step_of_a_test(pixels):
        return pixels * 2

    with compilation.Compiles() as compiles:
        for number in range(1, 5):
            step_of_a_test(jnp.ones(3))
            compiles.step_ended(number)
        assert compiles.seconds() > 0 and compiles.seconds() == 0.0
        assert not compiles.recompiled
        other = jnp.ones(4)
        compiles.elsewhere()
        compiles.step_ended(5)
        assert not compiles.recompiled, "what is compiled elsewhere is no fault of the steps"
        step_of_a_test(other)
        compiles.step_ended(6)
    (told,) = compiles.recompiled
    assert "step 6" in told and "step_of_a_test" in told
    assert "pixels" in told and "f32[3]" in told.replace("float32", "f32")
    assert told in caplog.text


def test_a_benchmark_that_compiles_is_an_error():
    with compilation.Compiles() as compiles:
        jax.jit(lambda x: x + 43)(jnp.ones(6))
    with pytest.raises(RuntimeError, match="the timed step compiled .*lambda"):
        compiles.refuse("the timed step")
    with compilation.Compiles() as compiles:
        pass
    compiles.refuse("the timed step")


def test_after_it_has_ended_nothing_is_counted():
    with compilation.Compiles() as compiles:
        pass
    jax.jit(lambda x: x + 41)(jnp.ones(5))
    assert compiles.seconds() == 0.0

"""Train DINOv3 and DINOv2 vision foundation models in JAX."""


def load(path, **options):
    """A backbone from a file, a folder or a run; see `dinojax.weights.run.load` for the options."""
    from dinojax.weights import run  # imports jax, which `dinojax --help` should not

    return run.load(path, **options)

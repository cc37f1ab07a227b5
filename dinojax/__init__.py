"""Train DINOv3 and DINOv2 vision foundation models in JAX."""


def load(path, **options):
    """A backbone from a file, a folder or a run; see `dinojax.convert.load` for the options."""
    from dinojax import convert  # imports jax, which `dinojax --help` should not

    return convert.load(path, **options)

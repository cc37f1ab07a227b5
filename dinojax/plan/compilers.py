"""Which compiler a target needs, whether it is here, and whether it is that of this jax."""

import importlib.metadata
import importlib.util

from dinojax.plan.targets import Target

REMEDY = "pip install 'dinojax[plan]'"
# Platform -> the module that its compiler comes with, and the package of it.
NEEDS = {
    "tpu": ("libtpu", "libtpu"),
    "gpu": ("jax_plugins.xla_cuda12", "jax-cuda12-plugin"),
}
# Version of jax -> beginning of the version of libtpu that it is released with (its extra `tpu`).
# The GPU's compiler has the version of jax itself.
LIBTPU = {"0.10.2": "0.0.42.", "0.12.0": "0.0.50.", "0.12.0.1": "0.0.50."}


def check_compiler(target: Target) -> None:
    """Raises ModuleNotFoundError if the target's compiler is missing, or that of another jax.

    One that does not match fails late and in words of its own, or gives a plan of other numbers.
    """
    if target.chip.platform not in NEEDS:
        return
    module, package = NEEDS[target.chip.platform]
    try:
        missing = importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise ModuleNotFoundError(
            f"--target {target.name} needs the compiler in {module}, which works without the "
            f"hardware: {REMEDY}. cpu:N needs nothing."
        )
    jax, found = (importlib.metadata.version(name) for name in ("jax", package))
    wanted = LIBTPU.get(jax) if package == "libtpu" else jax
    if wanted is None or not f"{found}.".startswith(f"{wanted.rstrip('.')}."):
        made = f"{package} {wanted.rstrip('.')} does" if wanted else "none here is known to"
        raise ModuleNotFoundError(
            f"--target {target.name}: {package} {found} does not go with jax {jax} ({made}). "
            f"Both together: {REMEDY}. cpu:N needs no compiler."
        )

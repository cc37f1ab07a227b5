"""Many students of one frozen teacher: who gets which devices, and how all end together."""

from dinojax.distill.loop import distill

__all__ = ["distill"]

"""One recipe on one mesh, stage after stage: from the first state to the last."""

from dinojax.train.loop import train

__all__ = ["train"]

"""Learning rates and beta1 of the released dense heads, by number of step. Pure Python, float64."""

import math
from typing import NamedTuple

LOW_BETA1, HIGH_BETA1 = 0.85, 0.95  # of one-cycle
DIVISOR = 25.0  # the floor is lr / DIVISOR / final_divisor


class OneCycle(NamedTuple):
    """Warm-up, then one long fall to lr / 25 / final_divisor.

    DINOv3's heads: segmentation with warmup_ratio=1e-6, final_divisor=inf and a constant beta1;
    depth with warmup_ratio=0 and a beta1 of 0 while it warms up, then 0.85 to 0.95.
    warmup_ratio > 0: the rate begins at that share of lr and rises in a line, times what is left
    of the steps. 0: it rises as a line times the cosine of the whole run, from lr / final_divisor.
    The fall is over all steps, so the rate jumps where the warm-up ends.
    """

    lr: float
    num_steps: int
    warmup: int
    warmup_ratio: float = 0.0
    final_divisor: float = 1000.0
    anneal: str = "cos"  # cos | linear
    beta1: float | None = None  # None: 0 while it warms up, then 0.85 to 0.95

    def rate(self, step: int) -> float:
        if step < self.warmup and self.warmup_ratio:
            missing = (1 - step / self.warmup) * (1 - self.warmup_ratio)
            return self.lr * (1 - missing) * (1 - step / self.num_steps)
        if step < self.warmup:
            cosine = (1 + math.cos(math.pi * step / self.num_steps)) / 2
            return self.lr / self.final_divisor + self.lr * cosine * step / self.warmup
        floor = self.lr / DIVISOR / self.final_divisor
        ahead = 1 if self.anneal == "cos" else 0
        return _between(self.lr, floor, (step + ahead) / self.num_steps, self.anneal)

    def momentum(self, step: int) -> float:
        """Adam's beta1."""
        if self.beta1 is not None:
            return self.beta1
        if step < self.warmup:
            return 0.0
        done = (step - self.warmup) / (self.num_steps - self.warmup)
        return _between(LOW_BETA1, HIGH_BETA1, done, self.anneal)


def _between(start: float, end: float, done: float, anneal: str) -> float:
    if anneal not in ("cos", "linear"):
        raise ValueError(f"anneal={anneal!r} is unknown; choose of cos, linear.")
    if anneal == "linear":
        return start + (end - start) * done
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


class MultiStep(NamedTuple):
    """A line up, then lr times gamma at each share of the steps in `milestones`."""

    lr: float
    num_steps: int
    warmup: int
    milestones: tuple[float, ...] = (0.5, 0.9, 1.0)
    gamma: float = 0.1

    def rate(self, step: int) -> float:
        count = step + 1
        if count < self.warmup:
            return self.lr * count / self.warmup
        passed = sum(count >= self.num_steps * share for share in self.milestones)
        return self.lr * self.gamma**passed

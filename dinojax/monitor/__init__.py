"""The health of a run, told: findings, report, steps that were not finite, hangs, energy."""

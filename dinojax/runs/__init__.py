"""The run directory: who it belongs to, what it holds, when a stage is over."""

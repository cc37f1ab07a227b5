"""The processes of a run: who they are, what they settle, and how they stop together."""

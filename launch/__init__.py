"""The control plane: composes, checks and freezes a run, and starts it. Never imports torch."""

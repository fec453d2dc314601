"""Tests under a real Slurm, whose nodes are emulated on one machine."""

"""Sweeps: one file in W&B's format, run here without a server (docs/sweep.md)."""

"""Text that every Python environment holds: what is installed, taken apart, and what is held out of
training. `data_prep/harvest.py` makes the demo's corpus of it, `eval/offline/` tasks."""

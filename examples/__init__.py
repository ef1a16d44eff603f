"""Further experiments, each run as `python -m examples.NAME`."""

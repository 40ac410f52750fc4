"""Measures the speed and the memory of the losses: see ``python -m bench --help``."""

"""Speed and memory of the losses against the eager code, torch.compile and each other: ``python -m
bench --help``.
"""

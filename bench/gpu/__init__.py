"""`make gpu` runs this package on a machine with a GPU.

It holds the tests, the measurements and their record.
"""

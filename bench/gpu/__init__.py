"""Everything behind `make gpu`: the tests and the measurements on a machine with a GPU, and what is
kept of them.
"""

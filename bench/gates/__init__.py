"""The compile gates check that every GPU kernel compiles for every supported architecture.

They run on a machine without a GPU.
"""

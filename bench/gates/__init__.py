"""Compile gates: every GPU kernel compiles for every supported architecture, on a machine without a
GPU.
"""

"""What stands beside the losses: training in chunks, pictures, and the doctor.

`grad_cache.py` and `heatmap.py` have one public function each. The other files belong to
``python -m fused_contrastive doctor``: `doctor.py` collects what they find out and reports it,
`machine.py` describes the machine, `self_test.py` tests the kernels, and `speed.py` times them.
`build.py` compiles the kernels in a clone.
"""

"""A program over ranks ends cleanly: nothing keeps a process group alive once it is destroyed."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import glob, sys
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
    import fused_contrastive as fc

    def run(rank, store):
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
        for strategy in ("gather", "ring"):
            z = torch.randn(8, 4, requires_grad=True)
            fc.clip_loss(z, z.detach(), 2.0, group="world", strategy=strategy).backward()
        fc.correlation_loss(z, z.detach(), group="world").backward()
        dist.destroy_process_group()
        names = [open(path).read() for path in glob.glob("/proc/self/task/*/comm")]
        assert not [name for name in names if "gloo" in name], names

    if __name__ == "__main__":
        mp.spawn(run, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the threads are listed on Linux")
def test_no_thread_of_a_destroyed_group_lives_on(tmp_path):
    """A thread of gloo that lives on can bring down the interpreter at its exit."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, str(program), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr

"""``python -m fused_contrastive build`` compiles the CPU kernels in a folder of sources.

A wheel brings its kernels with it. In a clone, the same command as that of an installation puts
them beside the sources.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2]


def build(folder: Path = FOLDER) -> int:
    """Compile the kernels in place, and return the exit status.

    Args:
        folder: the one that holds ``setup.py`` and ``csrc``.
    """
    if not (folder / "setup.py").exists() or not (folder / "csrc").is_dir():
        print(
            f"{folder} holds no sources to compile. An installed package brings its kernels with "
            "it: if they are missing, install it again with "
            "`pip install --force-reinstall --no-deps --no-cache-dir`.",
            file=sys.stderr,
        )
        return 1
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=folder, check=False).returncode

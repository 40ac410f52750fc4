"""The loss that docs/adding_a_loss.md adds passes the tests that the page names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "adding_a_loss.md"
COPIED = ("fused_contrastive", "triton_kernels", "tests", "bench", "docs", "csrc", "examples")


def run(folder: Path, *command: str) -> str:
    """Run a command in the folder, whose package and tests it imports. Return what it printed."""
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'tests'}"}
    # The command is a test run of its own.
    environment.pop("PYTEST_CURRENT_TEST", None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git to apply the diff")
def test_the_worked_example_passes(tmp_path):
    for name in COPIED:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.py")]:
        shutil.copy(file, tmp_path)
    diffs = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "example.diff").write_text("".join(diffs))
    run(tmp_path, "git", "apply", "example.diff")
    for record in ("test_snapshots.py", "test_types.py"):
        run(tmp_path, sys.executable, f"tests/{record}", "--update")
    chosen = "(uniformity or Uniformity) and not triton and not cuda"
    names = ("gradcheck", "accuracy", "examples", "modules")
    tests = [f"tests/losses/test_{name}.py" for name in names]
    told = run(tmp_path, sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", chosen, *tests)
    assert int(re.search(r"(\d+) passed", told)[1]) > 20, told

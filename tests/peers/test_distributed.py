"""The integrations agree with the packages over several processes.

Each rank's values and gradients are compared. The losses that are compared stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The exchange of open_clip with both neighbours differs for even and odd numbers.
WORLDS = (
    2,
    3,
)
GATHERED = "features that open_clip's own code gathers"
UNEVEN = "ranks with different numbers of samples"


@pytest.fixture(scope="module", params=WORLDS)
def found(request, tmp_path_factory) -> list[dict]:
    """Returns what each rank found, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(
        [*map(str, (HERE, HERE.parent, HERE.parent.parent)), os.environ.get("PYTHONPATH", "")]
    )
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ranks = range(request.param)
    commands = [
        [sys.executable, str(HERE / "ranks.py"), str(r), str(request.param), str(folder)]
        for r in ranks
    ]
    processes = [
        subprocess.Popen(
            c, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        for c in commands
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors)[-4000:]
    for error in errors:
        lines = error.splitlines()
        fallbacks = {line.partition("code: ")[2] for line in lines if "FallbackWarning" in line}
        assert fallbacks == {GATHERED} | ({UNEVEN} if request.param == max(WORLDS) else set())
        differences = [line for line in lines if "DifferenceWarning" in line]
        if request.param == max(WORLDS):
            # The packages beside open_clip run here alone.
            assert len(differences) == 1
            assert "pairs rows of different samples" in differences[0]
    return [json.loads((folder / f"{r}.json").read_text()) for r in ranks]


def test_equal(found):
    assert len(found[0]) >= 8
    for rank, cases in enumerate(found):
        assert {name: result for name, result in cases.items() if result != "equal"} == {}, (
            f"rank {rank}"
        )

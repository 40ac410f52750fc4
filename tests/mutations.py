"""Checks that the tests notice errors.

Run it by `make mutations`, or choose some mutations by `python tests/mutations.py panels loss`.

Every mutation in the list is one error that a colleague could make. The command copies the
repository, makes one error at a time in the copy, and runs the tests that should notice it. It
prints "caught" or "MISSED" for each, and ends with an exit status of 1 where one was missed.

Words given on the command line choose the mutations whose place or meaning contains one of them. A
mutation of `csrc/cpu` compiles the extension again. One of `csrc/cuda` compiles the host library of
the CUDA kernels again. Each takes minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support.mutations import MUTATIONS, Mutation

REPOSITORY = Path(__file__).resolve().parent.parent
COPIED = ("fused_contrastive", "triton_kernels", "csrc", "tests", "bench", "examples")
FILES = ("pyproject.toml", "setup.py", "Makefile")


def place_of(mutation: Mutation, root: Path) -> Path:
    """Return the one file that holds the mutation's text once.

    Raises:
        ValueError: The text stands in no file, in several files, or several times in one.
    """
    place = root / mutation.place
    files = [place] if place.is_file() else sorted(x for x in place.rglob("*") if x.is_file())
    kinds = (".py", ".h", ".cpp", ".cu", ".cuh")
    counts = {
        x: x.read_text(encoding="utf-8").count(mutation.text) for x in files if x.suffix in kinds
    }
    found = [path for path, count in counts.items() if count]
    if sum(counts.values()) != 1:
        raise ValueError(f"{sum(counts.values())} places for {mutation.text!r}: {found}")
    return found[0]


def copy_of_repository(folder: str) -> Path:
    """Copy the sources to where Python finds this package, Triton's kernels among it."""
    root = Path(folder)
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    for name in FILES:
        shutil.copy2(REPOSITORY / name, root / name)
    (root / "fused_contrastive/triton_kernels").symlink_to(root / "triton_kernels")
    host = REPOSITORY / "build/cuda_host"
    if host.exists():
        shutil.copytree(host, root / "build/cuda_host")
    return root


def run(command: list[str] | str, root: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command,
        cwd=root,
        env=environment,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
    )


def build_extension(root: Path) -> None:
    done = run([sys.executable, "setup.py", "build_ext", "--inplace"], root)
    if done.returncode:
        raise RuntimeError(f"the mutated extension does not compile:\n{done.stderr[-2000:]}")


def is_caught(mutation: Mutation, root: Path) -> bool:
    """Return whether the tests fail with this error in the copy, which is made whole again."""
    path = place_of(mutation, root)
    whole = path.read_text(encoding="utf-8")
    compiled = mutation.place.startswith("csrc/cpu")
    path.write_text(whole.replace(mutation.text, mutation.instead), encoding="utf-8")
    try:
        if compiled:
            build_extension(root)
        done = run(
            f"{sys.executable} -m pytest -q -x -m '' -p no:cacheprovider {mutation.tests}", root
        )
    finally:
        path.write_text(whole, encoding="utf-8")
        if compiled:
            build_extension(root)
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}"
        )
    return done.returncode == 1


def chosen(words: list[str]) -> list[Mutation]:
    return [
        mutation
        for mutation in MUTATIONS
        if not words or any(w in f"{mutation.place} {mutation.meaning}" for w in words)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("words", nargs="*", help="only mutations that contain one of these words")
    parser.add_argument("--list", action="store_true", help="say where each is, and run nothing")
    arguments = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = REPOSITORY if arguments.list else copy_of_repository(folder)
        for mutation in chosen(arguments.words):
            try:
                place = place_of(mutation, root).relative_to(root)
                verdict = (
                    "" if arguments.list else "caught" if is_caught(mutation, root) else "MISSED"
                )
            except (ValueError, RuntimeError) as error:
                place, verdict = mutation.place, f"MISSED: {error}"
            missed += verdict.startswith("MISSED")
            print(f"{verdict:7} {place}: {mutation.meaning}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())

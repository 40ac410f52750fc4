"""Two revisions of this repository are built side by side, each in its own folder in ``build``."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from .source_tree import ROOT

BUILT = ROOT / "build" / "revisions"
WORKING_TREE = "."


def git(*arguments: str) -> str:
    """Returns the standard output of git in this repository. Raises ValueError with its message."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return done.stdout.decode()


def identity(revision: str) -> str:
    """Returns the full commit hash.

    Of the working tree it returns ``tree-`` and a hash of its files.
    """
    if revision != WORKING_TREE:
        return git("rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    found = hashlib.sha256()
    for name in working_files():
        found.update(name.encode() + (ROOT / name).read_bytes())
    return f"tree-{found.hexdigest()[:35]}"


def working_files() -> list[str]:
    """Returns what a commit of the working tree would hold of the package.

    These are tracked and new files.
    """
    listed = git("ls-files", "-co", "--exclude-standard", "-z").split("\0")
    skipped = ("bench/", "tests/", "docs/", "examples/")
    return sorted(
        name for name in set(listed) if (ROOT / name).is_file() and not name.startswith(skipped)
    )


def export(revision: str, folder: Path) -> None:
    """Writes the files of a revision, or of the working tree, into `folder`."""
    if revision == WORKING_TREE:
        for name in working_files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        return
    archive = folder.with_suffix(".tar")
    git("archive", "--format=tar", f"--output={archive}", revision)
    with tarfile.open(archive) as opened:
        opened.extractall(folder)
    archive.unlink()


def build(revision: str) -> tuple[str, Path]:
    """Returns the identity and the folder with the built package.

    A commit that was built before is not built again. The build uses this interpreter's torch and
    needs a compiler. Where it fails, it raises RuntimeError with the end of the build's output.
    """
    known = identity(revision)
    place = BUILT / known[:17]
    if place.exists():
        return known, place
    print(f"building {revision} ({known[:12]})", flush=True)
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "package"
        source.mkdir()
        export(revision if revision == WORKING_TREE else known, source)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation"]
        command += ["--no-deps", "--target", str(target), str(source)]
        environment = {**os.environ, "FUSED_CONTRASTIVE_BUILD": "cpu"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{revision} does not build:\n{(done.stdout + done.stderr)[-3000:]}")
        os.replace(target, place)
    return known, place


def command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of this benchmark with this interpreter.

    `process_options` has the options that go with it.
    """
    return [sys.executable, "-m", f"bench.{module}", *arguments]


def process_options(package: Path) -> dict:
    """Returns options of subprocess with which ``fused_contrastive`` is the one in `package`.

    The working directory comes first on the path of ``python -m``, so it decides whose package is
    imported. The benchmark itself is always that of this checkout.
    """
    return {"cwd": package, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}

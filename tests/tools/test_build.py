"""Installing gives the kernels or an error, never a package that is silently without them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fused_contrastive as fc
from fused_contrastive.__main__ import main
from fused_contrastive.backends import cpu
from fused_contrastive.tools import build

ROOT = Path(fc.__file__).resolve().parent.parent


def setup(*command: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_compiler_it_fails_and_says_what_to_do(tmp_path):
    where = "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)
    done = setup("build_ext", *where, CXX="no-such-compiler", FUSED_CONTRASTIVE_BUILD="cpu")
    assert done.returncode != 0
    assert "there is no C++ compiler here" in done.stderr
    assert "FUSED_CONTRASTIVE_BUILD=none" in done.stderr


def test_a_compiler_that_cannot_is_an_error(tmp_path):
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    where = "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)
    done = setup("build_ext", *where, CXX=str(broken), FUSED_CONTRASTIVE_BUILD="cpu")
    assert done.returncode != 0 and "did not compile the CPU kernels" in done.stderr


def test_unknown_choice():
    done = setup("--version", FUSED_CONTRASTIVE_BUILD="gpu")
    assert done.returncode != 0
    assert "FUSED_CONTRASTIVE_BUILD must be cpu, cuda or none, got 'gpu'" in done.stderr


def test_without_kernels_only_on_request():
    done = setup("--version", FUSED_CONTRASTIVE_BUILD="none")
    assert done.returncode == 0 and "without native kernels" in done.stderr


def test_build_needs_sources(tmp_path, monkeypatch, capsys):
    assert build.build(tmp_path) == 1
    assert "holds no sources to compile" in capsys.readouterr().err
    ran = []
    monkeypatch.setattr(build.subprocess, "run", lambda *a, **o: ran.append((a, o)) or done)
    done = subprocess.CompletedProcess([], 0)
    assert main(["build"]) == 0 and ran[0][1]["cwd"] == ROOT


def test_sources_beside_an_installed_package(tmp_path, monkeypatch):
    """The reason names both folders where the sources were imported by accident."""
    installed = tmp_path / "site"
    (installed / "fused_contrastive").mkdir(parents=True)
    (installed / "fused_contrastive/__init__.py").touch()
    information = installed / "fused_contrastive-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: fused-contrastive\nVersion: 0.1.0\n")

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(cpu.importlib, "import_module", missing)
    monkeypatch.setattr(sys, "path", [str(installed)])
    reason = cpu._load()
    assert f"you are importing the sources in {ROOT / 'fused_contrastive'}" in reason
    assert f"the installed package is in {installed / 'fused_contrastive'}" in reason
    monkeypatch.setattr(sys, "path", [])
    assert "holds no compiled kernels" in cpu._load()


@pytest.mark.skipif(sys.platform != "linux", reason="the file's dependencies are read on Linux")
def test_the_library_needs_no_torch():
    if cpu.refusal(cpu.torch.device("cpu"), cpu.torch.float32) is not None:
        pytest.skip(cpu.status())
    content = Path(cpu._ops.__file__).read_bytes()
    assert b"libtorch" not in content and b"libc10" not in content

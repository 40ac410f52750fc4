"""Checks that the tests notice errors.

`make mutations`, or `python tests/mutations.py panels loss`.

Every mutation below is one error that a colleague could make. The command copies the repository,
makes one error at a time in the copy, and runs the tests that should notice it. It prints "caught"
or "MISSED" for each, and ends with an exit status of 1 where one was missed.

Words given on the command line choose the mutations whose place or meaning contains one of them. A
mutation of `csrc/cpu` compiles the extension again, one of `csrc/cuda` the host library of the CUDA
kernels; each takes minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
COPIED = ("fused_contrastive", "triton_kernels", "csrc", "tests", "bench", "examples")
FILES = ("pyproject.toml", "setup.py", "Makefile")


class Mutation(NamedTuple):
    """One error, and the tests that should fail by it."""

    meaning: str
    place: str  # a file, or a folder of which exactly one file holds the text
    text: str  # occurs exactly once there
    instead: str
    tests: str  # arguments of pytest


PANELS = "fused_contrastive/backends/panels"
GRADIENTS = "tests/losses/test_gradcheck.py"
ACCURACY = "tests/losses/test_accuracy.py"
FORCE = "tests/losses/test_force.py"
CUDA = "tests/backends/test_cuda_similarity.py"
TRITON = "tests/backends/test_triton_similarity.py"

MUTATIONS = (
    # Panels: the similarity family.
    Mutation(
        "The gradient of the rows misses the factor 1/2 where both directions are averaged.",
        PANELS,
        "c = g_rows * torch.sigmoid(excess(rows, pos)) / 2 +",
        "c = g_rows * torch.sigmoid(excess(rows, pos)) +",
        f"{GRADIENTS} -k 'test_loss and panels and clip'",
    ),
    Mutation(
        "With one set every pair counts twice in the gradient of the scale.",
        PANELS,
        "(0.5 if b is None else 1.0)",
        "1.0",
        f"{GRADIENTS} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The gradient of the bias misses the positive of each row.",
        PANELS,
        "dbias.index_add_(1, p, g_pos)",
        "pass",
        "tests/backends/test_panels.py",
    ),
    Mutation(
        "The gradient of the bias keeps the last panel's sums only.",
        PANELS,
        "dbias[g] += w.sum(1)",
        "dbias[g] = w.sum(1)",
        f"{GRADIENTS} -k 'test_primitive_across_tiles and panels'",
    ),
    Mutation(
        "With one set the gradient of the columns behind a panel is dropped.",
        PANELS,
        "G_a[g, i1:] += product(w[:, :, i1 - i0 :].transpose(1, 2), x[g, i])",
        "pass",
        f"{GRADIENTS} -k 'test_loss_across_tiles and panels and nt_xent'",
    ),
    Mutation(
        "With one set the sums of the columns behind a panel are dropped.",
        PANELS,
        "row_sums.add((g, slice(i1, N)), s[:, :, i1 - i0 :], 1)",
        "pass",
        "tests/losses/test_scale.py -k 'test_panels_of_any_size and nt_xent'",
    ),
    Mutation(
        "The positive is one column too far.",
        PANELS,
        "(torch.arange(M, device=device) + positive) % N",
        "(torch.arange(M, device=device) + positive + 1) % N",
        f"{ACCURACY} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The gradient through the normalisation has the wrong sign.",
        PANELS,
        "(gradient - radial * unit) * inv",
        "(gradient + radial * unit) * inv",
        f"{GRADIENTS} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The weights of the columns are taken with the log-sum-exp of the rows.",
        PANELS,
        "s.sub_(cols[g, :, j])",
        "s.sub_(rows[g, i])",
        f"{GRADIENTS} -k 'test_loss and panels and clip'",
    ),
    Mutation(
        "The excluded diagonals move the wrong way from panel to panel.",
        PANELS,
        "offset + i.start - j.start",
        "offset - i.start + j.start",
        "tests/losses/test_scale.py -k 'test_panels_of_any_size and (clip or nt_xent)'",
    ),
    Mutation(
        "Rows are normalised in their own precision instead of float32.",
        PANELS,
        "x = x.to(accumulation_dtype(dtype))\n    inv",
        "x = x.to(dtype)\n    inv",
        "tests/pytorch/test_pytorch.py -k 'test_opcheck and panels'",
    ),
    Mutation(
        "Sums of exponentials are not rescaled when a larger logit arrives.",
        PANELS,
        "self.total[place] * torch.exp(old - shift)",
        "self.total[place]",
        "tests/losses/test_scale.py -k test_panels_of_any_size",
    ),
    # Panels: the other families.
    Mutation(
        "The weights of the sigmoid family forget the upstream gradient.",
        PANELS,
        "s.sigmoid_().mul_(c[g, i].unsqueeze(2))",
        "s.sigmoid_()",
        f"{GRADIENTS} -k 'test_loss and panels and siglip'",
    ),
    Mutation(
        "The second derivative forgets the tangents of the columns' weights.",
        PANELS,
        "w, t_w = w.add_(more), t_w.add_(t_more)",
        "w = w.add_(more)",
        "tests/pytorch/test_second_derivatives.py -k 'test_loss and panels'",
    ),
    Mutation(
        "Affinities miss the square root of the product of both softmaxes.",
        PANELS,
        "alpha=0.5",
        "alpha=1.0",
        f"{FORCE} -k 'test_force and panels'",
    ),
    Mutation(
        "A point's affinity to itself enters the sums.",
        PANELS,
        "_self_pairs(a, i).fill_(self.self_logit)",
        "pass",
        f"{FORCE} -k 'test_force and panels'",
    ),
    Mutation(
        "The denominator of the toy drift field is not bounded from below.",
        PANELS,
        "total.clamp_min_(self.denominator)",
        "pass",
        f"{FORCE} -k 'test_drift_field and panels'",
    ),
    # Autograd and the losses.
    Mutation(
        "The backward pass forgets the upstream gradient of the paired loss.",
        "fused_contrastive/autograd",
        "g_rows, g_cols = g_loss, None",
        "g_rows, g_cols = torch.ones_like(rows[0]), None",
        f"{ACCURACY} -k 'test_loss and panels and nt_xent'",
    ),
    Mutation(
        "The loss is softplus of the positive less the log-sum-exp.",
        "fused_contrastive/losses",
        "lse - pos + 0 *",
        "pos - lse + 0 *",
        f"{ACCURACY} -k 'test_loss and panels and sup_con'",
    ),
    Mutation(
        "The weights of the positives of DCLW do not have the mean 1.",
        "fused_contrastive/losses/dcl.py",
        "(2 - B * ",
        "(1 - B * ",
        "tests/losses/test_labels.py",
    ),
    Mutation(
        "An anchor is counted among its own positives.",
        "fused_contrastive/losses/sup_con.py",
        "self.views * size - 1",
        "self.views * size",
        "tests/losses/test_labels.py -k against_the_oracle",
    ),
    Mutation(
        "The memory bank starts again one row too early.",
        "fused_contrastive/memory_bank.py",
        "else end % K",
        "else end % (K - 1)",
        "tests/pytorch/test_memory_bank.py",
    ),
    Mutation(
        "A chunk of the cached step receives the gradients of the first rows.",
        "fused_contrastive/grad_cache.py",
        "rows = slice(self.starts[index], self.starts[index] + self.size)",
        "rows = slice(0, self.size)",
        "tests/pytorch/test_grad_cache.py",
    ),
    Mutation(
        "SupContrast's loss is not scaled by the ratio of its two temperatures.",
        "fused_contrastive/integrations/supcontrast.py",
        "(self.temperature / self.base_temperature) * loss",
        "loss",
        "tests/test_integrations.py -k supcontrast",
    ),
    # Triton.
    Mutation(
        "A row is compared with itself where a tile crosses the diagonal.",
        "triton_kernels",
        'if KIND == "not_self":\n        if (low <= 0) & (high >= 0)',
        'if KIND == "not_self":\n        if (low < 0) & (high < 0)',
        f"{TRITON} -k test_values_and_gradients",
    ),
    Mutation(
        "The mirrored half of a panel is not written.",
        "triton_kernels/pair_weight.py",
        "if j // SQUARE > i // SQUARE:",
        "if j // SQUARE > i // SQUARE + 1000:",
        TRITON,
    ),
    Mutation(
        "Running sums are not rescaled when a larger logit arrives.",
        "triton_kernels/pair_reduce.py",
        "tl.fma(total, tl.exp2(maximum - shift), tl.sum(e, AXIS))",
        "total + tl.sum(e, AXIS)",
        TRITON,
    ),
    Mutation(
        "The positive of a row pushes instead of pulling.",
        "triton_kernels/finish.py",
        "total -= near_pull[:, None]",
        "total += near_pull[:, None]",
        f"{TRITON} -k test_values_and_gradients",
    ),
    Mutation(
        "The gradient of normalised rows is not projected.",
        "triton_kernels/finish.py",
        "tangent = tl.where(length < 0.99999e12, tangent, 0.0)",
        "tangent = tangent * 0.0",
        f"{TRITON} -k test_values_and_gradients",
    ),
    Mutation(
        "Two partial sums are added without a common maximum.",
        "triton_kernels",
        "other_total * tl.exp(other_top - shift)",
        "other_total",
        "tests/backends/test_triton_force.py -k test_forward",
    ),
    # The CPU extension.
    Mutation(
        "The positive's own gradient has the wrong sign.",
        "csrc/cpu",
        "positive_[i] = -row_[i];",
        "positive_[i] = row_[i];",
        f"{GRADIENTS} -k 'test_loss and cpu and nt_xent'",
    ),
    Mutation(
        "Column sums of a tile begin with those of the tile before.",
        "csrc/cpu",
        "if (bias) std::fill_n(s.column_sums, size_, T(0));",
        "",
        f"{GRADIENTS} -k 'test_primitive and cpu and bias'",
    ),
    # The CUDA kernels, by the host shim.
    Mutation(
        "The loss of both directions is their sum, not their mean.",
        "csrc/cuda",
        "col_lse.undefined(target)))) / 2;",
        "col_lse.undefined(target))));",
        f"{CUDA} -k 'test_positive and clip'",
    ),
    Mutation(
        "With one set the pull of a positive's partner has the wrong sign.",
        "csrc/cuda",
        "if (p.far) value -= far_pull",
        "if (p.far) value += far_pull",
        f"{CUDA} -k 'test_positive and nt_xent'",
    ),
)


def place_of(mutation: Mutation, root: Path) -> Path:
    """The one file that holds the text, once.

    Raises:
        ValueError: where none does, or more than one, or more than once.
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
    """A copy of the sources in which Python finds this package, Triton's kernels among it."""
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
    """Whether the tests fail with this error in the copy, which is whole again afterwards."""
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

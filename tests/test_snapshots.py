"""What users and compiled programs rely on is still what snapshots.json holds.

That file is under review. It holds the schemas of the ops, the public names and signatures, and the
errors of wrong arguments. It also holds the kernels that one step of each loss launches on the CUDA
backend. Where a change is intended, run `python tests/test_snapshots.py --update`, and look at the
difference before committing it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support import cases

import fused_contrastive as fc
from fused_contrastive.backends import dispatch

RECORD = Path(__file__).resolve().parent / "snapshots.json"


def examples() -> dict[str, dict]:
    """A valid call of every public function of tensors: its required arguments.

    A loss that is not listed here has the example of its plainest case in support/cases.py.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 3, generator=generator) for _ in range(2))
    steps = torch.stack([x, y])
    pictures = {"image_features": x, "text_features": y, "logit_scale": 2.0}
    teacher = {"teacher_image_features": y, "teacher_text_features": x, "teacher_logit_scale": 3.0}
    sets = {"positive": steps, "negative": steps[:, :3]}
    listed = {
        "similarity_logsumexp": {"a": x},
        "nt_xent_loss": {"z1": x, "z2": y},
        "info_nce_loss": {"query": x, "positive_key": y},
        "clip_loss": pictures,
        "distill_clip_loss": pictures | teacher,
        "guided_info_nce_loss": {"query": x, "positive_key": y},
        "siglip_loss": pictures | {"logit_bias": -1.0},
        "n_pairs_loss": {"anchors": x, "positives": y},
        "cpc_loss": {"predictions": steps, "latents": steps},
        "multiple_negatives_ranking_loss": {"query": x, "positive_key": y},
        "sup_con_loss": {"features": x, "labels": torch.tensor([0, 1, 0, 1])},
        "dcl_loss": {"z1": x, "z2": y},
        "dclw_loss": {"z1": x, "z2": y},
        "correlation_loss": {"z1": x, "z2": y},
        "barlow_twins_loss": {"z1": x, "z2": y},
        "contrastive_force": sets | {"temperature": 0.5},
        "contrastive_force_loss": sets,
        "drift_loss": {"gen": steps, "positive": steps},
        "drift_field": {"gen": steps, "positive": steps},
    }
    more = (case for name, case in cases.PLAINEST.items() if name not in listed)
    return listed | {case.function: case.example() for case in more}


WRONG = {
    "None": None,
    "a word": "word",
    "seven": 7,
    "true": True,
    "nan": math.nan,
    "zero": 0.0,
    "a list": [1.0],
    "a number of float64": torch.ones((), dtype=torch.float64),
    "one element": torch.ones(1),
    "integers": torch.arange(4),
    "one dimension": torch.ones(4),
    "two features": torch.ones(4, 2),
    "float64": torch.ones(4, 3, dtype=torch.float64),
    "meta": torch.ones(4, 3, device="meta"),
    "three dimensions": torch.ones(2, 4, 3),
    "four dimensions": torch.ones(2, 2, 4, 3),
}


def schemas() -> list[str]:
    registered = torch._C._jit_get_all_schemas()
    return sorted(str(s) for s in registered if s.name.startswith("fused_contrastive::"))


def parameters(function) -> list[str]:
    """Return the name, kind and default of each parameter.

    How a type is spelled does not matter.
    """
    found = inspect.signature(function).parameters.values()
    return [
        f"{p.kind.name.lower()} {p.name}" + ("" if p.default is p.empty else f" = {p.default!r}")
        for p in found
    ]


def signatures() -> dict[str, list[str]]:
    found = {}
    for name in fc.__all__:
        value = getattr(fc, name)
        if inspect.isclass(value):
            found[f"{name}.__init__"] = parameters(value.__init__)
            if hasattr(value, "forward"):
                found[f"{name}.forward"] = parameters(value.forward)
        elif callable(value):
            found[name] = parameters(value)
    return found


def outcome(function, arguments: dict) -> str:
    """The error of a call, in its own words where they are the package's; else "accepted".

    The list of the backends has a placeholder, so that a new backend changes no line of the record.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except (ValueError, TypeError, NotImplementedError) as error:
        text = re.sub(r"0x[0-9a-f]+", "0x", str(error))
        text = text.replace(", ".join(dispatch.NAMES), "<backends>")
        return f"{type(error).__name__}: {text}"
    except Exception as error:
        return type(error).__name__
    return "accepted"


def errors() -> dict[str, dict[str, dict[str, str]]]:
    """Return, by function and argument, each outcome and the wrong values that it comes of.

    The other arguments are right.
    """
    found = {}
    for name, arguments in examples().items():
        function = getattr(fc, name)
        found[name] = {}
        for argument in inspect.signature(function).parameters:
            causes = found[name][argument] = {}
            for wrong, value in WRONG.items():
                result = outcome(function, arguments | {argument: value})
                causes[result] = f"{causes[result]}, {wrong}" if result in causes else wrong
    return found


class Recorder:
    """This object calls the operators of the CUDA backend, and notes their names."""

    def __init__(self, operators, names: list[str]):
        self.operators, self.names = operators, names

    def __getattr__(self, name):
        operator = getattr(self.operators, name)

        def call(*arguments):
            self.names.append(name)
            return operator(*arguments)

        return call


def cuda_backend():
    """Return the module of the CUDA backend, whose place in the package may change."""
    try:
        return importlib.import_module("fused_contrastive.backends.cuda")
    except ModuleNotFoundError:
        return importlib.import_module("fused_contrastive.cuda")


def launches() -> dict[str, list[str]]:
    """Return, by loss, the operators of one training step on the CUDA backend.

    The host shim runs them.
    """
    import cuda_host

    libraries, found = cuda_backend().LIBRARIES, {}
    before = libraries.get("cpu")
    try:
        for name, arguments in examples().items():
            function = getattr(fc, name)
            if "backend" not in inspect.signature(function).parameters or name == "drift_field":
                continue
            leaves = {
                key: x.clone().requires_grad_()
                if isinstance(x, torch.Tensor) and x.is_floating_point()
                else x
                for key, x in arguments.items()
            }
            found[name] = []
            libraries["cpu"] = Recorder(cuda_host.load().operators, found[name])
            out = function(**leaves, backend="cuda")
            loss = out[0] if isinstance(out, tuple) else out
            if loss.requires_grad:
                loss.sum().backward()
    finally:
        if before is None:
            libraries.pop("cpu", None)
        else:
            libraries["cpu"] = before
    return found


PARTS = {
    "schemas": schemas,
    "names": lambda: sorted(fc.__all__),
    "signatures": signatures,
    "errors": errors,
    "launches": launches,
}


def differences(found, expected, place="") -> list[str]:
    """Return every place where two parts of a record differ, with what is there in each."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            line
            for key in sorted({*found, *expected})
            for line in differences(found.get(key), expected.get(key), f"{place}/{key}")
        ]
    return [] if found == expected else [f"{place}: {found!r}, in the record {expected!r}"]


@pytest.mark.parametrize("part", PARTS)
def test_nothing_has_changed(part, device):
    if part == "launches":
        import cuda_host

        if device.type != "cpu" or cuda_host.compiler() is None:
            pytest.skip("launches are counted in the host shim, which needs a C++ compiler")
    expected = json.loads(RECORD.read_text(encoding="utf-8"))[part]
    changed = differences(PARTS[part](), expected, part)
    assert not changed, "\n".join(["", *changed[:40]])


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/test_snapshots.py --update")
    record = {part: collect() for part, collect in PARTS.items()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

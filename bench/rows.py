"""One group (loss, size) is measured over its contenders and dtypes in one interleaved run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from . import contenders, environment, memory
from .gpu import launches
from .losses import DTYPES, LOSSES, PASSES, Size, flops, make_inputs
from .measure import (
    Product,
    Sample,
    Step,
    interleave,
    paired_ratio,
    quartiles,
    relative_error,
    seconds_of,
)

CHECKED_CELLS = {"cpu": 2048**2, "cuda": 16384**2}
"""Up to this many similarities the gradients of every contender are compared with the dense loss in
float64.
"""


class Group(NamedTuple):
    """A group is one loss at one size, with the contenders that share its rounds.

    A contender is ``(backend, dtype)``.
    """

    loss: str
    size: Size
    contenders: tuple[tuple[str, str], ...]

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(dtype for _, dtype in self.contenders))

    def __str__(self):
        return f"{self.loss} {self.size} {','.join(self.dtypes)}"


class Plan(NamedTuple):
    """A plan has the options of a run that hold for every group."""

    device: torch.device
    passes: tuple[str, ...] = PASSES
    memory: bool = True
    least: int = 5
    most: int = 40


def run_group(
    group: Group, plan: Plan, seconds: float, tick: Callable[[str], None] = lambda text: None
) -> dict:
    """Measures one group in about `seconds` of sampling.

    Returns its ``rows``, ``unavailable``, ``compile_seconds`` and ``sampling_seconds``.
    """
    # Compiled code of other shapes would count against the recompilation limit.
    torch.compiler.reset()
    steps, estimates, refused, compiled = _warm_up(group, plan.device, tick)
    errors = _errors(group, plan.device, steps, tick)
    for (backend, dtype), error in wrong(errors).items():
        del steps[backend, dtype]
        refused.append(
            {
                **_place(group, backend, dtype),
                "reason": f"wrong gradient: relative error {error:.1e}",
            }
        )
    size = group.size
    bare = {
        dtype: Product(size.N, size.D, DTYPES[dtype], plan.device, dtype == "tf32")
        for dtype in dict.fromkeys(dtype for _, dtype in steps)
    }
    every = dict(steps)
    for dtype, product in bare.items():
        product()
        every["gemm", dtype], estimates["gemm", dtype] = product, sum(product())
    began = time.perf_counter()
    samples = interleave(
        every,
        seconds,
        estimates,
        least=plan.least,
        most=plan.most,
        tick=lambda done, total: tick(f"round {done}/{total}"),
    )
    sampling = time.perf_counter() - began
    products = {dtype: product.flops for dtype, product in bare.items()}
    rows = rows_from_samples(group, samples, products, plan.passes)
    launched = (
        {key: launches.record(step) for key, step in steps.items()}
        if plan.device.type == "cuda"
        else {}
    )
    for row in rows:
        key = (row["backend"], row["dtype"])
        row["gradient_error"] = errors.get(key)
        if plan.device.type == "cuda":
            if plan.memory and row["pass"] != "backward":
                row["peak_extra_bytes"] = memory.cuda_peak(steps[key], row["pass"])
            # Each kernel is a pair (name, microseconds).
            row["kernels"] = launched[key][row["pass"]]
    return {
        "rows": rows,
        "unavailable": refused,
        "compile_seconds": compiled,
        "sampling_seconds": sampling,
    }


def _warm_up(group: Group, device: torch.device, tick):
    """Returns ``(steps, seconds, refused, compile seconds)`` of the contenders.

    The first two are keyed (backend, dtype) and hold those that ran. `refused` says why others did
    not.
    """
    steps: dict[tuple[str, str], Step] = {}
    estimates: dict[tuple[str, str], float] = {}
    refused, compiled = [], {}
    for dtype in group.dtypes:
        inputs = make_inputs(group.loss, group.size, DTYPES[dtype], device)
        for backend in (name for name, wanted in group.contenders if wanted == dtype):
            reason = contenders.refusal(backend, device, dtype)
            if reason is None and device.type == "cpu":
                reason = contenders.too_large(group.loss, backend, group.size, dtype)
            if reason is None:
                tick(f"warming up {backend} {dtype}")
                step = Step(contenders.function(group.loss, backend), inputs, dtype == "tf32")
                start = time.perf_counter()
                try:
                    step.gradients()
                    if backend == "compile":
                        compiled[dtype] = round(time.perf_counter() - start, 2)
                    estimates[backend, dtype] = sum(step())
                    steps[backend, dtype] = step
                except Exception as error:
                    said = (str(error).strip() or "no message").splitlines()[0]
                    reason = f"{type(error).__name__}: {said[:200]}"
                    check_device(device)
                    torch.cuda.empty_cache()
            if reason is not None:
                refused.append(
                    {**_place(group, backend, dtype), "reason": environment.without_paths(reason)}
                )
    return steps, estimates, refused, compiled


class DeviceLost(RuntimeError):
    """The device no longer answers, for example after an illegal memory access.

    Only a new process can go on.
    """


def check_device(device: torch.device) -> None:
    """Raises DeviceLost where the CUDA context is broken."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLost(str(error).splitlines()[0]) from error


def _errors(group: Group, device: torch.device, steps: dict, tick) -> dict[tuple[str, str], float]:
    """Returns the relative gradient error of each contender.

    It is taken against the dense loss in float64 on the same (rounded) inputs.
    """
    if LOSSES[group.loss].cells(group.size) > CHECKED_CELLS[device.type]:
        return {}
    tick("checking gradients")
    errors = {}
    for dtype in dict.fromkeys(dtype for _, dtype in steps):
        chosen = {key: step for key, step in steps.items() if key[1] == dtype}
        inputs = next(iter(chosen.values())).inputs
        exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
        truth = Step(LOSSES[group.loss].eager, exact).gradients()
        for key, step in chosen.items():
            errors[key] = relative_error(step.gradients(), truth)
    return errors


def wrong(errors: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Returns the contenders whose gradient error is more than rounding.

    Such an error is over 10 times eager's in the same dtype (0.05 without eager), or NaN.
    """
    limits = {dtype: 10 * error for (backend, dtype), error in errors.items() if backend == "eager"}
    return {key: error for key, error in errors.items() if not error <= limits.get(key[1], 0.05)}


def _place(group: Group, backend: str, dtype: str) -> dict:
    size = group.size
    return {
        "loss": group.loss,
        "backend": backend,
        "dtype": dtype,
        "N": size.N,
        "K": size.K,
        "D": size.D,
    }


def rows_from_samples(
    group: Group,
    samples: dict[tuple[str, str], list[Sample]],
    product_flops: dict[str, int],
    passes: tuple[str, ...],
) -> list[dict]:
    """Returns the rows of a group, from its samples keyed (backend, dtype).

    ``("gemm", dtype)`` is the bare product of that dtype.
    """
    rows = []
    for (backend, dtype), taken in samples.items():
        if backend == "gemm":
            continue
        rate = product_flops[dtype] / quartiles(seconds_of(samples["gemm", dtype], "forward"))[1]
        for which in passes:
            values = seconds_of(taken, which)
            low, median, high = quartiles(values)
            work = flops(group.loss, group.size, which, backend in contenders.BASELINES)
            row = {
                **_place(group, backend, dtype),
                "pass": which,
                "ms": median * 1e3,
                "ms_quartiles": [low * 1e3, high * 1e3],
                "rounds": len(values),
                "flops": work,
                "gflops": work / median / 1e9 if median else None,
                "gemm_gflops": rate / 1e9,
                "gemm_fraction": work / median / rate if median else None,
                "peak_extra_bytes": None,
            }
            for baseline in contenders.BASELINES:
                other = samples.get((baseline, dtype))
                ratio = paired_ratio(seconds_of(other, which), values) if other else None
                row[f"x_{baseline}"] = ratio[1] if ratio else None
                row[f"x_{baseline}_quartiles"] = [ratio[0], ratio[2]] if ratio else None
            rows.append(row)
    _against_fp32(rows, samples)
    return rows


def _against_fp32(rows: list[dict], samples: dict) -> None:
    """Adds ``x_fp32`` to the rows of other dtypes, from the same rounds.

    It says how many times faster they are than the same contender in fp32.
    """
    for row in rows:
        other = samples.get((row["backend"], "fp32")) if row["dtype"] != "fp32" else None
        values = seconds_of(samples[row["backend"], row["dtype"]], row["pass"])
        row["x_fp32"] = paired_ratio(seconds_of(other, row["pass"]), values)[1] if other else None


def add_host_memory(
    rows: list[dict], timeout: float, tick: Callable[[str], None] = lambda text: None
) -> None:
    """Adds to every row the peak growth of the resident set in its full pass.

    Without a full pass it is that of the forward pass. One process runs per contender and dtype.
    """
    measured = "full" if any(row["pass"] == "full" for row in rows) else "forward"
    keyed = {
        (
            row["loss"],
            row["backend"],
            Size(row["N"], row["K"], row["D"]),
            row["dtype"],
            measured,
        ): row
        for row in rows
        if row["pass"] == measured
    }
    families = dict.fromkeys((job[0], job[1], job[3]) for job in keyed)
    end = time.monotonic() + timeout
    for done, family in enumerate(families):
        tick(f"{family[1]} {family[2]} ({done + 1}/{len(families)})")
        jobs = [job for job in keyed if (job[0], job[1], job[3]) == family]
        for job, answer in memory.measure(jobs, max(10.0, end - time.monotonic())).items():
            if isinstance(answer, int):
                keyed[job]["peak_extra_bytes"] = answer
            else:
                keyed[job]["peak_extra_reason"] = answer

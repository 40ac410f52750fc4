"""The GPU kernels of one step are timed by torch's profiler, each alone on the device."""

from __future__ import annotations

import sys

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ..measure import Step, matmul_precision

Launch = tuple[str, float]
"""A launch has the kernel's name and its microseconds on the device."""


def record(step: Step) -> dict[str, list[Launch] | None]:
    """Returns the kernels that one forward, backward and full pass launch, in order.

    Copies and fills are left out. A pass is None where the profiler does not work on this machine.
    """
    try:
        with matmul_precision(step.tf32):
            loss = step.forward()
            forward = _kernels(step.forward)
            backward = _kernels(lambda: step.backward(loss))
    except RuntimeError as error:
        print(f"no launch counts: {error}", file=sys.stderr)
        return dict.fromkeys(("forward", "backward", "full"))
    return {"forward": forward, "backward": backward, "full": forward + backward}


def _kernels(work) -> list[Launch]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    events = [event for event in recorded.events() if event.device_type == DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    left_out = ("memcpy", "memset", "gpu_user_annotation")
    kept = [event for event in events if not event.name.lower().startswith(left_out)]
    return [(event.name[:120], round(event.time_range.elapsed_us(), 2)) for event in kept]

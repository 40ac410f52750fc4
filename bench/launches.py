"""GPU kernels of one step, counted by torch's profiler."""

from __future__ import annotations

import sys

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .measure import Step, matmul_precision


def count(step: Step) -> dict[str, list[str] | None]:
    """Names of the kernels (copies and fills left out) that one forward, backward and full pass launch, in order.

    None for each where the profiler does not work on this machine.
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


def _kernels(work) -> list[str]:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    events = [event for event in recorded.events() if event.device_type == DeviceType.CUDA]
    events.sort(key=lambda event: event.time_range.start)
    names = [event.name for event in events]
    return [name[:120] for name in names if not name.lower().startswith(("memcpy", "memset", "gpu_user_annotation"))]

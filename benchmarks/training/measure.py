"""What a device does: its best product of matrices, its memory, and when it has done."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_name(device: torch.device) -> str:
    """Return what a report says of a GPU; nothing of a CPU."""
    if device.type == "cpu":
        return ""
    found = [x for x in ("flash_attn", "flash_attn_interface") if importlib.util.find_spec(x)]
    attention = ", ".join(found) or "no flash-attn"
    return f"{torch.cuda.get_device_name()}, bf16 autocast, {attention}"


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return the most that `work` allocates over what exists before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profiler.export_chrome_trace(trace.name)
        events = [
            (event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"])
            for event in json.loads(Path(trace.name).read_text())["traceEvents"]
            if event["name"] == "[memory]"
        ]
    _, total, size = min(events)
    return int(max(event[1] for event in events) - (total - size))


def best_mm(device: torch.device, seconds: float = 0.4) -> float:
    """Return the best FLOP/s of torch.mm over square sizes and a few attempts."""
    best = 0.0
    cuda = device.type == "cuda"
    for n in (4096, 8192) if cuda else (1024, 2048):
        a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
        out = torch.empty_like(a)
        end = time.perf_counter() + seconds / 2
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            settle(device)
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best

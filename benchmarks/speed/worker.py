"""One contender of one workload in a process of its own: reads orders as JSON lines, answers with JSON lines."""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed.workloads import WORKLOADS, prepare
from examples.live_bytes import LiveBytes


def main() -> None:
    order = json.loads(sys.stdin.readline())
    torch.set_num_threads(order["threads"])
    device = torch.device(order["device"])
    if device.type != "cpu":
        torch.set_default_device(device)
    run, unit = prepare(WORKLOADS[order["workload"]], order["contender"])
    begin = time.perf_counter()
    gradients = run()
    first = time.perf_counter() - begin
    peak = None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        run()
        peak = torch.cuda.max_memory_allocated() - base
    elif order["bytes"]:
        with LiveBytes() as live:
            live.ignore(
                tensor for tensor in gc.get_objects() if issubclass(type(tensor), torch.Tensor)
            )  # states and parameters that were there
            run()
        peak = live.peak
    answer({"first": first, "peak": peak, "norms": [float(g.double().norm()) for g in gradients], "units": unit()})
    del gradients
    clock = time.perf_counter if device.type == "cuda" or order["threads"] > 1 else time.process_time
    for line in sys.stdin:
        repeats = json.loads(line)["repeats"]
        begin = clock()
        for _ in range(repeats):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        answer({"seconds": (clock() - begin) / repeats})


def answer(content: dict[str, object]) -> None:
    print("=>" + json.dumps(content), flush=True)


if __name__ == "__main__":
    main()

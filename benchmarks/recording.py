"""What a recorder costs a training, from the first step of a process on.

    python benchmarks/recording.py            # 4 minutes of one core

Each run is a process of its own, with one thread. It trains a net for some seconds, bare or
recorded with the default budget and probes, and runs of both kinds take turns: CPU time of the loop
with a recorder over that without, less one, beside the recorder's own count.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

import particlevi as pvi

NETS = {
    "91 weights, batches of 16": (16, 5, 16),
    "1.8 thousand weights, batches of 32": (20, 80, 32),
    "270 thousand weights, batches of 128": (784, 340, 128),
}


def train(name: str, steps: int, recorded: bool) -> tuple[float, float]:
    """Milliseconds of CPU time per step, and the recorder's own count of its share."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, width, size = NETS[name]
    net = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))
    x = torch.randn(2000, inputs)
    y = x[:, :5].sum(1, keepdim=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(net(batch[0]), batch[1])

    recorder = None
    if recorded:
        recorder = pvi.record.Recorder(net, optimizer, loss=loss, probe=(x[:256], y[:256]))
    began = time.process_time()
    for _ in range(steps):
        rows = torch.randint(len(x), (size,))
        optimizer.zero_grad()
        loss((x[rows], y[rows])).backward()
        optimizer.step()
    share = recorder.cost if recorder else 0.0
    return 1000 * (time.process_time() - began) / steps, share


def measured(name: str, steps: int, recorded: bool) -> tuple[float, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--steps", str(steps)]
    command += ["--recorded"] * recorded
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.split()
    return float(first), float(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of a bare run, about")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--one", choices=list(NETS), help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--recorded", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*train(options.one, options.steps, options.recorded))
        return
    print("| net | ms of a step | seconds | recorder, by CPU time | by its own count |")
    print("|---|---|---|---|---|")
    for name in NETS:
        rough, _ = measured(name, 500, False)
        steps = max(100, int(1000 * options.seconds / rough))
        bare, ratios, own = [], [], []
        for _ in range(options.repetitions):
            alone, _ = measured(name, steps, False)
            beside, share = measured(name, steps, True)
            bare.append(alone)
            ratios.append(beside / alone - 1)
            own.append(share)
        spread = f"{statistics.median(ratios):.1%} [{min(ratios):.1%}, {max(ratios):.1%}]"
        each = statistics.median(bare)
        print(
            f"| {name} | {each:.2f} | {each * steps / 1000:.1f} | {spread} "
            f"| {statistics.median(own):.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

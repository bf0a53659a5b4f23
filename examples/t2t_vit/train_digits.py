"""Train the small model with exact attention: ``python -m examples.t2t_vit.train_digits``.

It writes digits.pt, float16 weights with the names of the published checkpoints. digits.log holds
what it printed. The test digits influence nothing: the schedule is fixed, and the last weights are
written.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from torch.nn import functional

from examples.t2t_vit import digits
from examples.t2t_vit.model import T2TViT


def accuracy(model: T2TViT, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of enlarged images that are classified correctly, in percent."""
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(1) for part in images.split(50)])
    model.train()
    return 100 * (found == labels).float().mean().item()


def train(epochs: int, batch: int = 48, rate: float = 2e-3, seed: int = 0) -> T2TViT:
    """Train a model; return a model with the running mean of its weights."""
    torch.manual_seed(seed)
    images, labels = digits.load("train")
    held_out, held_out_labels = digits.load("test")
    held_out = digits.enlarge(held_out)
    model = T2TViT(digits.CONFIG)
    mean = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05, fused=True)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=0.15
    )
    print(
        f"{sum(x.numel() for x in model.parameters()):,} parameters, {len(images)} images, "
        f"{torch.get_num_threads()} threads"
    )
    start, step = time.perf_counter(), 0
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            loss = functional.cross_entropy(
                model(digits.augment(images[rows])), labels[rows], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            decay = min(0.995, step / (step + 10))
            with torch.no_grad():
                for slow, fast in zip(mean.parameters(), model.parameters(), strict=True):
                    slow.lerp_(fast, 1 - decay)
            total += loss.item() * len(rows)
        line = f"epoch {epoch:3}  loss {total / len(images):.3f}"
        if epoch % 5 == 0 or epoch == epochs:
            line += f"  test accuracy {accuracy(mean, held_out, held_out_labels):.2f} %"
        print(f"{line}  {time.perf_counter() - start:.0f} s", flush=True)
    return mean


def main() -> None:
    """Train and write the weights."""
    parser = argparse.ArgumentParser(description="Train the miniature T2T-ViT on digits.")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--out", type=Path, default=digits.WEIGHTS)
    arguments = parser.parse_args()
    state = train(arguments.epochs).state_dict()
    torch.save({"state_dict_ema": {name: x.half() for name, x in state.items()}}, arguments.out)


if __name__ == "__main__":
    main()

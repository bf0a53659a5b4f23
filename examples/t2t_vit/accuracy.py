"""Top-1 accuracy of a T2T-ViT under several attentions, as a table and a CSV.

python -m examples.t2t_vit.accuracy --checkpoint 82.6_T2T_ViTt_24.pth.tar --images ILSVRC2012/val
python -m examples.t2t_vit.accuracy --digits

An interrupted command goes on when it is run again: it keeps the batches that are in the CSV.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from examples.attention import by_name, draws
from examples.command import count, stop
from examples.t2t_vit import digits, images, weights
from examples.t2t_vit.model import Config, T2TViT

# the published setting, and sampling of as many keys
PUBLISHED = (
    "exact",
    "thinformer:g=2,pre_thin=stride/thinformer:g=4,pre_thin=stride",
    "thinformer:g=2/thinformer:g=4",
    "uniform:size=128/uniform:size=256",
    "strided:size=128/strided:size=256",
)
FAMILIES = (
    "uniform:size={}",
    "strided:size={}",
    "thinformer:size={}",
    "thinformer:size={},correction=nystrom",
    "thinformer:size={},correction=queries",
)
SIZES = (2, 4, 8, 16, 32)
COLUMNS = ("weights", "images", "batch", "attention", "seed", "first", "correct")


def measure(model, data, runs, batch: int, out: Path, weights_of: str) -> None:
    """Classify all images in each run (attention, seed), and append new batches to a CSV.

    A row is a batch. The seed of a batch depends on the seed of the run and on the position of the
    batch, so an interrupted run that goes on later makes the same draws.
    """
    identity = (weights_of, str(len(data)), str(batch))
    done = {tuple(row[3:6]) for row in read(out, identity)}
    device = next(model.parameters()).device
    layers = model.token_attention
    left = {
        run: [x for x in range(0, len(data), batch) if (run[0], str(run[1]), str(x)) not in done]
        for run in runs
    }
    with (
        open(out, "a", newline="") as file,
        tqdm(total=len(data) * len(runs), unit=" images", smoothing=0.05) as bar,
        torch.inference_mode(),
    ):
        rows = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            rows.writerow(COLUMNS)
        bar.update(bar.total - sum(min(batch, len(data) - x) for y in left.values() for x in y))
        for (name, seed), firsts in left.items():
            bar.set_description(f"{name} seed {seed}")
            for layer, attend in zip(layers, attentions(name), strict=True):
                layer.attend = attend
            for first, pixels, labels in _ahead(data, firsts, batch):
                torch.manual_seed(seed * 10**6 + first)  # the CPU uses only 32 bits of a seed
                found = model(pixels.to(device)).argmax(1).cpu()
                correct = int((found == labels).sum())
                rows.writerow([*identity, name, seed, first, correct])
                file.flush()
                bar.update(len(labels))


def attentions(name: str):
    """Make the attentions of the two layers, from one name for both or from "first/second"."""
    first, _, second = name.partition("/")
    return by_name(first), by_name(second or first)


def _ahead(data, firsts, batch) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Read each batch while the model works on the previous one."""
    with ThreadPoolExecutor(1) as reader:
        coming = None
        for first in [*firsts, None]:
            ready = coming
            if first is not None:
                coming = first, reader.submit(data.batch, first, min(first + batch, len(data)))
            if ready is not None:
                yield ready[0], *ready[1].result()


def read(out: Path, identity: tuple[str, str, str]) -> list[list[str]]:
    """Rows of a CSV of earlier runs; an incomplete last line is removed from the file.

    Raises
    ------
    ValueError
        The rows are of another model, other images or another batch size.
    """
    if not out.exists():
        return []
    text = out.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole)
    header, *rows = csv.reader(whole.splitlines()) if whole else [list(COLUMNS)]
    if tuple(header) != COLUMNS:
        raise ValueError(f"{out} is another file, its first line is {','.join(header)!r}")
    for row in rows:
        for name, has, wants in zip(COLUMNS, row, identity, strict=False):
            if has != wants:
                raise ValueError(
                    f"{out} was made with {name} {has}, not {wants}; name another --out"
                )
    return rows


def summary(rows: list[list[str]], n: int) -> dict[str, np.ndarray]:
    """Top-1 accuracy in percent of each attention: an array with a value for each complete seed."""
    correct, seen = defaultdict(int), defaultdict(int)
    for *_, size, name, seed, first, right in rows:
        correct[name, seed] += int(right)
        seen[name, seed] += min(int(size), n - int(first))
    found = defaultdict(list)
    for (name, seed), right in correct.items():
        if seen[name, seed] == n:
            found[name].append(100 * right / n)
    return {name: np.array(values) for name, values in found.items()}


def table(found: dict[str, np.ndarray]) -> str:
    """A table of mean accuracies over seeds, standard errors, and losses against exact."""
    width = max(map(len, found))
    lines = [f"{'attention':{width}}  seeds  {'top-1 %':>15}  {'drop, points':>15}"]
    for name, values in found.items():
        drop = found["exact"].mean() - values if "exact" in found and name != "exact" else None
        cells = "  ".join(f"{_mean(x):>15}" for x in (values, drop))
        lines.append(f"{name:{width}}  {len(values):5}  {cells}".rstrip())
    return "\n".join(lines)


def _mean(values: np.ndarray | None) -> str:
    if values is None:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}" + 7 * " "
    return f"{values.mean():.2f} ± {values.std(ddof=1) / np.sqrt(len(values)):.2f}"


def plot(found: dict[str, np.ndarray], path: Path) -> None:
    """Plot accuracy against the number of keys, for the attentions whose name has a size."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    families = defaultdict(list)
    for name, values in found.items():
        parts = name.replace(":", ",").split(",")
        size = [int(x.removeprefix("size=")) for x in parts if x.startswith("size=")]
        if size and "/" not in name:
            family = " ".join(x for x in parts if not x.startswith("size="))
            families[family].append((size[0], values))
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    if "exact" in found:
        axes.axhline(found["exact"].mean(), color="black", linewidth=1, label="exact")
    for family, points in families.items():
        sizes, values = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        error = [x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else 0 for x in values]
        axes.errorbar(sizes, [x.mean() for x in values], error, marker="o", capsize=3, label=family)
    axes.set_xscale("log", base=2)
    ticks = sorted({size for points in families.values() for size, _ in points})
    axes.set_xticks(ticks, ticks)
    axes.set_xlabel("keys kept in each of the two layers")
    axes.set_ylabel("top-1 accuracy, %")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.t2t_vit.accuracy",
        description="Top-1 accuracy of a T2T-ViT under several attentions.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="the published 82.6_T2T_ViTt_24.pth.tar")
    source.add_argument("--digits", action="store_true", help="the small model in this folder")
    parser.add_argument("--images", type=Path, help="folder with one folder of images per class")
    parser.add_argument(
        "--attention",
        action="append",
        metavar="NAME",
        help="exact, uniform:size=64, strided:size=64, thinformer:g=2, module.function; "
        "A/B for another one in the second layer; may be given several times",
    )
    parser.add_argument(
        "--sizes", type=count, nargs="+", default=SIZES, help="numbers of keys, with --digits"
    )
    parser.add_argument("--seeds", type=count, default=5, help="seeds of each random attention")
    parser.add_argument("--batch", type=count, default=64)
    parser.add_argument("--limit", type=count, help="number of images, evenly spaced; default all")
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", help="a GPU if there is one; with --digits the CPU")
    parser.add_argument("--out", type=Path, help="the CSV; accuracy.csv or digits.csv")
    parser.add_argument("--plot", type=Path, help="draw accuracy against the number of keys")
    arguments = parser.parse_args(argv)
    if arguments.checkpoint and not arguments.images:
        parser.error("--checkpoint needs --images")
    if arguments.device is None:
        arguments.device = "cpu" if arguments.digits else gpu
    try:
        _run(arguments)
    except (ValueError, NotImplementedError) as error:
        stop(error)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


def _run(arguments: argparse.Namespace) -> None:
    path = digits.WEIGHTS if arguments.digits else arguments.checkpoint
    config = digits.CONFIG if arguments.digits else Config()
    if arguments.digits:
        data = digits.HeldOut(arguments.limit)
        names = ["exact"] + [x.format(n) for x in FAMILIES for n in arguments.sizes]
    else:
        data = images.Folder(arguments.images, config.image, arguments.limit)
        names = PUBLISHED
        if data.classes > config.classes:
            raise ValueError(
                f"{arguments.images} has {data.classes} folders, the model {config.classes} classes"
            )
        if data.classes < config.classes:
            tqdm.write(
                f"{arguments.images} has {data.classes} folders, the model {config.classes} "
                "classes: the folders count as the first of them",
                file=sys.stderr,
            )
    names = arguments.attention or names
    for name in names:
        attentions(name)  # a wrong name is an error before the work starts
    model = T2TViT(config)
    weights.load(model, path)
    model.eval().to(arguments.device)
    out = arguments.out or Path("digits.csv" if arguments.digits else "accuracy.csv")
    seeds = {name: range(arguments.seeds if _draws(name) else 1) for name in names}
    runs = [(name, seed) for name in names for seed in seeds[name]]
    identity = weights.fingerprint(path)
    measure(model, data, runs, arguments.batch, out, identity)
    rows = read(out, (identity, str(len(data)), str(arguments.batch)))
    found = summary(rows, len(data))
    print(f"{len(data)} images; mean over seeds ± its standard error\n")
    print(table({name: found[name] for name in names}))
    if arguments.plot:
        plot(found, arguments.plot)


def _draws(name: str) -> bool:
    return any(map(draws, name.split("/")))


if __name__ == "__main__":
    main()

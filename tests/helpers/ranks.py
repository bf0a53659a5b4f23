"""Ranks as processes, each with a shard of a sequence."""

import multiprocessing
import warnings

import torch
import torch.distributed as dist

from thinformer.torch.distributed import sharded_attention


def be_rank(rank, ranks, folder):
    """Run the cases (tensors, options) that have a shard for this rank.

    Outputs, gradients, errors, and what was gathered, are saved. The first ranks run a case that
    has fewer shards than there are ranks.
    """
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    groups = [dist.new_group(range(first)) for first in range(1, ranks)]
    odd = dist.new_group(range(1, ranks, 2))
    gathered, all_gather = [], dist.all_gather

    def counting(into, tensor, group=None):
        gathered.append([(tuple(x.shape), x.dtype) for x in into])
        return all_gather(into, tensor, group=group)

    dist.all_gather = counting
    results = {}
    for name, (shards, options) in torch.load(folder / "cases").items():
        if rank >= len(shards):
            continue
        gathered.clear()
        found = results[name] = {"gathered": []}
        if options.pop("odd", False):
            options["group"] = odd
        elif len(shards) < ranks:
            options["group"] = groups[len(shards) - 1]
        gradients = options.pop("gradients", "")
        if rank == options.pop("without", None):
            gradients = ""
        tensors = [
            x.clone().requires_grad_(role in gradients)
            for role, x in zip("qkv", shards[rank], strict=True)
        ]
        try:
            output = sharded_attention(*tensors, **options)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
            continue
        found["output"], found["gathered"] = output.detach(), list(gathered)
        if gradients:
            output.cos().sum().backward()
            found["gradients"] = [x.grad for x in tensors]
    torch.save(results, folder / str(rank))
    dist.destroy_process_group()


def run(ranks, cases, folder):
    """What each rank found, a list of dicts by the names of the cases."""
    torch.save(cases, folder / "cases")
    context = multiprocessing.get_context("forkserver")
    # imported once, in the process that ranks are forked from
    context.set_forkserver_preload(["thinformer.torch.distributed"])
    processes = [
        context.Process(target=be_rank, args=(rank, ranks, folder), daemon=True)
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout=120)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / str(rank)) for rank in range(ranks)]

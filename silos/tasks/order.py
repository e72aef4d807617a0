"""The order of an epoch: batches of row numbers, drawn from the place in the job alone."""

import torch
from torch import Tensor

from orchestrator.core.random import seed_of
from silos.tasks.task import At


def shuffled(num_rows: int, at: At, batch_size: int) -> tuple[Tensor, ...]:
    """All rows once in a random order, cut into batches; the last one may be smaller."""
    return torch.randperm(num_rows, generator=generator(at)).split(batch_size)


def shuffled_blocks(blocks: Tensor, at: At, batch_size: int, at_once: int) -> tuple[Tensor, ...]:
    """As `shuffled`, for rows read in blocks: blocks in a random order, and ``at_once`` of them mixed.

    ``blocks`` holds each row's block number. With as many blocks as rows this is a full shuffle.
    """
    draw = generator(at)
    num_blocks = int(blocks.max()) + 1
    if num_blocks >= len(blocks):
        return torch.randperm(len(blocks), generator=draw).split(batch_size)
    pool = torch.randperm(num_blocks, generator=draw)[blocks] // at_once
    mixed = torch.randperm(len(blocks), generator=draw)
    return mixed[torch.argsort(pool[mixed], stable=True)].split(batch_size)


def generator(at: At) -> torch.Generator:
    """Draws the order of this epoch."""
    return torch.Generator().manual_seed(seed_of(at.seed, at.version, at.silo, at.epoch, "order"))

"""What a rank holds of sharded parameters, and the messages between the ranks that hold the rest.

Parameters are plain tensors, or DTensors: sharded by rows over a mesh (FSDP2), which may have
another dimension over which they are replicated (HSDP). Local parts may differ in size and be
empty. Nothing here crosses the replicating dimension: what replicas compute is the same. Called by
the optimizers.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Layout = tuple[DeviceMesh, tuple[int, ...]]
"""A mesh, and its dimensions over which a parameter is sharded."""


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a DTensor, in the same memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def by_layout(tensors: Sequence[Tensor]) -> dict[Layout | None, list[int]]:
    """Return the numbers of the tensors of each layout; None is that of whole tensors."""
    numbers: dict[Layout | None, list[int]] = {}
    for n, tensor in enumerate(tensors):
        numbers.setdefault(_layout(tensor), []).append(n)
    return numbers


def sum_over_shards(sums: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return each parameter's local sums [k] added over its shards, [parameters, k].

    All sums of a layout travel in one message; whole parameters need none.
    """
    total = list(sums)
    for layout, members in by_layout(parameters).items():
        if layout is None:
            continue
        mesh, dimensions = layout
        stacked = torch.stack([sums[n] for n in members])
        for dimension in dimensions:
            dist.all_reduce(stacked, group=mesh.get_group(dimension))
        for n, row in zip(members, stacked.unbind(), strict=True):
            total[n] = row
    return torch.stack(total)


class RowExchange:
    """Takes matrices that are sharded by rows to where each is whole on one rank, and back.

    The ranks take turns at owning the matrices, so that none works on more than its share. One
    message between each two ranks, either way.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], layout: Layout) -> None:
        """Take the shapes of the whole matrices, in the order in which they come."""
        mesh, dimensions = layout
        assert len(dimensions) == 1, "rows are sharded over one dimension of the mesh"
        self._group = mesh.get_group(dimensions[0])
        self._rank = mesh.get_local_rank(dimensions[0])
        self._ranks = range(mesh.size(dimensions[0]))
        self._shapes = shapes
        self._owned = [range(rank, len(shapes), len(self._ranks)) for rank in self._ranks]

    def gather(self, shards: Sequence[Tensor]) -> list[Tensor]:
        """Return the matrices that this rank owns, from every rank's shards [rows, columns]."""
        mine = self._owned[self._rank]
        sent = [[shards[n] for n in owned] for owned in self._owned]
        sizes = [[self._size(n, rank) for n in mine] for rank in self._ranks]
        parts = self._exchange(sent, sizes, shards[0])
        return [
            torch.cat([parts[rank][i] for rank in self._ranks]).view(self._shapes[n])
            for i, n in enumerate(mine)
        ]

    def scatter(self, matrices: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
        """Return this rank's shards, shaped as `like`, of every rank's owned `matrices`."""
        mine = self._owned[self._rank]
        pieces = [
            matrix.split([self._rows(n, rank) for rank in self._ranks])
            for n, matrix in zip(mine, matrices, strict=True)
        ]
        sent = [[piece[rank] for piece in pieces] for rank in self._ranks]
        sizes = [[self._size(n, self._rank) for n in owned] for owned in self._owned]
        parts = self._exchange(sent, sizes, like[0])
        size = len(self._ranks)
        return [parts[n % size][n // size].view(shard.shape) for n, shard in enumerate(like)]

    def _exchange(
        self, sent: list[list[Tensor]], sizes: list[list[int]], like: Tensor
    ) -> list[list[Tensor]]:
        """Send lists of tensors to every rank; return what came from each, flat, by its sizes."""
        received = like.new_empty(sum(map(sum, sizes)))
        dist.all_to_all_single(
            received,
            torch.cat([like.new_empty(0), *(t.flatten() for part in sent for t in part)]),
            [sum(part) for part in sizes],
            [sum(t.numel() for t in part) for part in sent],
            group=self._group,
        )
        flat = iter(received.split(list(itertools.chain.from_iterable(sizes))))
        return [list(itertools.islice(flat, len(part))) for part in sizes]

    def _rows(self, n: int, rank: int) -> int:
        """Rows of matrix n that a rank holds: as torch.chunk cuts them, with fewer at the end."""
        rows = self._shapes[n][0]
        each = -(-rows // len(self._ranks))
        return max(0, min(each, rows - rank * each))

    def _size(self, n: int, rank: int) -> int:
        return self._rows(n, rank) * self._shapes[n][1]


def _layout(tensor: Tensor) -> Layout | None:
    if not isinstance(tensor, DTensor):
        return None
    placements = enumerate(tensor.placements)
    dimensions = tuple(n for n, placement in placements if not placement.is_replicate())
    return (tensor.device_mesh, dimensions) if dimensions else None

"""How ranks share a model: DDP, FSDP2 or HSDP, by the recipe's `parallel` block.

Enters: a whole model on every rank, with equal weights. Leaves: for FSDP and HSDP, the same model
sharded in place; DDP is Composer's, which wraps what is not sharded. `train/builder.py` calls it,
before it builds the optimizer.

The sharding is torch's `fully_shard`, called here and not by Composer: Composer 0.32 replaces the
device mesh of an `FSDP2Config` by a flat one of its own (composer/core/state.py), so it can shard
over all ranks only, and its precision settings know no layer that differs from the others. Its
Trainer takes a model that is sharded already as it is.

Each block is a unit, gathered when its turn comes. Embedding, head and final norm belong to the
root, the whole `MaskedLM`: embedding and decoder are one matrix, needed at both ends of the forward
pass. Gradients are averaged over all ranks, whatever the strategy, as `train/module.py` expects.
Sharded gradients are reduced after every micro-batch, so that none is ever kept whole; what crosses
the groups of HSDP, and what DDP reduces, waits for the last micro-batch of a step.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from composer import Callback, Logger, State
from composer.devices import Device, DeviceCPU, DeviceGPU
from composer.utils import dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel

from restomod.config import ParallelConfig
from restomod.model.encoder import MaskedLM
from restomod.train.fresh_store import fresh_store, is_handed_down
from restomod.train.module import unwrap


class GPU(DeviceGPU):
    """This rank's GPU, with a second backend for collectives on tensors of the CPU."""

    dist_backend = "cpu:gloo,cuda:nccl"


def join_ranks(device: str, timeout_s: float) -> Device:
    """Start the process group on `cpu` or `cuda`, and return the device as Composer knows it.

    After `timeout_s` a collective that other ranks do not join is an error.

    A rank that sees one GPU only, as Slurm may bind it, takes that one.
    """
    composers: Device = (
        GPU(dist.get_local_rank() % torch.cuda.device_count()) if device == "cuda" else DeviceCPU()
    )
    if is_handed_down():
        rank, ranks = dist.get_global_rank(), dist.get_world_size()
        torch.distributed.init_process_group(
            composers.dist_backend,
            timeout=timedelta(seconds=timeout_s),
            store=fresh_store(rank, ranks, timeout_s),
            rank=rank,
            world_size=ranks,
        )
    dist.initialize_dist(composers, timeout_s)
    return composers


def shard(model: MaskedLM, parallel: ParallelConfig, device: str, block_dtype: torch.dtype) -> None:
    """Shard the model in place, and move it to the device, as FSDP or HSDP ask for; leave it alone
    with DDP and with one process.

    Blocks are gathered in `block_dtype`. What the root holds is gathered in float32, since the
    decoder's gradient is summed in its type over the pieces of the logits.
    """
    mesh = _mesh(parallel, device)
    if mesh is None:
        return
    reduce_dtype = getattr(torch, parallel.reduce_dtype)

    def policy(param_dtype: torch.dtype) -> MixedPrecisionPolicy:
        # The residual stream stays float32: inputs are not cast to the type of a block's weights.
        return MixedPrecisionPolicy(param_dtype, reduce_dtype, cast_forward_inputs=False)

    for block in model.encoder.layers:
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=parallel.reshard_after_forward,
            mp_policy=policy(block_dtype),
        )
    # The backward pass begins with what the root holds: giving it up in between would save nothing.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy(torch.float32))
    for name in ("encode", "logits", "mlm_loss"):
        register_fsdp_forward_method(model, name)


def reshard(model: MaskedLM) -> None:
    """Give up what a forward pass without a backward pass has left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _mesh(parallel: ParallelConfig, device: str) -> DeviceMesh | None:
    """Return the ranks as [ranks that share], or [copies, ranks that share] where there are several
    copies; None shares nothing."""
    ranks = dist.get_world_size()
    shards = parallel.shards(ranks, dist.get_local_world_size())
    if shards == 1:
        return None
    if shards == ranks:
        return init_device_mesh(device, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(device, (ranks // shards, shards), mesh_dim_names=("copy", "shard"))


def settle(model: DistributedDataParallel) -> None:
    """Fix which gradients DDP reduces together, and where each lies among them, before the first
    step.

    DDP settles that after a process's first backward pass, anew in a process that resumes. From
    three ranks on, the order in which a gradient's parts are added depends on its place, so the
    first step after a resume would round in another way than the same step of an unbroken run.
    """
    model.reducer.prepare_for_forward()
    model.reducer.prepare_for_backward([])
    nothing = sum(p.flatten()[0] * 0.0 for p in model.parameters() if p.requires_grad)
    assert isinstance(nothing, torch.Tensor)
    nothing.backward()
    model.reducer._rebuild_buckets()
    model.zero_grad(set_to_none=True)


class GradientReduction(Callback):
    """Has DDP reduce in the recipe's type and always the same way, and HSDP reduce between its
    groups once a step only."""

    def __init__(self, parallel: ParallelConfig) -> None:
        self._parallel = parallel
        self._left = 0

    def fit_start(self, state: State, logger: Logger) -> None:
        if isinstance(state.model, DistributedDataParallel):
            settle(state.model)
            if self._parallel.reduce_dtype == "bfloat16":
                state.model.register_comm_hook(None, bf16_compress_hook)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._left = len(state.batch)

    def before_backward(self, state: State, logger: Logger) -> None:
        self._left -= 1
        model = unwrap(state).model
        if isinstance(model, FSDPModule):
            model.set_requires_all_reduce(self._left == 0)

"""The optimizers on shards do what they do on whole tensors: FSDP2 and HSDP, 2 and 4 ranks.

The ranks of a world are started once. They run every case, each rank writing what went wrong to a
file, and a test reads one case of one world.
"""

import itertools
import json
import multiprocessing
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from restomod.optim.adamw import AdamW
from restomod.optim.muon import Muon
from restomod.optim.own import Own
from restomod.optim.stable_adamw import StableAdamW

SHAPES = {
    "embedding": (9, 4),  # uneven over 2 and 4 ranks
    "attention": (18, 5),
    "wide": (5, 7),  # the last of 4 ranks has nothing of it
    "tall": (5, 7),
    "unit": (10, 3),
    "norm": (3,),
    "bias": (1,),
}
PARTS = {"attention": 3, "wide": 1, "tall": 1, "unit": 2}
STEPS = 6


@dataclass
class Sum:
    """A rule as users bring them."""

    moments: ClassVar = ("sum",)

    def __call__(self, gradient: Tensor, moments: dict[str, Tensor], step: int) -> Tensor:
        return moments["sum"].mul_(0.9).add_(gradient, alpha=0.1)


def build(
    kind: str, mesh: DeviceMesh | None, seed: int = 0
) -> tuple[nn.ParameterDict, StableAdamW]:
    """Return parameters, sharded over `mesh` if there is one, and their optimizer."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ParameterDict(
        {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    )
    if mesh is not None:
        placements = fully_shard(nn.Linear(4, 4), mesh=mesh).weight.placements
        for name, p in list(model.items()):
            model[name] = nn.Parameter(distribute_tensor(p.detach(), mesh, placements))
    if kind == "stable_adamw":
        return model, StableAdamW(model.values(), lr=1e-2, lr_max=1e-2, weight_decay=1e-2)
    if kind == "adamw":
        return model, AdamW(model.values(), lr=1e-2, lr_max=1e-2, weight_decay=1e-2, clip_norm=3.0)
    if kind == "own":
        return model, Own([{"params": list(model.values())}], lr=1e-2, lr_max=1e-2, rule=Sum())
    groups: list[dict[str, Any]] = [
        {"params": [model[name] for name in PARTS if PARTS[name] == parts], "parts": parts}
        for parts in (1, 2, 3)
    ]
    groups.append({"params": [model[name] for name in SHAPES if name not in PARTS]})
    return model, Muon(groups, lr=1e-2, lr_max=1e-2, weight_decay=1e-2)


def step(model: nn.ParameterDict, opt: StableAdamW, n: int) -> None:
    """Update by gradients whose scale jumps, so that the clip acts."""
    generator = torch.Generator().manual_seed(100 + n)
    for i, p in enumerate(model.values()):
        gradient = torch.randn(p.shape, generator=generator) * 10.0 ** ((n + i) % 4 - 2)
        if isinstance(p, DTensor):
            gradient = distribute_tensor(gradient, p.device_mesh, p.placements)
        p.grad = gradient
    for group in opt.param_groups:
        group["lr"] = 1e-2 * (n + 1) / STEPS
    opt.step()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(sharded: nn.ParameterDict, plain: nn.ParameterDict) -> None:
    for name in SHAPES:
        torch.testing.assert_close(whole(sharded[name]), plain[name], rtol=2e-5, atol=2e-6)


def equals_whole_tensors(kind: str, mesh: DeviceMesh, folder: Path) -> None:
    (model, opt), (plain, reference) = build(kind, mesh), build(kind, None)
    for n in range(STEPS):
        step(model, opt, n)
        step(plain, reference, n)
        same(model, plain)
        for mine, theirs in zip(opt.statistics(), reference.statistics(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)
        assert opt.skipped == 0
    clip_rate = float(reference.statistics().clip_rate)
    assert {"adamw": clip_rate == 1, "own": clip_rate == 0}.get(kind, 0 < clip_rate < 1)
    for name in SHAPES:
        for key, moment in opt.state[model[name]].items():
            if key != "step":
                assert moment.placements == model[name].placements, (name, key)
            expected = reference.state[plain[name]][key]
            torch.testing.assert_close(whole(moment), expected, rtol=1e-4, atol=1e-7)


def reduces_once(kind: str, mesh: DeviceMesh, folder: Path) -> None:
    model, opt = build(kind, mesh)
    messages: list[Any] = []
    reduce = dist.all_reduce

    def noted(tensor: Tensor, **options: Any) -> None:
        messages.append((tuple(tensor.shape), options["group"]))
        reduce(tensor, **options)

    dist.all_reduce = noted
    try:
        for n in range(2):
            messages.clear()
            with CommDebugMode() as counted:
                step(model, opt, n)
            assert messages == [((len(SHAPES), 2), mesh.get_group(mesh.ndim - 1))]
            kinds = {str(name).split(".")[1]: n for name, n in counted.get_comm_counts().items()}
            scatters = {name for name in kinds if "scatter" in name or "broadcast" in name}
            for name in scatters:
                del kinds[name]  # of the test's gradients
            # Muon: there and back for each number of parts.
            there = {"alltoall_base_": 6} if kind == "muon" else {}
            assert kinds == {"allreduce_": 1, **there}, kinds
        plain, reference = build(kind, None)
        with CommDebugMode() as counted:
            step(plain, reference, 0)
        assert counted.get_total_counts() == 0
    finally:
        dist.all_reduce = reduce


def skips_together(kind: str, mesh: DeviceMesh, folder: Path) -> None:
    """One rank's part of one gradient is NaN: nobody moves, and all go on alike."""
    (model, opt), (plain, reference) = build(kind, mesh), build(kind, None)
    step(model, opt, 0)
    step(plain, reference, 0)
    for name in ("wide", "norm"):
        before = [whole(p).detach().clone() for p in model.values()]
        gradient = model[name].grad
        assert isinstance(gradient, DTensor)
        if mesh.get_local_rank(mesh.ndim - 1) == 0:
            gradient.to_local().view(-1)[0] = torch.nan
        plain[name].grad.view(-1)[0] = torch.nan  # type: ignore[union-attr]
        opt.step()
        reference.step()
        assert opt.skipped == 1
        after = [whole(p) for p in model.values()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), name
        step(model, opt, 1)
        step(plain, reference, 1)
        assert opt.skipped == 0
        same(model, plain)


def checkpoints_reshard(kind: str, mesh: DeviceMesh, folder: Path) -> None:
    """From shards to whole tensors and back, with two steps in each."""
    straight, reference = build(kind, None)
    for n in range(STEPS):
        step(straight, reference, n)
    model, opt = build(kind, mesh)
    for n in range(2):
        step(model, opt, n)
    save(model, opt, folder / "sharded", alone=False)
    if dist.get_rank() == 0:
        plain, plain_opt = build(kind, None, seed=1)
        load(plain, plain_opt, folder / "sharded", alone=True)
        for n in range(2, 4):
            step(plain, plain_opt, n)
        save(plain, plain_opt, folder / "plain", alone=True)
    dist.barrier()
    again, again_opt = build(kind, mesh, seed=2)
    load(again, again_opt, folder / "plain", alone=False)
    for n in range(4, STEPS):
        step(again, again_opt, n)
    same(again, straight)


def save(model: nn.Module, opt: StableAdamW, folder: Path, alone: bool) -> None:
    weights, moments = get_state_dict(model, opt)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder, no_dist=alone)


def load(model: nn.Module, opt: StableAdamW, folder: Path, alone: bool) -> None:
    weights, moments = get_state_dict(model, opt)
    parts: dict[str, Any] = {"model": weights, "optimizer": moments}
    dcp.load(parts, checkpoint_id=folder, no_dist=alone)
    set_state_dict(model, opt, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])


def trains_what_fsdp_wrapped(kind: str, mesh: DeviceMesh, folder: Path) -> None:
    """Gradients come from backward passes through FSDP2's own hooks."""

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))

    def optimizer(model: nn.Sequential) -> StableAdamW:
        if kind == "stable_adamw":
            return StableAdamW(model.parameters(), lr=1e-2, lr_max=1e-2)
        if kind == "adamw":
            return AdamW(model.parameters(), lr=1e-2, lr_max=1e-2, clip_norm=0.1)
        if kind == "own":
            return Own([{"params": list(model.parameters())}], lr=1e-2, lr_max=1e-2, rule=Sum())
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "parts": 1}, {"params": vectors}]
        return Muon(groups, lr=1e-2, lr_max=1e-2)

    model, plain = network(), network()
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)
    opt, reference = optimizer(model), optimizer(plain)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    mine = x.chunk(dist.get_world_size())[dist.get_rank()]
    for _ in range(4):
        for net, data, rule in ((model, mine, opt), (plain, x, reference)):
            rule.zero_grad()
            net(data).square().mean().backward()
            rule.step()
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(whole(a), b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            opt.statistics().gradient_norm, reference.statistics().gradient_norm
        )


CASES: list[Callable[[str, DeviceMesh, Path], None]] = [
    equals_whole_tensors,
    reduces_once,
    skips_together,
    checkpoints_reshard,
    trains_what_fsdp_wrapped,
]
KINDS = ["stable_adamw", "adamw", "own", "muon"]
SHARDING = ["fsdp", "hsdp"]


def _run_rank(rank: int, ranks: int, folder: Path) -> None:
    """Run the cases up to the first that goes wrong: after it, the ranks are out of step."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=30),
    )
    meshes = {
        "fsdp": init_device_mesh("cpu", (ranks,)),
        "hsdp": init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("replica", "shard")),
    }
    wrong = {}
    for sharding, kind, case in itertools.product(SHARDING, KINDS, CASES):
        name = f"{case.__name__}-{kind}-{sharding}"
        try:
            case(kind, meshes[sharding], folder / name)
            dist.barrier()
            wrong[name] = ""
        except Exception:
            wrong[name] = traceback.format_exc()
            break
    (folder / f"{rank}.json").write_text(json.dumps(wrong))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, str]]]:
    """What went wrong in each rank of a world, by case."""
    known: dict[int, list[dict[str, str]]] = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["restomod.train.builder"])

    def run(ranks: int) -> list[dict[str, str]]:
        if ranks not in known:
            folder = tmp_path_factory.mktemp(f"ranks-{ranks}")
            processes = [
                context.Process(target=partial(_run_rank, rank, ranks, folder))
                for rank in range(ranks)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join(timeout=240)
                process.kill()
            known[ranks] = [json.loads((folder / f"{n}.json").read_text()) for n in range(ranks)]
        return known[ranks]

    return run


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("sharding", SHARDING)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_shards_are_updated_as_whole_tensors(
    results: Callable[[int], list[dict[str, str]]],
    case: Callable[..., None],
    kind: str,
    sharding: str,
    ranks: int,
) -> None:
    for rank, wrong in enumerate(results(ranks)):
        name = f"{case.__name__}-{kind}-{sharding}"
        assert wrong.get(name, "not reached") == "", f"rank {rank} of {ranks}"

"""DDP, FSDP2 and HSDP compute one process's loss and gradients, however rows are spread."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from restomod.config import ComputeConfig, ParallelConfig
from restomod.model.config import EncoderConfig
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize

ROWS, ROW_TOKENS, VOCABULARY = 8, 64, 91
"""The vocabulary, and with it the embedding's shards, is uneven."""
CONFIG = EncoderConfig(
    layers=3, hidden_size=36, heads=2, intermediate_size=50, vocab_size=VOCABULARY,
    local_window=16, pad_id=0, cls_id=1, sep_id=2, seed=7, attention_dropout=0.1, mlp_bias=True,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """How one step is computed."""

    world_size: int
    strategy: str
    micro_batch_rows: int
    reduce_dtype: str = "float32"
    reshard: bool = True
    recompute: bool = False

    @property
    def parallel(self) -> ParallelConfig:
        shard_ranks = 2 if self.strategy == "hsdp" else 0
        return ParallelConfig(self.strategy, shard_ranks, self.reduce_dtype, self.reshard)


CASES = [
    Case(world_size, strategy, rows)
    for world_size in (1, 2, 4)
    for strategy in ("ddp", "fsdp", "hsdp")
    for rows in sorted({1, 2, ROWS // world_size})
] + [
    Case(2, "ddp", 1, reduce_dtype="bfloat16"),
    Case(2, "fsdp", 1, reduce_dtype="bfloat16"),
    Case(2, "fsdp", 2, reshard=False),
    Case(2, "fsdp", 2, recompute=True),
    Case(4, "hsdp", 1, reshard=False, recompute=True),
]


def row(number: int) -> dict[str, Tensor]:
    """Documents of a row, and what is predicted in it: little, much, or (rows 2 and 6, all that
    rank 2 of 4 has) nothing."""
    lengths = [5 + 3 * number, 20, ROW_TOKENS - 25 - 3 * number]
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(3, VOCABULARY, (ROW_TOKENS,), generator=generator)
    masked = torch.arange(0, 0 if number % 4 == 2 else ROW_TOKENS, 2 + 3 * number)
    return {"ids": ids, "lengths": torch.tensor(lengths), "masked": masked}


def batch(numbers: list[int]) -> dict[str, Any]:
    """The micro-batch of these rows."""
    rows = [row(n) for n in numbers]
    lengths = [n for r in rows for n in r["lengths"].tolist()]
    ids = torch.cat([r["ids"] for r in rows])
    masked = torch.cat([r["masked"] + n * ROW_TOKENS for n, r in enumerate(rows)])
    room = 40 * len(rows) - len(masked)
    return {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).int(),
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "max_seqlen": ROW_TOKENS,
        "masked_positions": torch.cat([masked, torch.zeros(room, dtype=torch.int64)]),
        "labels": torch.cat([ids[masked], torch.full((room,), -100)]),
        "row_ids": torch.tensor(numbers),
    }


def new_model() -> MaskedLM:
    model = MaskedLM(CONFIG)
    initialize(model, seed=1)
    return model


def one_step(case: Case, rank: int) -> dict[str, Any]:
    """Train one step as the trainer does; return loss, whole gradients and what was reduced."""
    from composer import Callback, DataSpec, Trainer
    from composer.utils import dist
    from torch.distributed.tensor import DTensor

    from restomod.train import parallel
    from restomod.train.module import GlobalMean, TrainedModel, unwrap

    seen: dict[str, Any] = {"hooks": 0, "between_groups": 0, "settled": 0}

    class Capture(Callback):
        def after_train_batch(self, state, logger):
            module = unwrap(state)
            sums = module.sums.clone()
            dist.all_reduce(sums)
            seen["loss"] = float(sums[0] / sums[2])
            seen["local_size"] = sum(
                (p.to_local() if isinstance(p, DTensor) else p).numel() for p in module.parameters()
            )
            seen["gradients"] = {
                name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad.clone()
                for name, p in module.model.named_parameters()
            }

    def count_hook(group, bucket):
        seen["hooks"] += 1
        return hook(group, bucket)

    def count_all_reduce(*arguments, **options):
        seen["between_groups"] += options.get("group") is not None
        return all_reduce(*arguments, **options)

    def count_settle(model):
        seen["settled"] += 1
        settle(model)

    hook, all_reduce = parallel.bf16_compress_hook, torch.distributed.all_reduce
    settle = parallel.settle
    device = parallel.join_ranks("cpu", 120.0)
    model = new_model()
    model.compute_as(ComputeConfig(recompute_every=int(case.recompute)))
    parallel.shard(model, case.parallel, "cpu", torch.float32)
    mine = list(range(rank, ROWS, case.world_size))
    size = case.micro_batch_rows
    micro_batches = [batch(mine[n : n + size]) for n in range(0, len(mine), size)]
    trainer = Trainer(
        model=TrainedModel(model),
        train_dataloader=DataSpec(
            [micro_batches],
            split_batch=lambda batches, _: batches,
            get_num_samples_in_batch=lambda b: (
                sum(len(m["row_ids"]) for m in b) if isinstance(b, list) else len(b["row_ids"])
            ),
        ),
        max_duration="1ba",
        optimizers=torch.optim.SGD(model.parameters(), lr=0.1),
        callbacks=[GlobalMean(), parallel.GradientReduction(case.parallel), Capture()],
        device=device,
        precision="fp32",
        device_train_microbatch_size=size,
        progress_bar=False,
        spin_dataloaders=False,
    )
    with (
        mock.patch.object(parallel, "bf16_compress_hook", count_hook),
        mock.patch.object(parallel, "settle", count_settle),
        mock.patch.object(torch.distributed, "all_reduce", count_all_reduce),
    ):
        trainer.fit()
    trainer.close()
    return seen


def mixed_precision(rank: int) -> dict[str, float]:
    """Return the relative difference of loss and gradients between blocks gathered in bfloat16 and
    whole weights, both under autocast, as on a GPU."""
    from restomod.train import parallel

    results = {}
    parallel.join_ranks("cpu", 120.0)
    for norm in ("layernorm", "rmsnorm"):
        config = dataclasses.replace(CONFIG, norm=norm, norm_bias=norm == "layernorm")
        models = [MaskedLM(config), MaskedLM(config)]
        for model in models:
            initialize(model, seed=1)
        whole, sharded = models
        parallel.shard(sharded, ParallelConfig("fsdp"), "cpu", torch.bfloat16)
        for model in models:
            with torch.autocast("cpu", torch.bfloat16):
                objective = model(batch([0, 1])).objective
            objective.backward()
            results[f"{norm} loss {model is whole}"] = float(objective)
        worst = 0.0
        for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
            assert b.dtype == b.grad.dtype == torch.float32
            difference = (b.grad.full_tensor() - a.grad).norm() / a.grad.norm()
            worst = max(worst, float(difference))
        results[f"{norm} gradients"] = worst
    return results


def two_steps(rank: int) -> list[dict[str, Tensor]]:
    """Return the gradients of a process's first backward pass and of the same pass again, as DDP
    reduces them."""
    from composer.utils import dist

    from restomod.train import parallel

    parallel.join_ranks("cpu", 120.0)
    assert dist.get_world_size() > 2  # the sum of two is the same in either order
    model = torch.nn.parallel.DistributedDataParallel(new_model())
    parallel.settle(model)
    assert all(p.grad is None for p in model.parameters())
    passes = []
    for _ in range(2):
        model.zero_grad()
        model(batch([rank])).objective.backward()
        passes.append({name: p.grad.clone() for name, p in model.named_parameters()})
    return passes


def evaluated(rank: int) -> dict[str, Any]:
    """Evaluate a sharded model, on fewer rows than ranks."""
    from restomod.train import parallel
    from restomod.train.evaluation import evaluate, evaluating

    parallel.join_ranks("cpu", 120.0)
    model = new_model()
    parallel.shard(model, ParallelConfig("fsdp", reshard_after_forward=False), "cpu", torch.float32)
    alone = {}
    for name in ENTRIES:
        with evaluating(model):
            alone[name] = entry(model, name)
    rows = batch([rank])
    if rank:
        rows["labels"].fill_(-100)
    results = evaluate(model, {"prose": [rows]})
    kinds = {type(p).__name__ for p in model.parameters()}
    return {"results": results, "kinds": kinds, "entries": alone}


ENTRIES = ("encode", "logits", "mlm_loss")


def entry(model: MaskedLM, name: str) -> Tensor:
    """Call what users' hooks may call of a model."""
    documents = row(1)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), documents["lengths"].cumsum(0)])
    labels = [documents["ids"]] if name == "mlm_loss" else []
    result: Tensor = getattr(model, name)(documents["ids"], *labels, bounds)
    return result


def rank_main(rank: int, world_size: int, port: int, folder: str) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update(LOCAL_WORLD_SIZE=str(world_size), NODE_RANK="0", MASTER_ADDR="localhost")
    torch.set_num_threads(1)
    done = {case: one_step(case, rank) for case in CASES if case.world_size == world_size}
    extra = {}
    if world_size == 2:
        extra = {"precision": mixed_precision(rank), "evaluation": evaluated(rank)}
    if world_size == 4:
        extra = {"two steps": two_steps(rank)}
    torch.save((done, extra), Path(folder) / f"{world_size}-{rank}.pt")


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory):
    """What every rank of every world size found: {world size: [(cases, extra) of each rank]}."""
    folder = tmp_path_factory.mktemp("steps")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["restomod.train.builder"])
    found = {}
    for world_size in (1, 2, 4):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        ranks = [
            context.Process(target=rank_main, args=(rank, world_size, port, str(folder)))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=200)
        assert [process.exitcode for process in ranks] == [0] * world_size
        found[world_size] = [
            torch.load(folder / f"{world_size}-{rank}.pt", weights_only=False)
            for rank in range(world_size)
        ]
    return found


@pytest.fixture(scope="module")
def expected() -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the mean over all predictions, of the plain model on all rows."""
    model = new_model().train()
    sums = model(batch(list(range(ROWS))))
    (sums.objective / sums.predictions).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(sums.loss / sums.predictions), gradients


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradients_are_one_processs(steps, expected, case):
    loss, gradients = expected
    whole = sum(g.numel() for g in gradients.values())
    narrow = case.reduce_dtype == "bfloat16"
    for cases, _ in steps[case.world_size]:
        seen = cases[case]
        assert seen["loss"] == pytest.approx(loss, rel=1e-6)
        assert seen["gradients"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                seen["gradients"][name],
                gradient,
                rtol=1e-2 if narrow else 1e-4,
                atol=1e-3 if narrow else 1e-7,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        shards = {"ddp": 1, "fsdp": case.world_size, "hsdp": min(case.world_size, 2)}[case.strategy]
        if shards == 1:
            assert seen["local_size"] == whole
        else:
            assert seen["local_size"] < whole / shards * 1.2


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.world_size > 1 and c.strategy != "fsdp"], ids=str
)
def test_whole_gradients_and_those_of_groups_are_reduced_once_a_step(steps, case):
    for cases, _ in steps[case.world_size]:
        seen = cases[case]
        assert seen["hooks"] == (case.strategy == "ddp" and case.reduce_dtype == "bfloat16")
        assert seen["settled"] == (case.strategy == "ddp")
        if case.strategy == "hsdp":
            units = CONFIG.layers + 1
            assert seen["between_groups"] == (units if case.world_size > 2 else 0)


@pytest.mark.parametrize("name", ENTRIES)
def test_hooks_may_call_all_of_a_model_that_ranks_share(steps, name):
    expected = entry(new_model().eval(), name).detach()
    for _, extra in steps[2]:
        torch.testing.assert_close(extra["evaluation"]["entries"][name], expected)


def test_gradients_that_travel_in_bfloat16_are_rounded(steps, expected):
    for case in CASES:
        if case.reduce_dtype == "bfloat16":
            gradients = steps[case.world_size][0][0][case]["gradients"]
            assert any(not torch.allclose(gradients[n], g, 1e-4) for n, g in expected[1].items())


def test_blocks_gathered_in_bfloat16_train_as_autocast_does(steps):
    for _, extra in steps[2]:
        found = extra["precision"]
        for norm in ("layernorm", "rmsnorm"):
            loss = found[f"{norm} loss True"]
            assert found[f"{norm} loss False"] == pytest.approx(loss, rel=1e-6)
            assert found[f"{norm} gradients"] < 5e-3


def test_a_processs_first_step_is_reduced_as_all_others_are(steps):
    """A run that goes on is a new process, and its first step must round as the unbroken run's."""
    for _, extra in steps[4]:
        first, second = extra["two steps"]
        assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_evaluation_gathers_and_gives_up_shards(steps):
    model = new_model()
    model.eval()
    sums = model(batch([0]))
    for _, extra in steps[2]:
        found = extra["evaluation"]["results"]["prose"]
        assert found["loss"] == pytest.approx(float(sums.loss / sums.predictions), rel=1e-6)
        assert found["masked_tokens"] == int(sums.predictions)
        assert extra["evaluation"]["kinds"] == {"DTensor"}

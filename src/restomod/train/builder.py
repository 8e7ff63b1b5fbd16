"""From a recipe to a trained model: builds the Composer Trainer of a run and fits it.

`prepare_run` opens and checks everything that the run needs and writes nothing; `train` builds the
Trainer and runs it. `train.py` calls both.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Callback, DataSpec, Trainer
from composer.utils import dist

from restomod.config import Recipe
from restomod.data.batch import Batch
from restomod.data.loader import Loader, explain
from restomod.data.sources import Sources
from restomod.model.attention import choose_backend
from restomod.model.compile import check_compiler, compile_model, compiles
from restomod.model.cpu import keep_freed_memory
from restomod.optim.schedules import peak_lr
from restomod.optim.stable_adamw import StableAdamW, parameter_groups
from restomod.tools.report import write_report
from restomod.train.checkpoint import Checkpointing
from restomod.train.clock import RunClock
from restomod.train.evaluation import Evaluation
from restomod.train.folder import begin_run_folder
from restomod.train.hardware import choose_device, peak_flops
from restomod.train.initial import build_model
from restomod.train.manifest import fingerprint
from restomod.train.metrics import MetricsLog, StepMetrics
from restomod.train.module import GlobalMean, TrainedModel
from restomod.train.phases import Phases
from restomod.train.progress import Progress
from restomod.train.start import Start, find_start

log = logging.getLogger(__name__)


@dataclass
class PreparedRun:
    """A checked recipe with its data opened."""

    recipe: Recipe
    sources: Sources
    start: Start


def prepare_run(recipe: Recipe, sources: Sources) -> PreparedRun:
    """Find what the run begins from; raises UserError, writes nothing."""
    check_compute(recipe, choose_device(recipe))
    return PreparedRun(recipe, sources, find_start(recipe, sources))


def train(run: PreparedRun, started: float) -> None:
    """Train the run to its end, from where it begins.

    `started` is the monotonic time at which the command began, in seconds.
    """
    recipe, sources, start = run.recipe, run.sources, run.start
    timeline = start.timeline
    if start.folder and start.step >= timeline.end_step:
        log.info("%s: the run is complete at step %d", recipe.run_folder, start.step)
        return
    phase = timeline.at(start.step).phase
    device = choose_device(recipe)
    _set_up_process(device)
    clock = RunClock()
    metrics = MetricsLog(recipe.run_folder / "metrics.jsonl", clock)
    loader = Loader(
        recipe,
        sources,
        dist.get_global_rank(),
        dist.get_world_size(),
        start.loader_state(),
        pin_memory=device == "cuda",
        timeline=timeline,
    )
    evaluation = Evaluation(recipe, sources, timeline, clock, metrics)
    evaluation.prepare(phase)  # mistakes in its data show before the model is built
    model = build_model(recipe, phase, sources)
    model.compute_as(recipe.compute)
    compiled = compiles(recipe.compute, device)
    if compiled:
        compile_model(model, device, Path(recipe.cache_dir))
    optimizer = StableAdamW(
        parameter_groups(model, recipe.optimizer.weight_decay),
        lr=peak_lr(phase, recipe.optimizer),
        lr_max=peak_lr(phase, recipe.optimizer),
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        eps=recipe.optimizer.eps,
        compiled=compiled,
    )
    steps = StepMetrics(
        recipe, timeline, model.config, loader, sources, peak_flops(device), clock, metrics
    )
    callbacks: list[Callback] = [
        Phases(timeline, recipe.optimizer),
        GlobalMean(),
        steps,
        evaluation,
        Checkpointing(recipe, timeline, loader, fingerprint(sources), clock, metrics, start),
        Progress(timeline, steps, started),
    ]
    begin_run_folder(recipe, sources, start, clock, metrics)
    trainer = Trainer(
        model=TrainedModel(model),
        train_dataloader=DataSpec(
            loader,
            split_batch=lambda batch, size: batch,
            get_num_samples_in_batch=_rows,
            get_num_tokens_in_batch=_slots,
        ),
        max_duration=f"{timeline.end_step}ba",
        spin_dataloaders=False,
        optimizers=optimizer,
        callbacks=callbacks,
        loggers=_loggers(recipe),
        run_name=recipe.run_name,
        device="gpu" if device == "cuda" else "cpu",
        precision="amp_bf16" if device == "cuda" else "fp32",
        device_train_microbatch_size=phase.micro_batch_rows,
        seed=recipe.seed % 2**32,
        progress_bar=False,
    )
    try:
        trainer.fit()
    except RuntimeError as error:
        explain(error)
        raise
    trainer.close()
    if dist.get_global_rank() == 0:
        write_report(recipe.run_folder)


def check_compute(recipe: Recipe, device: str) -> None:
    """Raise UserError if the attention kernel or compilation that the recipe asks for cannot work
    here."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    alibi = recipe.model.positions == "alibi"
    choose_backend(recipe.compute.attention, device, dtype, alibi, recipe.model.head_size)
    if compiles(recipe.compute, device):
        check_compiler(device)


def _set_up_process(device: str) -> None:
    """What Composer expects of the environment, and the thread count that torch should keep."""
    if "GROUP_RANK" in os.environ:
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])  # torchrun does not set it
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        keep_freed_memory()


def _loggers(recipe: Recipe) -> list[Any]:
    mode = recipe.logging.wandb.mode
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    if mode == "disabled":
        return []
    from composer.loggers import WandBLogger

    os.environ["WANDB_SILENT"] = "true"
    return [
        WandBLogger(
            project=recipe.logging.wandb.project,
            name=recipe.run_name,
            init_kwargs={
                "id": recipe.run_name,
                "resume": "allow",
                "mode": mode,
                "dir": str(recipe.run_folder),
                "config": json.loads(json.dumps(dataclasses.asdict(recipe))),
            },
        )
    ]


def _rows(batch: list[Batch] | Batch) -> int:
    micro_batches = batch if isinstance(batch, list) else [batch]
    return sum(len(micro_batch["row_ids"]) for micro_batch in micro_batches)


def _slots(batch: list[Batch] | Batch) -> int:
    micro_batches = batch if isinstance(batch, list) else [batch]
    return sum(len(micro_batch["input_ids"]) for micro_batch in micro_batches)

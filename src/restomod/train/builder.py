"""From a recipe to a trained model: builds the Composer Trainer of a run and fits it.

`prepare_run` opens and checks everything that the run needs and writes nothing; `train` builds the
Trainer and runs it, again from the last checkpoint after a roll-back. `train.py` calls both.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Callback, DataSpec, Logger, State, Trainer
from composer.devices import Device
from composer.utils import dist

from restomod.config import Recipe
from restomod.data.batch import Batch
from restomod.data.loader import Loader, explain
from restomod.data.sources import Sources
from restomod.model.attention import choose_backend
from restomod.model.compile import check_compiler, compile_model, compiles
from restomod.model.cpu import keep_freed_memory
from restomod.optim.build import build_optimizer
from restomod.tools.average import AVERAGED, average_at_end
from restomod.tools.report.run import write_report
from restomod.train.agreement import Group, gloo_group, leads_node, on_first
from restomod.train.callbacks import UserCallbacks
from restomod.train.checkpoints.checkpoint import Checkpointing
from restomod.train.checkpoints.store import open_store
from restomod.train.checkpoints.upload import Uploads, restore_log
from restomod.train.clock import RunClock
from restomod.train.evaluation import Evaluation
from restomod.train.faults.health import Health, RollBack, UnhealthyError
from restomod.train.faults.ledger import Ledger, read_ledger
from restomod.train.faults.stoppable import BreakingIn, Stoppable
from restomod.train.faults.stopping import Stopper, StopRequested, clear_requeue
from restomod.train.faults.watchdog import Watchdog
from restomod.train.folder import begin_run_folder
from restomod.train.guards import fingerprint
from restomod.train.hardware import (
    choose_device,
    compute_deterministically,
    peak_flops,
    warn_of_memory,
)
from restomod.train.initial import build_model
from restomod.train.metrics import MetricsLog
from restomod.train.module import GlobalMean, TrainedModel
from restomod.train.parallel import GradientReduction, join_ranks, shard
from restomod.train.phases import Phases
from restomod.train.profiling import Profiling
from restomod.train.progress import Progress
from restomod.train.rank_times import RankTimes
from restomod.train.run_lock import lock_run
from restomod.train.start import Start, find_start
from restomod.train.step_metrics import StepMetrics
from restomod.train.watching.about import about
from restomod.train.watching.alerts import webhook_address
from restomod.train.watching.watch import Watch, watching
from restomod.units import parse_duration

log = logging.getLogger(__name__)

AFTER_HANG_S = 300.0
"""A collective may wait so much longer than the watchdog, which tells more of a hang."""


@dataclass
class PreparedRun:
    """A checked recipe with its data opened."""

    recipe: Recipe
    sources: Sources
    device: Device
    group: Group
    """Of all ranks, for what they find out together before training."""
    start: Start
    held: contextlib.ExitStack
    """On rank 0 the lock that keeps other jobs of this machine from training the run."""


def prepare_run(recipe: Recipe, sources: Sources) -> PreparedRun:
    """Join the other ranks and find what the run begins from.

    Raises UserError; writes nothing but a checkpoint that is in the store alone.
    """
    device = choose_device(recipe)
    if recipe.deterministic and device == "cuda":
        compute_deterministically()
    check_compute(recipe, device)
    joined = join_ranks(device, parse_duration(recipe.faults.hang_timeout) + AFTER_HANG_S)
    group = gloo_group()
    if store := open_store(recipe.store, recipe.run_name):
        on_first(store.check, group)
    held = contextlib.ExitStack()

    def take() -> None:  # and return nothing: what is returned goes to all ranks
        webhook_address(recipe.logging.alerts)
        held.enter_context(lock_run(recipe.run_folder))

    on_first(take, group)
    start = find_start(recipe, sources, group)
    return PreparedRun(recipe, sources, joined, group, start, held)


def train(run: PreparedRun, started: float, stopper: Stopper) -> None:
    """Train the run to its end, from where it begins.

    `started` is the monotonic time at which the command began, in seconds. Raises StopRequested
    when the run was saved because `stopper` asked for it.
    """
    with run.held:
        _train(run, started, stopper)


def _train(run: PreparedRun, started: float, stopper: Stopper) -> None:
    recipe = run.recipe
    if leads_node():
        clear_requeue(recipe.run_folder)
    uploads = _uploads(run)
    if run.start.folder and run.start.step >= run.start.timeline.end_step:
        log.info("%s: the run is complete at step %d", recipe.run_folder, run.start.step)
        on_first(lambda: _conclude_again(recipe), run.group)
        if uploads:
            uploads.add_whole(run.start.step, run.start.manifest)
            uploads.finish()
        return
    _set_up_process(choose_device(recipe))
    if leads_node():
        warn_of_memory(
            recipe,
            [s.phase for s in run.start.timeline.spans if s.end_step > run.start.step],
            run.sources.tokenizer.vocab_size,
            dist.get_world_size(),
            dist.get_local_world_size(),
        )
    stopper.join(gloo_group())
    with watching(recipe, run.start.timeline, dist.get_global_rank()) as watch:
        _fit_to_the_end(run, started, stopper, uploads, watch)
        if leads_node():
            clear_requeue(recipe.run_folder)  # a step may have outlasted the watchdog, and ended
        if uploads:
            uploads.wait()
        on_first(lambda: _conclude(recipe), run.group)
        if uploads:
            uploads.finish()
        watch.tell("end", step=run.start.timeline.end_step)


def _fit_to_the_end(
    run: PreparedRun, started: float, stopper: Stopper, uploads: Uploads | None, watch: Watch
) -> None:
    """Train, again from the last checkpoint after each roll-back."""
    rolled_back: dict[str, Any] = {}
    while True:
        try:
            return _fit(run, started, stopper, uploads, watch, rolled_back)
        except RollBack as spike:
            rolled_back = spike.entry
        gc.collect()  # a Trainer is in cycles, and two models with moments may not fit
        run.start = find_start(run.recipe, run.sources, run.group)
        log.warning(
            "the loss of step %d was %.3f, %.0f deviations above those before it: back to step %d",
            rolled_back["step"],
            rolled_back["loss"],
            rolled_back["deviations"],
            run.start.step,
        )


def _fit(
    run: PreparedRun,
    started: float,
    stopper: Stopper,
    uploads: Uploads | None,
    watch: Watch,
    rolled_back: dict[str, Any],
) -> None:
    """Build everything anew and train from the run's start on; `rolled_back` is the ledger's entry
    that led here, if one did."""
    recipe, sources, start = run.recipe, run.sources, run.start
    timeline, device = start.timeline, choose_device(recipe)
    phase = timeline.at(start.step).phase
    folder, rank = recipe.run_folder, dist.get_global_rank()
    clock = RunClock()
    metrics = watch.log = MetricsLog(folder / "metrics.jsonl", clock, watch.hear)
    loader = Loader(
        recipe,
        sources,
        rank,
        dist.get_world_size(),
        start.loader_state(),
        pin_memory=device == "cuda",
        timeline=timeline,
    )
    hang_s = parse_duration(recipe.faults.hang_timeout)
    watchdog = Watchdog(folder, rank, hang_s, watch.hang)

    def go_on() -> bool:
        watchdog.beat()
        return not stopper.agree()

    evaluation = Evaluation(recipe, sources, start, clock, metrics, go_on)
    evaluation.prepare(phase)  # mistakes in its data show before the model is built
    model = build_model(recipe, phase, sources)
    model.compute_as(recipe.compute)
    compiled = compiles(recipe.compute, device)
    if compiled:
        compile_model(model, device, Path(recipe.cache_dir))
    shard(model, recipe.parallel, device, torch.bfloat16 if device == "cuda" else torch.float32)
    optimizer = build_optimizer(model, recipe.optimizer, compiled)
    times = RankTimes(device)
    saved_health = start.manifest.get("health", {})
    written = on_first(lambda: read_ledger(folder), run.group)  # which other nodes may not see
    health = Health(
        recipe,
        timeline,
        loader,
        Ledger(folder, saved_health.get("ledger", []), written),
        metrics,
        saved_health,
    )
    steps = StepMetrics(
        recipe,
        timeline,
        model.config,
        loader,
        sources,
        peak_flops(device),
        clock,
        metrics,
        times,
        health,
    )
    users = UserCallbacks(recipe, metrics, start.manifest.get("callbacks", {}))
    checkpointing = Checkpointing(
        recipe,
        loader,
        fingerprint(sources),
        clock,
        metrics,
        start,
        lambda: {
            "health": health.state_dict(),
            "callbacks": users.state_dict(),
            **evaluation.facts(),
        },
        uploads,
    )
    callbacks: list[Callback] = [
        *([BreakingIn(stopper)] if compiled else []),
        Phases(timeline, recipe.optimizer),
        GlobalMean(),
        times,
        GradientReduction(recipe.parallel),
        Profiling(recipe.profile, folder),
        health,
        steps,
        evaluation,  # before checkpoints, which tell its result
        *users.callbacks.values(),  # likewise, for their states
        checkpointing,
        CatchingUp(evaluation),
        watchdog,
        Progress(timeline, steps, started),
    ]
    facts = about(model, start, device, sources) if rank == 0 else {}
    begin_run_folder(recipe, sources, start, clock, metrics, run.group, facts)
    if rolled_back:
        spike = {**rolled_back, "spike_step": rolled_back["step"], "step": start.step}
        metrics.write("rollback", **spike)
    trainer = Trainer(
        model=TrainedModel(model),
        train_dataloader=DataSpec(
            Stoppable(loader, stopper),
            split_batch=lambda batch, size: batch,
            get_num_samples_in_batch=_rows,
            get_num_tokens_in_batch=_slots,
        ),
        max_duration=f"{timeline.end_step}ba",
        spin_dataloaders=False,
        optimizers=optimizer,
        callbacks=callbacks,
        run_name=recipe.run_name,
        device=run.device,
        precision="amp_bf16" if device == "cuda" else "fp32",
        device_train_microbatch_size=phase.micro_batch_rows,
        seed=recipe.seed % 2**32,
        progress_bar=False,
    )
    with _closing(trainer), watchdog.watching():
        try:
            trainer.fit()
        except StopRequested as stop:
            stop.step = trainer.state.timestamp.batch.value
            stopper.hold()
            if stop.agreed and stop.step > start.step:
                checkpointing.save(trainer.state, stop.step)
            checkpointing.wait()
            if uploads:
                uploads.wait()
            raise
        except UnhealthyError:
            checkpointing.save(trainer.state, trainer.state.timestamp.batch.value, wait=True)
            raise
        except RollBack:
            checkpointing.wait()
            if uploads:
                uploads.wait()  # what is built next talks over their group, too
            raise
        except RuntimeError as error:
            explain(error)
            raise


@contextlib.contextmanager
def _closing(trainer: Trainer) -> Iterator[None]:
    """Close the callbacks when the block ends, and let go of what they and the Trainer hold.

    Not the Trainer's own end: it waits for all ranks, which a rank that fails alone must not.
    """
    try:
        yield
    finally:
        trainer.engine.close()
        atexit.unregister(trainer.engine._close)  # which keeps weights and moments until then


def _conclude(recipe: Recipe) -> None:
    """Write what a run leaves when all its checkpoints are there; on rank 0."""
    if recipe.checkpoint.average_best:
        log.info("%s", average_at_end(recipe.run_folder, recipe))
    report = write_report(recipe.run_folder)
    log.info("complete: %s shows it, `restomod export %s` writes the model", report, report.parent)


def _conclude_again(recipe: Recipe) -> None:
    """Conclude a complete run if a kill had prevented it; on rank 0."""
    if recipe.checkpoint.average_best and not (recipe.run_folder / AVERAGED).exists():
        _conclude(recipe)


def _uploads(run: PreparedRun) -> Uploads | None:
    """Return the run's way into its store, if it has one, with what the store has of its log."""
    recipe, store = run.recipe, open_store(run.recipe.store, run.recipe.run_name)
    if store is None:
        return None
    group = gloo_group()
    if run.start.resumes:
        on_first(lambda: restore_log(store, recipe.run_folder), group)
    return Uploads(store, recipe.run_folder, recipe.checkpoint, group)


class CatchingUp(Callback):
    """Makes up for an evaluation in which the process before was stopped, once `Checkpointing` has
    loaded the weights."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation

    def fit_start(self, state: State, logger: Logger) -> None:
        self._evaluation.catch_up(state)


def check_compute(recipe: Recipe, device: str) -> None:
    """Raise UserError if the attention kernel or compilation that the recipe asks for cannot work
    here."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    alibi = recipe.model.positions == "alibi"
    choose_backend(recipe.compute.attention, device, dtype, alibi, recipe.model.head_size)
    if compiles(recipe.compute, device):
        check_compiler(device)


def _set_up_process(device: str) -> None:
    """Set what torch should keep for the whole process."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        keep_freed_memory()


def _rows(batch: list[Batch] | Batch) -> int:
    micro_batches = batch if isinstance(batch, list) else [batch]
    return sum(len(micro_batch["row_ids"]) for micro_batch in micro_batches)


def _slots(batch: list[Batch] | Batch) -> int:
    micro_batches = batch if isinstance(batch, list) else [batch]
    return sum(len(micro_batch["input_ids"]) for micro_batch in micro_batches)

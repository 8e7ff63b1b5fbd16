"""From a recipe to a trained model: builds the Composer Trainer of a run and fits it.

`prepare_run` opens and checks everything that the run needs and writes nothing; `train` builds the
Trainer and runs it. `train.py` calls both.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, DataSpec, Logger, State, Trainer
from composer.utils import dist

from restomod.config import ModelConfig, PhaseConfig, Recipe
from restomod.data.batch import Batch
from restomod.data.loader import Loader, explain
from restomod.data.mixture import token_shares
from restomod.data.sources import Sources
from restomod.data.tokenizer import Tokenizer
from restomod.errors import UserError
from restomod.model.attention import choose_backend
from restomod.model.compile import check_compiler, compile_model, compiles
from restomod.model.config import EncoderConfig
from restomod.model.cpu import keep_freed_memory
from restomod.model.encoder import MaskedLM
from restomod.model.init import initialize, set_decoder_bias
from restomod.optim.schedules import step_factor
from restomod.optim.stable_adamw import StableAdamW, parameter_groups
from restomod.recipe import save_recipe
from restomod.tools.average import AVERAGED, average_at_end
from restomod.tools.report import write_report
from restomod.tools.runs import load_model
from restomod.train.agreement import gloo_group, on_first
from restomod.train.checkpoint import Checkpointing
from restomod.train.clock import RunClock
from restomod.train.evaluation import Evaluation, heldout_batches
from restomod.train.hardware import choose_device, peak_flops
from restomod.train.manifest import (
    check_unchanged,
    fingerprint,
    load_loader_state,
)
from restomod.train.metrics import MetricsLog, StepMetrics
from restomod.train.module import GlobalMean, TrainedModel
from restomod.train.progress import Progress
from restomod.train.resume import find_checkpoint
from restomod.train.store import open_store
from restomod.train.upload import Uploads, restore_log

log = logging.getLogger(__name__)


@dataclass
class PreparedRun:
    """A checked recipe with its data opened."""

    recipe: Recipe
    sources: Sources
    heldout: dict[str, list[Batch]]
    resumed: tuple[Path, dict[str, Any]] | None
    """Newest checkpoint of the run and its manifest."""
    changed: list[str]
    """Guarded keys that changed since, as resume.allow permits."""


class Schedule(Callback):
    """Sets each step's learning rate from the phase's schedule."""

    def __init__(self, lr: float, phase: PhaseConfig) -> None:
        self._lr = lr
        self._phase = phase

    def batch_start(self, state: State, logger: Logger) -> None:
        lr = self._lr * step_factor(state.timestamp.batch.value, self._phase)
        for group in state.optimizers[0].param_groups:
            group["lr"] = lr


def prepare_run(recipe: Recipe, sources: Sources) -> PreparedRun:
    """Find what to resume from and read the held-out rows; raises UserError, writes nothing but
    unpacked shards into the cache, and a checkpoint that is in the store alone."""
    device = choose_device(recipe)
    check_compute(recipe, device)
    _join_ranks(device)
    store, group = open_store(recipe.store, recipe.run_name), gloo_group()
    if store:
        on_first(store.check, group)
    resumed = find_checkpoint(recipe, store, group)
    changed = []
    if resumed:
        changed = check_unchanged(resumed[1], recipe, fingerprint(sources))
    heldout = heldout_batches(
        recipe, recipe.phases[0], sources, dist.get_global_rank(), dist.get_world_size()
    )
    return PreparedRun(recipe, sources, heldout, resumed, changed)


def train(run: PreparedRun, started: float) -> None:
    """Train the run to its end, from its newest checkpoint if there is one.

    `started` is the monotonic time at which the command began, in seconds.
    """
    recipe, phase, sources = run.recipe, run.recipe.phases[0], run.sources
    uploads = _uploads(run)
    if run.resumed and run.resumed[1]["step"] >= phase.steps:
        log.info("%s: the run is complete at step %d", recipe.run_folder, run.resumed[1]["step"])
        if recipe.checkpoint.average_best and not (recipe.run_folder / AVERAGED).exists():
            on_first(lambda: _conclude(recipe), gloo_group())  # which a kill had prevented
        if uploads:
            uploads.add_whole(run.resumed[1]["step"], run.resumed[1])
            uploads.finish()
        return
    device = choose_device(recipe)
    _set_up_process(device)
    clock = RunClock()
    metrics = MetricsLog(recipe.run_folder / "metrics.jsonl", clock)
    loader = Loader(
        recipe,
        phase,
        sources,
        dist.get_global_rank(),
        dist.get_world_size(),
        load_loader_state(run.resumed[0]) if run.resumed else None,
        pin_memory=device == "cuda",
    )
    model = build_model(recipe, phase, sources)
    model.compute_as(recipe.compute, phase.z_loss)
    compiled = compiles(recipe.compute, device)
    if compiled:
        compile_model(model, device, Path(recipe.cache_dir))
    optimizer = StableAdamW(
        parameter_groups(model, recipe.optimizer.weight_decay),
        lr=recipe.optimizer.lr,
        lr_max=recipe.optimizer.lr,
        betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        eps=recipe.optimizer.eps,
        compiled=compiled,
    )
    steps = StepMetrics(
        recipe, phase, model.config, loader, sources, peak_flops(device), clock, metrics
    )
    callbacks: list[Callback] = [Schedule(recipe.optimizer.lr, phase), GlobalMean(), steps]
    before = run.resumed[1]["evaluation"] if run.resumed else None
    evaluation = Evaluation(recipe.evaluation.every_steps, run.heldout, clock, metrics, before)
    if run.heldout:
        callbacks.append(evaluation)  # before checkpoints, which tell its result
    identity = fingerprint(sources)
    callbacks.append(
        Checkpointing(
            recipe,
            loader,
            identity,
            clock,
            metrics,
            run.resumed,
            lambda: {"phase": phase.name, "evaluation": evaluation.latest},
            uploads,
        )
    )
    callbacks.append(Progress(phase, steps, started))
    _begin_run_folder(run, clock, metrics)
    trainer = Trainer(
        model=TrainedModel(model),
        train_dataloader=DataSpec(
            loader,
            split_batch=lambda batch, size: batch,
            get_num_samples_in_batch=_rows,
            get_num_tokens_in_batch=_slots,
        ),
        max_duration=f"{phase.steps}ba",
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
    if uploads:
        uploads.wait()
    on_first(lambda: _conclude(recipe), gloo_group())
    if uploads:
        uploads.finish()


def _conclude(recipe: Recipe) -> None:
    """Write what a run leaves when all its checkpoints are there; on rank 0."""
    if recipe.checkpoint.average_best:
        log.info("%s", average_at_end(recipe.run_folder, recipe))
    write_report(recipe.run_folder)


def _uploads(run: PreparedRun) -> Uploads | None:
    """Return the run's way into its store, if it has one, with what the store has of its log."""
    recipe, store = run.recipe, open_store(run.recipe.store, run.recipe.run_name)
    if store is None:
        return None
    group = gloo_group()
    if run.resumed:
        on_first(lambda: restore_log(store, recipe.run_folder), group)
    return Uploads(store, recipe.run_folder, recipe.checkpoint, group)


def check_compute(recipe: Recipe, device: str) -> None:
    """Raise UserError if the attention kernel or compilation that the recipe asks for cannot work
    here."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    alibi = recipe.model.positions == "alibi"
    choose_backend(recipe.compute.attention, device, dtype, alibi, recipe.model.head_size)
    if compiles(recipe.compute, device):
        check_compiler(device)


def build_model(recipe: Recipe, phase: PhaseConfig, sources: Sources) -> MaskedLM:
    """Return the recipe's model with its initial weights, on the CPU."""
    config = encoder_config(recipe, phase, sources.tokenizer)
    source = load_model(recipe.init.weights) if recipe.init.weights else None
    if source:
        if source.config.vocab_size >= sources.tokenizer.size:
            config.vocab_size = source.config.vocab_size  # which may be padded otherwise than ours
        _check_shape(source.config, config, recipe.init.weights)
    model = MaskedLM(config)
    if source:
        model.load_state_dict(source.state_dict())
    else:
        initialize(model, recipe.seed)
    if recipe.init.log_unigram_bias:
        shares = unigram(phase, sources, config.vocab_size)
        set_decoder_bias(model, torch.from_numpy(np.log(shares)).float())
    return model


def _check_shape(theirs: EncoderConfig, config: EncoderConfig, path: str) -> None:
    """Raise UserError naming what differs between the model of init.weights and the recipe's."""
    shape = {field.name for field in dataclasses.fields(ModelConfig)} - {"attention_dropout"}
    differing = [
        f"{name}: {getattr(theirs, name)} there, {getattr(config, name)} here"
        for name in [*sorted(shape), "vocab_size"]
        if getattr(theirs, name) != getattr(config, name)
    ]
    if differing:
        raise UserError(
            f"init.weights: {path} is another model than the recipe's:\n  "
            + "\n  ".join(differing)
            + "\n`restomod tile` makes larger models from smaller ones"
        )


def encoder_config(recipe: Recipe, phase: PhaseConfig, tokenizer: Tokenizer) -> EncoderConfig:
    """Return the encoder's shape: the recipe's, with what the tokenizer and the phase add."""
    return EncoderConfig(
        **dataclasses.asdict(recipe.model),
        vocab_size=tokenizer.vocab_size,
        rope_base_global=phase.rope_base_global,
        max_sequence_length=phase.sequence_length,
        pad_id=tokenizer.pad_id,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        seed=recipe.seed,
        causal=phase.objective == "clm",
    )


def unigram(phase: PhaseConfig, sources: Sources, vocab_size: int) -> np.ndarray:
    """Return the share of each id among the mixture's tokens, [vocab_size], smoothed by half a
    count so that none is zero."""
    shares = np.zeros(vocab_size)
    size = 0
    for name, share in token_shares(phase, sources.streams).items():
        counts = sources.streams[name].token_counts(len(shares))
        size += counts.sum()
        shares += share * counts / counts.sum()
    return (shares * size + 0.5) / (size + 0.5 * len(shares))


def _join_ranks(device: str) -> None:
    """Connect the ranks, before Composer would, and with what it expects of the environment."""
    if "GROUP_RANK" in os.environ:
        os.environ.setdefault("NODE_RANK", os.environ["GROUP_RANK"])  # torchrun does not set it
    if dist.get_world_size() > 1:
        dist.initialize_dist("gpu" if device == "cuda" else "cpu")


def _set_up_process(device: str) -> None:
    """The precision and the memory that torch should keep."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        keep_freed_memory()


def _begin_run_folder(run: PreparedRun, clock: RunClock, metrics: MetricsLog) -> None:
    """Create the run's folder, or take its log back to the step that the run goes on from."""
    if dist.get_global_rank() == 0:
        folder = run.recipe.run_folder
        folder.mkdir(parents=True, exist_ok=True)
        save_recipe(run.recipe, folder / "config.yaml")
        _keep_tokenizer(Path(run.recipe.tokenizer), run.sources.tokenizer, folder / "tokenizer")
    about = {
        "world_size": dist.get_world_size(),
        "asked": {
            phase.name: token_shares(phase, run.sources.streams) for phase in run.recipe.phases
        },
        "stream_domains": {name: dataset.domain for name, dataset in run.sources.streams.items()},
    }
    if run.resumed:
        manifest = run.resumed[1]
        clock.before_s = manifest["time_s"]
        metrics.rewind(manifest["step"])
        metrics.write(
            "resume",
            step=manifest["step"],
            from_step=manifest["step"],
            changed=run.changed,
            **about,
        )
        log.info("resuming from %s", run.resumed[0])
    else:
        metrics.rewind(-1)
        metrics.write("start", step=0, **about)


def _keep_tokenizer(source: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Keep the tokenizer's files with the run, for export; a bare tokenizer.json gets the
    configuration that tells transformers which special token plays which role."""
    folder.mkdir(exist_ok=True)
    if source.is_dir():
        for file in source.iterdir():
            if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja"):
                shutil.copyfile(file, folder / file.name)
    else:
        shutil.copyfile(source, folder / "tokenizer.json")
    config = folder / "tokenizer_config.json"
    if not config.exists():
        ids = {
            "cls_token": tokenizer.cls_id,
            "sep_token": tokenizer.sep_id,
            "pad_token": tokenizer.pad_id,
            "mask_token": tokenizer.mask_id,
            "unk_token": tokenizer.unk_id,
        }
        names = {k: tokenizer.backend.id_to_token(i) for k, i in ids.items() if i is not None}
        config.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))


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

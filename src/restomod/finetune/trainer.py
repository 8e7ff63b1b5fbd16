"""One seed's training by transformers' Trainer, with what it lacks: checkpoints by the clock of
which only whole ones are gone on from, a stop that saves, scores after every epoch.

In: a Trainer, how to score its model. Out: the model trained, whatever stopped it in between.
`run.py` calls `fit`; `tasks.py` and `retrieval.py` make the Trainers.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from restomod.errors import UserError
from restomod.finetune.config import TrainingConfig
from restomod.interrupts import Interrupts, Stopped
from restomod.prepare.atomic import read_json, replacing, write_json

log = logging.getLogger(__name__)

Scores = dict[str, float]
BETAS, EPS = (0.9, 0.98), 1e-6  # of AdamW, as in pretraining
BEST, BEST_SCORES = "best.safetensors", "best.json"


def training_arguments(training: TrainingConfig, folder: Path, seed: int) -> dict[str, Any]:
    """Return the words of TrainingArguments that all tasks share."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "num_train_epochs": training.epochs,
        "learning_rate": training.lr,
        # PyTorch multiplies by the learning rate, we by its share of the largest one.
        "weight_decay": training.weight_decay / training.lr,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPS,
        "optim": "adamw_torch_fused",
        "warmup_ratio": training.warmup,
        "lr_scheduler_type": training.schedule,
        "max_grad_norm": training.clip_norm,
        "seed": seed,
        "data_seed": seed,
        "bf16": cuda,
        "use_cpu": not cuda,
        "eval_strategy": "no",
        "save_strategy": "no",  # `Watch` asks for checkpoints, by the clock
        "save_total_limit": 1,
        "logging_steps": 0.05,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
    }


@dataclass
class Watch(TrainerCallback):
    """Asks for checkpoints, stops, logs, and scores every epoch."""

    folder: Path
    name: str
    """What log lines begin with."""
    checkpoint_s: float
    scores: Callable[[], Scores]
    metric: str
    keep_best: bool
    interrupts: Interrupts

    def __post_init__(self) -> None:
        self.saved_at = time.monotonic()
        self.due = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save if it is time to, or if we are to stop; not after the last step, whose checkpoint
        would be gone on from without its epoch's score, and where the best is kept, after any
        epoch's last step not before it has its score."""
        asked = bool(self.interrupts.asked)
        control.should_training_stop |= asked
        late = time.monotonic() - self.saved_at >= self.checkpoint_s
        self.due = (asked or late) and state.global_step < state.max_steps
        control.should_save |= self.due and not (self.keep_best and state.epoch % 1 == 0)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to wait anew."""
        self.saved_at = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how far training is."""
        logs = kwargs["logs"]
        if "loss" in logs:
            log.info(
                "%s: step %d of %d, loss %.4f, lr %.2e",
                self.name,
                state.global_step,
                state.max_steps,
                logs["loss"],
                logs["learning_rate"],
            )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the model; keep its weights if they are the best so far. An epoch that a stop has
        cut short is not scored; where the best is kept, one that was complete is, for a resume does
        not pass its end again."""
        ended = state.global_step == state.max_steps
        cut_short = not ended and state.epoch % 1 > 0
        if cut_short if self.keep_best else ended or self.interrupts.asked:
            return
        control.should_save |= self.keep_best and self.due
        scores = self.scores()
        told = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        log.info("%s: epoch %.4g: %s", self.name, state.epoch, told)
        best = self.folder / BEST_SCORES
        if not self.keep_best or (
            best.is_file() and read_json(best)["scores"][self.metric] >= scores[self.metric]
        ):
            return
        state_dict = kwargs["model"].state_dict()
        weights = {name: x.detach().cpu().contiguous() for name, x in state_dict.items()}
        with replacing(self.folder / BEST) as partial:
            save_file(weights, partial)
        write_json(best, {"epoch": state.epoch, "scores": scores})


def fit(trainer: Trainer, watch: Watch) -> dict[str, Any]:
    """Train, going on from the newest whole checkpoint; return what is worth noting of it.

    Raises Stopped if it was asked to stop and saved, UserError if the weights are not finite.
    """
    for callback in [c for c in trainer.callback_handler.callbacks if "Printer" in str(type(c))]:
        trainer.remove_callback(callback)
    trainer.add_callback(watch)
    checkpoint = whole_checkpoint(watch.folder)
    if checkpoint is not None:
        log.info("%s: goes on from %s", watch.name, checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state, model = trainer.state, trainer.model
    if watch.interrupts.asked and state.global_step < state.max_steps:
        raise Stopped(watch.interrupts.asked, state.global_step, state.max_steps)
    assert isinstance(model, torch.nn.Module)
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise UserError(
            f"{watch.name}: the weights are not finite after {state.global_step} steps: "
            "training.lr is too high"
        )
    facts: dict[str, Any] = {"steps": state.global_step, "epoch": state.epoch}
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    facts["last_loss"] = losses[-1] if losses else None
    if watch.keep_best:
        model.load_state_dict(load_file(watch.folder / BEST))
        facts["epoch"] = read_json(watch.folder / BEST_SCORES)["epoch"]
    return facts


def whole_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; remove the others."""
    whole: list[Path] = []
    for path in folder.glob("checkpoint-*"):
        try:
            # The Trainer writes this file last.
            json.loads((path / TRAINER_STATE_NAME).read_text())
            whole.append(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

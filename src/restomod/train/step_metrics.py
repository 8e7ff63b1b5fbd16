"""What the logged steps trained on and reached, over all ranks: a line of metrics.jsonl each.

In: what the loader, the model's sums and the optimizer say of each step. Out: `train` and `skip`
lines. `builder.py` makes the callback; `progress.py` shows the last line.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import numpy as np
import torch
from composer import Callback, Logger, State
from composer.utils import dist

from restomod.config import Recipe
from restomod.data.loader import BatchFacts, Loader
from restomod.data.mlm import mask_rate
from restomod.data.sources import Sources
from restomod.data.state import COUNTERS
from restomod.model.config import EncoderConfig
from restomod.model.flops import flops_per_token
from restomod.timeline import Timeline
from restomod.train.clock import RunClock
from restomod.train.faults.health import Health
from restomod.train.metrics import MetricsLog
from restomod.train.module import unwrap
from restomod.train.rank_times import RankTimes


class StepMetrics(Callback):
    """Gathers what the logged steps trained on and reached, over all ranks."""

    def __init__(
        self,
        recipe: Recipe,
        timeline: Timeline,
        config: EncoderConfig,
        loader: Loader,
        sources: Sources,
        peak_flops: float,
        clock: RunClock,
        metrics: MetricsLog,
        times: RankTimes,
        health: Health,
    ) -> None:
        self._times = times
        self._health = health
        self._every = recipe.logging.every_steps
        self._timeline = timeline
        self._config = config
        self._loader = loader
        datasets = [sources.streams[name] for name in loader.streams]
        self._sizes = np.array([dataset.attributes.tokens for dataset in datasets])
        self._domains = [dataset.domain for dataset in datasets]
        self._skipped: list[dict[str, Any]] = []
        self._peak_flops = peak_flops * dist.get_world_size()
        self._clock = clock
        self._metrics = metrics
        self._facts: list[BatchFacts] = []
        self._window_started = self._window_paused = 0.0
        self.last: dict[str, Any] = {}
        """The last line written, on every rank."""

    def fit_start(self, state: State, logger: Logger) -> None:
        self._start_window()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._facts.append(self._loader.facts)
        self._skipped += self._loader.skipped
        step = state.timestamp.batch.value
        if step % self._every == 0:
            line = self._line(state, step)
            self.last = line
            self._metrics.write("train", **line)
            self._start_window()

    def _start_window(self) -> None:
        self._facts = []
        self._window_started = time.perf_counter()
        self._window_paused = self._clock.paused_s

    def _line(self, state: State, step: int) -> dict[str, Any]:
        module = unwrap(state)
        seconds = (
            time.perf_counter()
            - self._window_started
            - (self._clock.paused_s - self._window_paused)
        )
        facts = self._facts
        lengths = [length for fact in facts for length in fact.lengths]
        tokens, masked = sum(lengths), sum(fact.masked_tokens for fact in facts)
        flops = tokens * flops_per_token(
            self._config, self._config.vocab_size, lengths, masked / tokens, self._config.causal
        )
        totals = self._loader.totals()
        counts = torch.tensor(
            [
                sum(fact.slots for fact in facts),
                sum(fact.real_tokens for fact in facts),
                len(lengths),
                _signed(facts[-1].digest),
                totals.real_tokens,
                totals.masked_tokens,
                len(self._skipped),
                *np.sum([fact.stream_tokens for fact in facts], axis=0),
                *totals.counters.ravel(),
            ]
        )
        measures = torch.tensor([flops, sum(fact.wait_s for fact in facts)], dtype=torch.float64)
        sums = module.sums.double().cpu()
        if dist.get_world_size() > 1:
            device = module.sums.device
            counts, measures, sums = (t.to(device) for t in (counts, measures, sums))
            for tensor in (counts, measures, sums):
                torch.distributed.all_reduce(tensor)
        slots, real, documents, digest, real_total, masked_total, skipped, *rest = counts.tolist()
        streams = self._loader.streams
        stream_tokens = np.array(rest[: len(streams)])
        counters = np.array(rest[len(streams) :]).reshape(len(streams), len(COUNTERS))
        counted = dict(zip(COUNTERS, counters.T, strict=True))
        epochs = counted["delivered_tokens"] / self._sizes  # not those that wait to be packed
        if skipped:
            self._log_skipped(step)
        loss, correct, predicted = sums.tolist()
        statistics = state.optimizers[0].statistics()
        span = self._timeline.at(step - 1)
        phase, first = span.phase, span.first_step
        group = state.optimizers[0].param_groups[0]
        return {
            "step": step,
            "phase": phase.name,
            "tokens": span.slots_before(step),
            "real_tokens": real_total,
            "masked_tokens": masked_total,
            "documents": documents,
            "loss": loss / max(predicted, 1),
            "accuracy": correct / max(predicted, 1),
            "lr": group["lr"],
            "weight_decay": group["weight_decay"],
            "batch_rows": span.batch_rows(step - 1),
            "sequence_length": phase.sequence_length,
            "mask_rate": mask_rate(phase.mask, phase.slots_before(step - 1 - first)),
            "grad_norm": float(statistics.gradient_norm),
            "clip_rate": float(statistics.clip_rate),
            "largest_rms": float(statistics.largest_rms),
            "skipped_steps": self._health.skipped_steps,
            "tokens_per_s": slots / seconds,
            "step_s": seconds / len(facts),
            **self._times.take(sum(fact.wait_s for fact in facts), len(facts)),
            "packing_efficiency": real / slots,
            "data_wait_fraction": float(measures[1]) / dist.get_world_size() / seconds,
            "memory_gb": peak_memory_gb(module.sums.device),
            "mfu": float(measures[0]) / seconds / self._peak_flops if self._peak_flops else 0.0,
            "data_digest": f"{digest % 2**64:016x}",
            "mixture": _shares(streams, stream_tokens),
            "domain_mixture": _shares(self._domains, stream_tokens),
            "epochs": {name: float(e) for name, e in zip(streams, epochs, strict=True)},
            "chunked_documents": int(counted["chunked"].sum()),
            "skipped_documents": {
                reason: int(counted[reason].sum()) for reason in ("empty", "short", "damaged")
            },
        }

    def _log_skipped(self, step: int) -> None:
        """Write a line for each shard that was left out since the last one; all ranks call it."""
        for entries in dist.all_gather_object(self._skipped):
            for entry in entries:
                self._metrics.write("skip", step=step, **entry)
        self._skipped = []


def _shares(names: list[str], tokens: np.ndarray) -> dict[str, float]:
    """Return each name's share of the tokens, those of equal names together."""
    total = max(int(tokens.sum()), 1)
    shares: dict[str, float] = {}
    for name, count in zip(names, tokens.tolist(), strict=True):
        shares[name] = shares.get(name, 0.0) + count / total
    return shares


def _signed(digest: int) -> int:
    """Return the 64-bit digest as the signed number with the same bits: sums of these wrap
    alike."""
    return digest - 2**64 if digest >= 2**63 else digest


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory that this process has held so far, in GB: of the device, or on a CPU
    its resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

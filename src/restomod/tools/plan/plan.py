"""`restomod plan`: what a recipe amounts to, in numbers, without torch and without training.

In: a recipe and what it is planned for. Out: sections, of text or as a page. Each part has a module
of its own beside this one: `data`, `packing`, `memory`, `cost`, `checkpoints`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from restomod.config import PhaseConfig, Recipe
from restomod.data.dataset import Dataset
from restomod.data.rows import SpecialTokens
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.model.memory import parameters
from restomod.optim.schedules import decay_of_weights, peak_lr
from restomod.recipe import world_problems
from restomod.timeline import Timeline
from restomod.tools.plan.checkpoints import checkpoint_section, grace
from restomod.tools.plan.cost import (
    PhaseCost,
    communication_section,
    cost_section,
    phase_cost,
)
from restomod.tools.plan.data import (
    heldout_lines,
    lane_lines,
    missing_lines,
    mixture_lines,
    open_streams,
    packing_lines,
    reading_section,
    working_set_lines,
)
from restomod.tools.plan.memory import memory_section
from restomod.tools.plan.packing import Packing, expected_packing, full_chunks
from restomod.tools.plan.parts import WARNING, Section, Target, as_text
from restomod.tools.plan.schedules import schedule_plots
from restomod.units import counted, parse_slots

KNOWN_BATCH, KNOWN_SLOTS, BATCH_EXPONENT = 4_718_592, 1.719e12, 0.47
"""ModernBERT-base's batch at the length of its pretraining, and the exponent with which critical
batches grow with the data trained on, whatever the model's size (arXiv 2505.13738, 2410.21676)."""
BEYOND = 2.0
"""Times the batch that these say, from which on a recipe is warned."""


@dataclass(frozen=True)
class Plan:
    """What `restomod plan` says."""

    recipe: Recipe
    sections: list[Section]
    costs: list[PhaseCost]
    """Of each phase."""
    timeline: Timeline

    def text(self) -> str:
        """Lay it out for a terminal."""
        plots = schedule_plots(self.timeline, self.recipe.optimizer)
        warnings = [warning for section in self.sections for warning in section.warnings]
        sections = [*self.sections, Section("schedules over the run's slots:", plots)]
        if warnings:
            sections.append(
                Section(f"warnings ({len(warnings)}), all of them said above:", warnings)
            )
        return as_text(sections)


def plan(recipe: Recipe, world_size: int, node_ranks: int | None = None) -> str:
    """Return the plan for `world_size` ranks of this machine's CPU, `node_ranks` of them on a node
    (None: all), as text."""
    return make_plan(recipe, Target(world_size, node_ranks or world_size)).text()


def make_plan(recipe: Recipe, target: Target) -> Plan:
    """Plan a recipe.

    A number of ranks that training would refuse is told, and the nearest that it takes is planned
    for. Raises UserError where there is none, and where the data is there and does not last, or
    needs more open shards or cache than the recipe allows.
    """
    target, refused = _possible(recipe, target)
    vocab_size, head = 0, Section(f"{recipe.run_name}: to be run in {recipe.run_folder}")
    tokenizer, no_tokenizer = None, ""
    try:
        tokenizer = load_tokenizer(recipe.tokenizer)
        vocab_size = tokenizer.vocab_size
        head.lines.append(f"tokenizer: {recipe.tokenizer}, vocabulary {vocab_size:,}")
    except UserError as error:
        vocab_size, no_tokenizer = target.vocabulary, str(error)
        head.lines.append(f"tokenizer: not here, a vocabulary of {vocab_size:,} assumed ({error})")
    head.lines += _model(recipe, vocab_size)
    streams, missing = open_streams(recipe, tokenizer, "data")
    heldout, heldout_missing = open_streams(recipe, tokenizer, "evaluation")
    paths = [
        stream.path
        for stream in (*recipe.data.streams.values(), *recipe.evaluation.streams.values())
    ]
    here = bool(streams or heldout) or any(path and Path(path).exists() for path in paths)
    if not tokenizer and here:
        head.lines.append(f"{WARNING}tokenizer: training will not start: {no_tokenizer}")
    head.lines += missing_lines(here, missing, heldout_missing)
    if not missing:
        head.lines += working_set_lines(recipe, streams, target.ranks)
    head.lines += heldout_lines(recipe, heldout, heldout_missing)
    head.lines += [*refused, *lane_lines(recipe, target), grace(recipe)]
    sections: list[Section] = [head]
    costs: list[PhaseCost] = []
    for phase in recipe.trained_phases:
        packing = _packing(recipe, phase, streams, missing)
        cost = phase_cost(recipe, phase, vocab_size, packing, target)
        sections += _phase(recipe, phase, streams, missing, packing, cost, target)
        sections.append(memory_section(recipe, phase, vocab_size, target))
        communication = communication_section(recipe, cost, vocab_size, target)
        if communication:
            sections.append(communication)
        if all(name in streams for name in phase.mixture):
            sections.append(reading_section(recipe, cost, streams, target))
        costs.append(cost)
    sections.append(cost_section(costs, target))
    head.lines.insert(0, sections[-1].lines[0])
    sections.append(checkpoint_section(recipe, costs, vocab_size, target))
    return Plan(recipe, sections, costs, Timeline(recipe.trained_phases))


def _possible(recipe: Recipe, target: Target) -> tuple[Target, list[str]]:
    """Return the target, or the nearest that training does not refuse and a warning."""

    def of(ranks: int) -> Target:
        return replace(target, ranks=ranks, node_ranks=min(ranks, target.node_ranks))

    def problems(ranks: int) -> list[str]:
        return world_problems(recipe, ranks, of(ranks).node_ranks)

    refused = problems(target.ranks)
    if not refused:
        return target, []
    lanes = recipe.data.lanes
    fit = [n for n in range(1, lanes + 1) if lanes % n == 0 and not problems(n)]
    if not fit:
        raise UserError("\n".join(refused))
    below = [n for n in fit if n < target.ranks][-1:]
    above = [n for n in fit if n > target.ranks][:1]
    nearest = min(below + above, key=lambda n: abs(n - target.ranks))
    taken = " or ".join(map(str, below + above))
    return of(nearest), [
        f"{WARNING}training refuses {counted(target.ranks, 'rank')} and takes {taken}; this plan "
        f"is for {nearest}",
        *(f"{WARNING}{problem}" for problem in refused),
    ]


def _model(recipe: Recipe, vocab_size: int) -> list[str]:
    body, embedding = parameters(recipe.model, vocab_size)
    model = recipe.model
    return [
        f"model: {model.layers} layers of {model.hidden_size}, {model.heads} heads, "
        f"{body + embedding:,} parameters, {body:,} of them without the embedding",
        f"seed {recipe.seed}",
    ]


def _packing(
    recipe: Recipe,
    phase: PhaseConfig,
    streams: Mapping[str, Dataset],
    missing: Mapping[str, str],
) -> Packing:
    used = [name for name, share in phase.mixture.items() if share > 0]
    packing = None
    if not any(name in missing for name in used):
        packing = expected_packing(recipe, phase, streams)
    return packing or full_chunks(phase, SpecialTokens(recipe.data.special_tokens))


def _phase(
    recipe: Recipe,
    phase: PhaseConfig,
    streams: Mapping[str, Dataset],
    missing: Mapping[str, str],
    packing: Packing,
    cost: PhaseCost,
    target: Target,
) -> list[Section]:
    ranks = target.ranks
    micro_batches = phase.batch_rows // ranks // phase.micro_batch_rows
    lines = [
        *_batch_warmup(recipe, phase),
        f"{counted(ranks, 'rank')}, each with "
        f"{counted(micro_batches, 'micro-batch', 'micro-batches')} of "
        f"{counted(phase.micro_batch_rows, 'row')} and {recipe.data.lanes // ranks} of "
        f"{counted(recipe.data.lanes, 'lane')}",
        f"sequence length {phase.sequence_length:,}, mask rate {phase.mask.rates}, "
        f"peak learning rate {peak_lr(phase, recipe.optimizer):g}, "
        f"weight decay {decay_of_weights(phase, recipe.optimizer):g}, "
        f"RoPE base {phase.rope_base_global:g} global, {phase.rope_base_local:g} local",
        *mixture_lines(recipe, phase, streams, missing),
        *packing_lines(recipe, phase, streams, packing),
        f"FLOPs: {cost.flops:.4g} in all, {(cost.linear + cost.attention) / 1e9:.3g} G a token, "
        f"{cost.attention / (cost.linear + cost.attention):.0%} of them attention "
        f"({packing.source})",
        *_critical_batch(recipe, phase),
    ]
    title = (
        f"phase {phase.name}: {counted(phase.steps, 'step')} of {phase.batch_slots:,} slots "
        f"({counted(phase.batch_rows, 'row')} of {phase.row_tokens:,}), "
        f"{phase.total_slots:,} in all"
    )
    return [Section(title, lines, phase=phase.name)]


def _critical_batch(recipe: Recipe, phase: PhaseConfig) -> list[str]:
    """Warn of a batch far beyond what published runs of this recipe have shown to train well."""
    before = recipe.trained_phases[: recipe.trained_phases.index(phase) + 1]
    slots = sum(one.total_slots for one in before)
    known = KNOWN_BATCH * (slots / KNOWN_SLOTS) ** BATCH_EXPONENT
    if phase.batch_slots <= BEYOND * known:
        return []
    return [
        f"{WARNING}a batch of {phase.batch_slots:,} slots is {phase.batch_slots / known:.1f} times "
        f"what the recipe is known to use well in {slots:,} slots, {known:,.0f} (ModernBERT-base's "
        f"{KNOWN_BATCH:,} in {KNOWN_SLOTS:.4g}, growing with slots^{BATCH_EXPONENT}): beyond the "
        "critical range, larger batches save little time and cost quality"
    ]


def _batch_warmup(recipe: Recipe, phase: PhaseConfig) -> list[str]:
    """Say what batch warm-up was asked for and what comes of it, and for which ranks."""
    batches = phase.batches
    shared = math.gcd(*batches.distinct) // phase.micro_batch_rows
    lanes = recipe.data.lanes
    ranks = [n for n in range(1, min(shared, lanes) + 1) if shared % n == 0 and lanes % n == 0]
    lines = []
    if batches.warmup:
        sizes = ", ".join(map(str, batches.distinct[:-1]))
        asked = parse_slots(phase.batch_warmup.slots)
        lines += [
            f"batch warm-up: {sizes} rows for {counted(batches.steps_each, 'step')} each, "
            f"{batches.warmup_rows * phase.row_tokens:,} slots ({asked:,} were asked)"
        ]
    row = phase.micro_batch_rows
    return [
        *lines,
        f"runs on {', '.join(map(str, ranks))} {'ranks' if len(ranks) > 1 else 'rank'}; the "
        f"smallest batch of n ranks is n x {counted(row, 'row')}, {row * phase.row_tokens:,} slots "
        "for each rank",
    ]

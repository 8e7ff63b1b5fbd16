"""The plan's data: what a phase reads of each stream, how often, how fast, and how full its rows
are.

In: a recipe and the streams that are here. Out: lines and sections. Data that is not there is
named, not an error: a recipe may be planned where its data is not.
"""

from __future__ import annotations

from collections.abc import Mapping

from restomod.config import PhaseConfig, Recipe
from restomod.data.dataset import Dataset
from restomod.data.mixture import exhausted, token_shares
from restomod.data.rows import SpecialTokens
from restomod.data.sources import open_dataset, other_vocabulary
from restomod.data.tokenizer import Tokenizer
from restomod.data.working_set import working_set
from restomod.errors import UserError
from restomod.tools.pages.markup import bytes_text
from restomod.tools.plan.cost import PhaseCost
from restomod.tools.plan.packing import Packing
from restomod.tools.plan.parts import WARNING, Section, Target
from restomod.units import counted

REPEATS = 4
"""Epochs of the same data that are worth about as much as new data (arXiv 2305.16264)."""
UNEVEN = 4
"""Times a lane's even share of a stream, from which on a single document makes lanes uneven."""
FULL, NEARLY = 0.999, 0.99
"""What long enough rows reach, and what no recipe should stay below."""
LOADED_IDS, LOADED_IDS_SMALL, LOADED_TEXT = 10.4e6, 5.8e6, 0.8e6
"""Tokens/s of one loader process, about as benchmarks/results/loading.txt has them: stored ids in
rows of 16,384 and more, in smaller ones, and text that is tokenised on the way."""
SMALL_ROW = 16_384


def open_streams(
    recipe: Recipe, tokenizer: Tokenizer | None, section: str
) -> tuple[dict[str, Dataset], dict[str, str]]:
    """Return the streams of `data` or `evaluation` that are here, and why the others are not.

    Raises UserError where one holds another tokenizer's tokens.
    """
    configs = recipe.evaluation.streams
    if section == "data":
        mixed = {name for phase in recipe.phases for name in phase.mixture}
        configs = {name: recipe.data.streams[name] for name in sorted(mixed)}
    streams: dict[str, Dataset] = {}
    missing: dict[str, str] = {}
    problems = []
    for name, config in configs.items():
        try:
            streams[name] = open_dataset(name, config, recipe.cache_dir, tokenizer, recipe.data)
        except UserError as error:
            missing[name] = str(error)
            continue
        key = f"{section}.streams.{name}"
        problems += other_vocabulary(key, streams[name], recipe, tokenizer)
    if problems:
        raise UserError("\n".join(problems))
    return streams, missing


def heldout_lines(
    recipe: Recipe, heldout: Mapping[str, Dataset], missing: Mapping[str, str]
) -> list[str]:
    """Say what is evaluated on; warn of what is trained on, too."""
    trained = {stream.path: name for name, stream in recipe.data.streams.items()}
    lines = []
    for name, config in recipe.evaluation.streams.items():
        if name in missing:
            lines.append(f"held out {name}: not here ({missing[name]})")
            continue
        found = heldout[name].attributes
        lines.append(
            f"held out {name}: {counted(heldout[name].documents, 'document')}, "
            f"{'' if found.exact else 'about '}{found.tokens:,} tokens (from {found.source}); the "
            f"first {recipe.evaluation.rows} rows are read"
        )
        if config.path and config.path in trained:
            lines.append(
                f"{WARNING}held out {name} is what stream {trained[config.path]} trains on "
                f"({config.path})"
            )
    return lines


def missing_lines(here: bool, streams: Mapping[str, str], heldout: Mapping[str, str]) -> list[str]:
    """Warn of data that is missing where other data is here: its path may be mistyped."""
    if not here:
        return []
    named = [(f"data.streams.{name}", reason) for name, reason in streams.items()]
    named += [(f"evaluation.streams.{name}", reason) for name, reason in heldout.items()]
    return [f"{WARNING}{key}: training will not start: {reason}" for key, reason in named]


def working_set_lines(recipe: Recipe, streams: Mapping[str, Dataset], world_size: int) -> list[str]:
    """Say what is open and cached at once; raises UserError where data does not last, or where that
    is more than the recipe allows."""
    data = recipe.data
    needed = working_set(recipe, streams, world_size)
    problems = exhausted(recipe.trained_phases, streams) + needed.problems(data)
    if problems:
        raise UserError("\n".join(problems))
    cached = [dataset for dataset in streams.values() if dataset.cached]
    lines = [
        f"data: each rank opens up to {counted(needed.open_shards, 'shard')} before its first "
        f"rows, {data.shards_open_per_rank} are allowed"
    ]
    if cached:
        lines.append(
            f"cache: shards in use take up to {bytes_text(needed.cached_bytes)} of a node, "
            f"all data {bytes_text(sum(int(d.shard_bytes.sum()) for d in cached))}, "
            f"{data.cache_limit_gb:g} GB are allowed"
        )
    return lines


def mixture_lines(
    recipe: Recipe,
    phase: PhaseConfig,
    streams: Mapping[str, Dataset],
    missing: Mapping[str, str],
) -> list[str]:
    """Say what a phase reads of each stream, and how often."""
    known = not missing or phase.mixture_by == "proportion"
    total = sum(phase.mixture.values())
    shares = {name: share / total for name, share in phase.mixture.items()}
    if not missing:
        shares = token_shares(phase, streams)
    lines = []
    for name, share in sorted(shares.items()):
        asked = f"stream {name}: {share:.1%} of tokens" if known else f"stream {name}"
        if name in missing:
            lines.append(f"{asked}; not here ({missing[name]})")
            continue
        data = streams[name]
        tokens = data.attributes.tokens
        about = "" if data.attributes.exact else "about "
        times = share * phase.total_slots / tokens if known else 0.0
        lines.append(
            f"{asked}; {counted(data.documents, 'document')}, {about}{tokens:,} tokens (from "
            f"{data.attributes.source}), {times:.2f} epochs of at most {data.max_epochs:g}"
        )
        longest, lanes = max(data.attributes.histogram or [0]), recipe.data.lanes
        if longest * lanes > UNEVEN * tokens:
            lines.append(
                f"{WARNING}a document of {longest:,} tokens or more is {longest / tokens:.0%} of "
                f"{name}, and one of {lanes} lanes has it alone: the others repeat the rest, with "
                "rows that may stay emptier than said here; cut it, or use fewer data.lanes"
            )
        if times > REPEATS:
            lines.append(f"{WARNING}more than {REPEATS} epochs of {name} teach little more")
    return lines


def packing_lines(
    recipe: Recipe,
    phase: PhaseConfig,
    streams: Mapping[str, Dataset],
    packing: Packing,
) -> list[str]:
    """Say how full rows will be, and what keeps them from being full."""
    here = {name: share for name, share in phase.mixture.items() if name in streams and share > 0}
    if not here:
        return []
    lines = []
    if packing.rows:
        lines.append(
            f"packing: rows are expected to be {packing.efficiency:.2%} full: {packing.rows} rows "
            f"packed of {len(packing.chunks):,} chunks of {packing.mean_chunk:.0f} slots in the "
            f"mean (from {packing.source}); {packing.efficiency * phase.batch_slots:,.0f} tokens a "
            "step that are not padding"
        )
    if packing.rows and packing.efficiency < NEARLY:
        lines.append(f"{WARNING}rows stay emptier than {NEARLY:.0%}: make them longer (row_tokens)")
    reserved = SpecialTokens(recipe.data.special_tokens).reserved
    weight = sum(
        share / min(streams[name].mean_tokens + reserved, phase.sequence_length)
        for name, share in here.items()
    )
    mean, least = sum(here.values()) / weight, recipe.data.tokens_per_document_min
    if phase.row_tokens < 27 * mean and not (packing.rows and packing.efficiency >= FULL):
        lines.append(
            f"{WARNING}a row of {phase.row_tokens:,} holds fewer than 27 mean chunks of "
            f"{mean:.0f} tokens: packing may stay below 99.9 %"
        )
    if mean < least:
        lines.append(
            f"{WARNING}the mean chunk has {mean:.1f} tokens, but a row is closed at one "
            f"document for every {least} slots, {mean / least:.0%} full; lower "
            "data.tokens_per_document_min"
        )
    return lines


def reading_section(
    recipe: Recipe, cost: PhaseCost, streams: Mapping[str, Dataset], target: Target
) -> Section:
    """Compare what a node's ranks read in a phase with what its loader processes deliver."""
    phase, data = cost.phase, recipe.data
    shares = token_shares(phase, streams)
    stored = sum(
        share * streams[name].stored_bytes / streams[name].attributes.tokens
        for name, share in shares.items()
    )
    node = cost.tokens / cost.seconds * target.node_ranks / target.ranks
    ids = LOADED_IDS if phase.row_tokens >= SMALL_ROW else LOADED_IDS_SMALL
    worker = 1 / sum(
        share / (LOADED_TEXT if streams[name].is_text else ids) for name, share in shares.items()
    )
    processes = max(1, data.workers) * target.node_ranks
    lines = [
        f"a node of {counted(target.node_ranks, 'rank')} reads {node:,.0f} tokens/s, "
        f"{node * stored / 1e6:,.2f} MB/s as stored; a loader process delivers about "
        f"{worker / 1e6:.1f} M tokens/s, {processes:,} of them {processes * worker / 1e6:,.1f} M "
        "(measured on the machine of benchmarks/results/loading.txt)"
    ]
    if node > processes * worker:
        needed = -(-node // (worker * target.node_ranks))
        lines.append(f"{WARNING}loading will not keep up: use {needed:.0f} data.workers or more")
    return Section(f"reading data in phase {phase.name}", lines, phase=phase.name)


def lane_lines(recipe: Recipe, target: Target) -> list[str]:
    """Warn of lanes that divide unevenly among workers, or not at all among fewer nodes."""
    lanes, workers = recipe.data.lanes, recipe.data.workers
    own = lanes // target.ranks
    lines = []
    if workers > 1 and own % min(workers, own):
        lines.append(
            f"{WARNING}{own} lanes of a rank do not divide among {workers} data.workers: some "
            "work more than others"
        )
    if workers > own:
        lines.append(f"{WARNING}only {own} of {workers} data.workers of a rank have a lane")
    fewer = target.ranks - target.node_ranks
    if fewer > 0 and lanes % fewer:
        fit = max(n for n in range(1, fewer + 1) if lanes % n == 0)
        lines.append(
            f"{WARNING}{lanes} lanes do not divide among the {fewer} ranks that are left without a "
            f"node: the run could go on with {fit}"
        )
    return lines

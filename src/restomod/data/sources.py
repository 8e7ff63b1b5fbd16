"""Opens what a recipe trains on: its tokenizer and its data sets, checked against each other.

In: a recipe. Out: `Sources`, or a UserError; no torch is loaded. `commands.py` calls it before
training, and so do evaluation, inspection, the doctor and sweeps; plans open single data sets.
"""

from __future__ import annotations

from dataclasses import dataclass

from restomod.config import DataConfig, Recipe, StreamConfig
from restomod.data.dataset import Dataset
from restomod.data.labelled import LabelledTexts, read_labelled
from restomod.data.mixture import exhausted
from restomod.data.own import OwnDataset
from restomod.data.shards import OpenShards, ShardedDataset
from restomod.data.tokenizer import Tokenizer, load_tokenizer
from restomod.data.working_set import working_set
from restomod.errors import UserError


def open_dataset(
    name: str,
    config: StreamConfig,
    cache_dir: str,
    tokenizer: Tokenizer | None,
    data: DataConfig,
    open_shards: OpenShards | None = None,
) -> Dataset:
    """Open the folder or the user's own source that a stream names; raises UserError."""
    if config.source:
        return OwnDataset(name, config, tokenizer, data)
    return ShardedDataset(name, config, cache_dir, tokenizer, data, open_shards)


@dataclass
class Sources:
    """A recipe's tokenizer and opened data sets."""

    tokenizer: Tokenizer
    streams: dict[str, Dataset]
    """By name, those that a phase's mixture names."""
    heldout: dict[str, Dataset]
    """Evaluation data by name."""
    probes: dict[str, LabelledTexts]
    """Labelled tasks by name."""
    open_shards: OpenShards
    """The shards of all of them that this process keeps open."""


def open_sources(recipe: Recipe, world_size: int = 1) -> Sources:
    """Open the tokenizer and all data sets' indexes; shards are opened when they are needed.

    Raises UserError, naming all that is wrong, for missing data, for data of another tokenizer, for
    streams that do not last, and where more shards would be open or in the cache than may be.
    """
    problems: list[str] = []
    open_shards = OpenShards(recipe.data.shards_open_per_rank)
    tokenizer = None
    try:
        tokenizer = load_tokenizer(recipe.tokenizer)
    except UserError as error:
        problems.append(f"tokenizer: {error}")

    def open_all(section: str, configs: dict[str, StreamConfig]) -> dict[str, Dataset]:
        opened = {}
        for name, config in configs.items():
            key = f"{section}.streams.{name}"
            try:
                opened[name] = open_dataset(
                    name, config, recipe.cache_dir, tokenizer, recipe.data, open_shards
                )
            except UserError as error:
                problems.append(f"{key}: {error}")
                continue
            problems.extend(other_vocabulary(key, opened[name], recipe, tokenizer))
        return opened

    named = {name for phase in recipe.phases for name in phase.mixture}
    streams = open_all("data", {n: s for n, s in recipe.data.streams.items() if n in named})
    heldout = open_all("evaluation", recipe.evaluation.streams)
    probes = {}
    for name, probe in recipe.evaluation.probes.items():
        try:
            probes[name] = read_labelled(probe)
        except UserError as error:
            problems.append(f"evaluation.probes.{name}: {error}")
    if not problems:
        problems += exhausted(recipe.trained_phases, streams)
        problems += working_set(recipe, streams, world_size).problems(recipe.data)
    if problems:
        raise UserError("\n".join(problems))
    assert tokenizer is not None
    return Sources(tokenizer, streams, heldout, probes, open_shards)


def other_vocabulary(
    key: str, dataset: Dataset, recipe: Recipe, tokenizer: Tokenizer | None
) -> list[str]:
    """Say what is wrong where a data set's tokens are known to be another tokenizer's."""
    made_with = dataset.attributes.tokenizer
    if not (tokenizer and made_with) or made_with == tokenizer.fingerprint:
        return []
    return [
        f"{key}: {dataset.path} holds tokens of another vocabulary: it was made with tokenizer "
        f"{made_with[:12]}, the recipe's {recipe.tokenizer} is {tokenizer.fingerprint[:12]}"
    ]

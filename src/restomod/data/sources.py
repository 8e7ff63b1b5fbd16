"""Opens what a recipe trains on: its tokenizer and its data sets, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from restomod.config import Recipe, StreamConfig
from restomod.data.shards import ShardedDataset
from restomod.data.tokenizer import Tokenizer, load_tokenizer
from restomod.errors import UserError


@dataclass
class Sources:
    """A recipe's tokenizer and opened data sets."""

    tokenizer: Tokenizer
    streams: dict[str, ShardedDataset]
    """By name, those that a phase draws from."""
    heldout: dict[str, ShardedDataset]
    """Evaluation data by name."""


def open_sources(recipe: Recipe) -> Sources:
    """Open the tokenizer and all data sets' indexes; shards are opened when they are needed.

    Raises UserError, naming all that is wrong, for missing data and for data of another tokenizer.
    """
    problems: list[str] = []
    tokenizer = None
    try:
        tokenizer = load_tokenizer(recipe.tokenizer)
    except UserError as error:
        problems.append(f"tokenizer: {error}")

    def open_all(section: str, configs: dict[str, StreamConfig]) -> dict[str, ShardedDataset]:
        opened = {}
        for name, config in configs.items():
            key = f"{section}.streams.{name}"
            try:
                opened[name] = ShardedDataset(name, config, recipe.cache_dir)
            except UserError as error:
                problems.append(f"{key}: {error}")
                continue
            made_with = opened[name].attributes.tokenizer
            if tokenizer and made_with and made_with != tokenizer.fingerprint:
                problems.append(
                    f"{key}: {config.path} holds tokens of another vocabulary: it was made with "
                    f"tokenizer {made_with[:12]}, the recipe's {recipe.tokenizer} is "
                    f"{tokenizer.fingerprint[:12]}"
                )
        return opened

    drawn = {name for phase in recipe.phases for name, share in phase.mixture.items() if share > 0}
    streams = open_all("data", {n: s for n, s in recipe.data.streams.items() if n in drawn})
    heldout = open_all("evaluation", recipe.evaluation.streams)
    if problems:
        raise UserError("\n".join(problems))
    assert tokenizer is not None
    return Sources(tokenizer, streams, heldout)

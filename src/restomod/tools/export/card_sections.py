"""What a model card says, section by section, in Markdown, and the hub's metadata.

In: `card_facts.Facts`. Out: text; an empty one for a section with nothing to say. `card.py`
puts them together.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from restomod.config import Recipe
from restomod.tools.pages.charts import si
from restomod.tools.record.metrics_log import RunLog
from restomod.units import duration

if TYPE_CHECKING:
    from restomod.tools.export.card_facts import Facts

RECIPE_PARTS = ("seed", "model", "init", "optimizer", "data", "phases", "evaluation")
"""Sections of a recipe that decide what is learned; paths in them are left out."""
PATHS = ("streams", "weights")


def metadata(facts: Facts) -> str:
    """Return the card's head, in YAML, as the hub reads it."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modelling",
            dataset_type=f"held-out-{re.sub(r'[^a-z0-9]+', '-', domain.lower())}",
            dataset_name=f"held out: {domain}",
            metric_type=metric,
            metric_value=round(scores[metric], 6),
        )
        for domain, scores in facts.domains.items()
        for metric in ("loss", "accuracy")
        if metric in scores
    ]
    results += [
        EvalResult(
            task_type="text-classification" if s.kind == "classification" else "feature-extraction",
            dataset_type=f"{s.suite}-{s.task}",
            dataset_name=f"{s.suite}: {s.task}",
            metric_type=s.metric,
            metric_value=round(s.score, 6),
        )
        for s in facts.suites
    ]
    card = facts.card
    data = ModelCardData(
        language=card.language or None,
        license=card.licence or None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["modernbert", "restomod", "masked-lm", "safetensors"],
        datasets=card.datasets or None,
        model_name=facts.name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def body(facts: Facts, curve: str) -> list[str]:
    """Return the card's sections; `curve` names the picture of the loss, if there is one."""
    return [
        _head(facts),
        _use(facts),
        _architecture(facts),
        _training(facts, curve),
        _data(facts),
        _evaluation(facts),
        _limits(facts),
        _recipe(facts.recipe) if facts.recipe else "",
    ]


def _section(title: str, *parts: str) -> str:
    text = "\n\n".join(part for part in parts if part)
    return f"## {title}\n\n{text}\n" if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, columns without any content left out."""
    if not rows:
        return ""
    kept = [n for n in range(len(head)) if any(row[n] for row in rows)]
    lines = [[head[n] for n in kept], ["---"] * len(kept)]
    lines += [[row[n].replace("|", "\\|").replace("\n", " ") for n in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(facts: Facts) -> str:
    parameters = sum(weight.numel() for weight in facts.model.parameters())
    log, recipe = facts.log, facts.recipe
    trained = f" on {si(log.real_tokens)} tokens" if log and log.real_tokens else ""
    start = "starting from another model's weights" if _has_weights(recipe) else "from scratch"
    how = f", trained {start} with masked language modelling{trained}" if recipe else ""
    text = (
        f"A text encoder of ModernBERT's architecture (arXiv 2412.13663) with {si(parameters)} "
        f"parameters for texts of up to {facts.model.config.max_sequence_length:,} tokens{how}. "
        f"These are the weights of {facts.origin}."
    )
    return f"# {facts.name}\n\n" + "\n\n".join(filter(None, (facts.card.description, text))) + "\n"


def _has_weights(recipe: Recipe | None) -> bool:
    start = recipe.start if recipe else None
    return bool(recipe and start and (recipe.init.weights or start.checkpoint or start.fork))


USE = """With transformers, to predict a hidden word; `AutoModelForSequenceClassification` and
`AutoModelForTokenClassification` start fine-tuning from it, too:

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="FOLDER")
print(fill(f"The capital of France is {fill.tokenizer.mask_token}."))
```

With sentence-transformers (mean pooling), for vectors of texts: features, or what training for
retrieval starts from:

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("FOLDER").encode(["a text", "another text"])
```

The same vectors for many texts, without padding, with restomod:

```python
import restomod

vectors = restomod.embed("FOLDER", ["a text", "another text"])
```"""


def _use(facts: Facts) -> str:
    name = f"`{facts.name}` stands for this folder, or for its name on the hub."
    return _section("How to use it", name, USE.replace("FOLDER", facts.name))


def _architecture(facts: Facts) -> str:
    config = facts.model.config
    heads = f"{config.heads} of {config.head_size}"
    window = f"{config.local_window} tokens, except in layers 0, {config.global_every}, ..."
    bases = f"{config.rope_base_global:g} in global layers, {config.rope_base_local:g} in local"
    rows = [
        ["parameters", f"{sum(w.numel() for w in facts.model.parameters()):,}"],
        ["layers", f"{config.layers}"],
        ["hidden size", f"{config.hidden_size}"],
        ["heads", heads],
        ["feed-forward", f"{config.activation}, {config.intermediate_size}"],
        ["attention window", window],
        ["RoPE bases", bases],
        ["longest text in training", f"{config.max_sequence_length:,} tokens"],
        ["vocabulary", f"{config.vocab_size:,}"],
    ]
    return _section("Architecture", _table(["", ""], rows))


def _training(facts: Facts, curve: str) -> str:
    log, recipe = facts.log, facts.recipe
    if not log or not recipe or not log.train_lines:
        return ""
    rows = [
        ["steps", f"{log.step:,.0f}"],
        ["tokens", f"{log.real_tokens:,.0f}" if log.real_tokens else ""],
        ["of these predicted", f"{log.masked_tokens:,.0f}" if log.masked_tokens else ""],
        ["hardware", _hardware(log)],
        ["wall time", duration(log.time_s)],
        ["speed", f"{s:,.0f} token slots a second" if (s := log.mean_tokens_per_s) else ""],
        ["share of the peak FLOP/s", f"{log.mfu.mean:.1%}" if log.mfu.mean else ""],
        ["resumes", f"{len(log.resumes)}"],
        ["software", ", ".join(f"{k} {v}" for k, v in log.begun.get("versions", {}).items())],
        ["code", str((log.begun.get("git") or {}).get("commit") or "")],
    ]
    picture = f"![Loss over the tokens trained on]({curve})" if curve else ""
    table = _table(["", ""], [row for row in rows if row[1]])
    return _section("Training", table, _phases(recipe, log), picture)


def _hardware(log: RunLog) -> str:
    ranks, device = log.begun.get("world_size"), log.begun.get("device")
    if not device:
        return ""
    return f"{ranks} x {device}" if ranks and ranks > 1 else str(device)


def _phases(recipe: Recipe, log: RunLog) -> str:
    begun = {span.name for span in log.phases}
    rows = [
        [
            phase.name,
            phase.objective,
            si(phase.total_slots),
            f"{phase.sequence_length:,}",
            f"{si(phase.batch_slots)}",
            f"{phase.lr or recipe.optimizer.lr:g}",
            phase.mask.rates,
        ]
        for phase in recipe.trained_phases
        if phase.name in begun
    ]
    head = ["phase", "objective", "token slots", "longest chunk", "batch, slots"]
    return _table([*head, "peak learning rate", "mask rate"], rows)


def _data(facts: Facts) -> str:
    log, recipe = facts.log, facts.recipe
    if not recipe:
        return ""
    seen: dict[str, float] = dict.fromkeys(recipe.data.streams, 0.0)
    for streams in log.stream_tokens.values() if log else ():
        for name, tokens in streams.items():
            seen[name] = seen.get(name, 0.0) + tokens
    total = sum(seen.values())
    rows = []
    for name, tokens in seen.items():
        stream, source = recipe.data.streams.get(name), facts.sources.get(name, {})
        passes = log.epochs.get(name) if log else None
        url = str(source.get("url") or "")
        rows.append(
            [
                name,
                (stream.domain if stream else "") or str(source.get("domain") or name),
                f"{tokens:,.0f}" if total else "",
                f"{tokens / total:.1%}" if total else "",
                f"{passes:.2f}" if passes is not None else "",
                str(source.get("licence") or "not stated"),
                url if url.startswith(("http://", "https://")) else "",
                str(source.get("description") or ""),
            ]
        )
    head = ["stream", "domain", "tokens seen", "share", "passes", "licence of the data"]
    asked = _asked(recipe, log)
    return _section("Data", _table([*head, "where from", "what it is"], rows), asked)


def _asked(recipe: Recipe, log: RunLog | None) -> str:
    """Return the mixture of each phase, if there are several."""
    if not log or len(log.asked) < 2:
        return ""
    rows = [
        [phase, ", ".join(f"{name} {share:.1%}" for name, share in shares.items())]
        for phase, shares in log.asked.items()
    ]
    return _table(["phase", "share of tokens asked of each stream"], rows)


def _evaluation(facts: Facts) -> str:
    return _section("Evaluation", *_held_out(facts), _probes(facts), _suites(facts))


def _held_out(facts: Facts) -> list[str]:
    recipe = facts.recipe
    if not facts.domains or not recipe:
        return []
    names = ("loss", "unigram_loss", "accuracy", "unigram_accuracy", "masked_tokens")
    forms = (".3f", ".3f", ".1%", ".1%", ",.0f")
    rows = [
        [domain, *(_cell(scores, *pair) for pair in zip(names, forms, strict=True))]
        for domain, scores in facts.domains.items()
    ]
    head = ["held out", "loss", "unigram's loss", "accuracy", "unigram's accuracy", "predicted"]
    note = (
        f"Masked tokens ({recipe.evaluation.mask_rate:.0%} of each text) of held-out texts, loss "
        "in nats; the unigram knows only how frequent each token is in training."
    )
    return [note, _table(head, rows)]


def _cell(scores: dict[str, float], name: str, form: str) -> str:
    return format(scores[name], form) if name in scores else ""


def _probes(facts: Facts) -> str:
    columns = (("accuracy", ".1%"), ("majority", ".1%"), ("examples", ".0f"))
    rows = [[name, *(_cell(x, *column) for column in columns)] for name, x in facts.probes.items()]
    head = ["probe: logistic regression on mean vectors", "accuracy", "commonest label", "examples"]
    return _table(head, rows)


def _suites(facts: Facts) -> str:
    rows = [
        [
            f"{s.suite}: {s.task}",
            s.metric,
            f"{s.score:.3f}" + ("" if s.error is None else f" ± {s.error:.3f}"),
            ", ".join(f"{name} {score:.3f}" for name, score in s.others.items()),
        ]
        for s in facts.suites
    ]
    return _table(["suite: task", "metric", "this model ± standard error", "baselines"], rows)


def _limits(facts: Facts) -> str:
    config = facts.model.config
    lines = [
        f"Texts beyond {config.max_sequence_length:,} tokens were not seen in training.",
        "It was trained to predict masked tokens, not to place similar texts near each other: "
        "fine-tune it before you compare vectors.",
        "What its training texts get wrong or leave out, it does, too; it was not examined for "
        "biases.",
    ]
    if not facts.card.language:
        lines.append("Languages are not stated; those of the training texts are what it knows.")
    licence = facts.card.licence
    stated = (
        f"Licence of the weights: {licence}."
        if licence
        else "No licence of the weights is stated (`card.licence` in the recipe)."
    )
    return _section("Limits and licence", "\n".join(f"- {line}" for line in lines), stated)


def _recipe(recipe: Recipe) -> str:
    """Return what of the recipe differs from the defaults, without paths."""
    plain, given = (dataclasses.asdict(r) for r in (Recipe(), recipe))
    changed = {key: _changed(given[key], plain[key]) for key in RECIPE_PARTS}
    changed = {key: value for key, value in changed.items() if value not in ({}, None)}
    text = yaml.safe_dump({**changed, "seed": recipe.seed}, sort_keys=False, width=100)
    return _section("Recipe", f"```yaml\n{text}```")


def _changed(given: Any, plain: Any) -> Any:
    """Return the part of a section that differs from the default; None if none does."""
    if isinstance(given, dict) and isinstance(plain, dict):
        parts = {
            key: _changed(value, plain.get(key)) for key, value in given.items() if key not in PATHS
        }
        return {key: value for key, value in parts.items() if value is not None} or None
    if isinstance(given, list) and given and isinstance(given[0], dict) and "name" in given[0]:
        from restomod.config import PhaseConfig

        phase = dataclasses.asdict(PhaseConfig())
        return [{"name": item["name"], **(_changed(item, phase) or {})} for item in given]
    return None if given == plain else given

"""Our way to embed many documents beside transformers', on one device, in one run.

The paper's protocol (arXiv 2412.13663, section 4.1): 8,192 synthetic documents, of 512 or 8,192
tokens each (fixed), or of normally distributed lengths with half of that as mean and a standard
deviation of 64 or 1,024 (variable). Texts are less even than that: a third kind has log-normal
lengths (median 200, sigma 0.9), cut at 512. Without `--documents` there are as few as suit a CPU.
All compute the mean of a document's last hidden states, without gradients:

- ours: `TextEncoder.embed_ids`, as `restomod embed` does: sorted by length, packed, never padded;
- transformers' ModernBertModel with our weights (sdpa; on CUDA flash-attn 2, which unpads inside,
  where that is installed), padded to the longest length that the protocol allows, as the paper has
  its peers; padded to the longest of a batch; and that with documents sorted by length first, the
  most that padding can be spared;
- transformers' BertModel of the same width and about as many parameters, padded as the first, with
  512 only, as the paper has it.

Whoever pads gets the batch size that is fastest for it in a trial; ours is the command's default.
The vectors of all with our weights must agree. They take turns, round by round, so that whatever
else the machine does falls on all; ratios are medians over the rounds, beside the least and the
most, and on a CPU the ratio of the least CPU times, which other programs disturb less. Tokens
exclude padding for everybody. Memory is what exists at most over what did before. On a CPU all is
float32 and memory reuse (`keep_freed_memory`) is on for everybody; on CUDA all run under bf16
autocast.

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 python -m benchmarks.inference --sizes 17m
    python -m benchmarks.inference --device cuda --sizes 150m,395m --documents 8192 --rounds 10
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, ModernBertModel

from benchmarks.record import Report, parser_of
from benchmarks.training.documents import PAD, SIZES, encoder_config
from benchmarks.training.measure import device_name, peak_bytes, settle
from restomod.model.config import EncoderConfig
from restomod.model.cpu import keep_freed_memory
from restomod.model.encoder import MaskedLM
from restomod.model.hf import save_transformers
from restomod.model.init import initialize
from restomod.vectors.texts import TextEncoder

LENGTHS = {512: 64, 8192: 1024}
"""Longest document, and the standard deviation of the variable lengths."""
KINDS = ("fixed", "variable", "lognormal")
NAMES = {
    "ours": "restomod, unpadded",
    "padded": "ModernBertModel, padded to the limit",
    "batch": "ModernBertModel, padded by batch",
    "sorted": "ModernBertModel, sorted and padded",
    "bert": "BertModel, padded to the limit",
}
DOCUMENTS = {("17m", 512): 32, ("17m", 8192): 2, ("150m", 512): 12, ("150m", 8192): 2}
"""As suits a CPU, unless --documents says otherwise; other sizes take the 17 M model's."""
PADDED_TOKENS = {"cpu": (1024, 4096, 16_384), "cuda": (32_768, 131_072, 524_288)}
"""Sizes of padded batches that are tried, in tokens; a document at least."""
Documents = list[np.ndarray]


class Contender(NamedTuple):
    """Somebody's way to vectors, [documents, D], for batches of a size in tokens."""

    embed: Callable[[Documents, int], np.ndarray]
    pads: bool


def synthetic(longest: int, kind: str, count: int, vocab_size: int) -> Documents:
    """Return documents of random tokens."""
    generator = np.random.default_rng(0)
    lengths = np.full(count, longest)
    if kind == "variable":
        drawn = generator.normal(longest / 2, LENGTHS[longest], count)
        lengths = np.clip(drawn.round().astype(int), 2, longest)
    elif kind == "lognormal":
        lengths = np.clip(generator.lognormal(5.3, 0.9, count).astype(int), 2, longest)
    return [generator.integers(4, vocab_size, n) for n in lengths]


def ours(model: MaskedLM) -> Contender:
    """Return what `restomod embed` does after tokenising."""
    encoder = TextEncoder(model, cast(Any, None))

    def embed(documents: Documents, tokens: int) -> np.ndarray:
        return encoder.embed_ids(documents)

    return Contender(embed, False)


def theirs(model: Any, limit: int, by_length: bool) -> Contender:
    """Return what padding does: to `limit`, or to a batch's longest if that is 0."""
    device = next(model.parameters()).device

    def batches(documents: Documents, tokens: int) -> Iterator[list[int]]:
        order = list(range(len(documents)))
        if by_length:
            order.sort(key=lambda n: -len(documents[n]))
        batch: list[int] = []
        for n in order:
            longest = limit or max(len(documents[m]) for m in [*batch, n])
            if batch and longest * (len(batch) + 1) > tokens:
                yield batch
                batch = []
            batch.append(n)
        yield batch

    def embed(documents: Documents, tokens: int) -> np.ndarray:
        vectors = np.empty((len(documents), model.config.hidden_size), np.float32)
        for batch in batches(documents, tokens):
            longest = limit or max(len(documents[n]) for n in batch)
            ids = np.full((len(batch), longest), PAD)
            for row, n in zip(ids, batch, strict=True):
                row[: len(documents[n])] = documents[n]
            words = torch.from_numpy(ids).to(device)
            mask = words != PAD
            half = device.type == "cuda"
            context = torch.autocast("cuda", torch.bfloat16) if half else contextlib.nullcontext()
            with torch.no_grad(), context:
                hidden: Tensor = model(words, mask.long()).last_hidden_state.float()
            sums = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            vectors[batch] = sums.cpu().numpy()
        return vectors

    return Contender(embed, True)


def contenders_of(
    names: list[str], config: EncoderConfig, longest: int, device: torch.device
) -> dict[str, Contender]:
    """Return those named; ours and ModernBertModel with the same weights."""
    model = MaskedLM(config).eval()
    initialize(model, seed=0)
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        save_transformers(model, folder)
        flash = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
        peer = ModernBertModel.from_pretrained(
            folder,
            reference_compile=False,
            attn_implementation="flash_attention_2" if flash else "sdpa",
        )
    peer.to(device).eval()
    for name in names:
        if name == "ours":
            made[name] = ours(model.to(device))
        elif name == "bert":
            made[name] = theirs(bert_like(config, longest).to(device).eval(), longest, False)
        else:
            limit = longest if name == "padded" else 0
            made[name] = theirs(peer, limit, name == "sorted")
    return made


def bert_like(config: EncoderConfig, longest: int) -> BertModel:
    """Return BERT as wide as an encoder, its layers about as many parameters together."""
    hidden = config.hidden_size
    block = 4 * hidden**2 + 3 * hidden * config.intermediate_size
    return BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            num_hidden_layers=round(config.layers * block / (12 * hidden**2)),
            num_attention_heads=config.heads,
            intermediate_size=4 * hidden,
            max_position_embeddings=longest,
            pad_token_id=PAD,
        ),
        add_pooling_layer=False,
    )


def compare(report: Report, size: str, longest: int, kind: str, options: Namespace) -> None:
    """Time the contenders on one size and one kind of documents."""
    device = torch.device(options.device)
    config = encoder_config(size, longest)
    count = options.documents or DOCUMENTS.get((size, longest)) or DOCUMENTS["17m", longest]
    documents = synthetic(longest, kind, count, config.vocab_size)
    names = options.contenders.split(",")
    if kind == "fixed":  # batches are all of one length: there is nothing to sort or spare
        names = [name for name in names if name not in ("batch", "sorted")]
    if longest > 512:
        names = [name for name in names if name != "bert"]
    contenders = contenders_of(names, config, longest, device)
    sizes = {name: best_size(c, documents, device) for name, c in contenders.items()}
    vectors = {name: c.embed(documents, sizes[name]) for name, c in contenders.items()}
    check_vectors({name: v for name, v in vectors.items() if name != "bert"}, device)
    peaks = {
        name: peak_bytes(lambda c=c, n=name: c.embed(documents, sizes[n]), device)  # type: ignore[misc]
        for name, c in contenders.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            settle(device)
            start, used = time.perf_counter(), time.process_time()
            contender.embed(documents, sizes[name])
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - used)
    tokens = sum(map(len, documents))
    table = report.table(
        f"{size}, {kind} lengths up to {longest:,}: {count} documents, {tokens:,} tokens, "
        f"{options.rounds} rounds",
        "contender",
        "tokens/s",
        "ours / this",
        "least",
        "most",
        "CPU time",
        "memory",
        "batch",
    )
    for name, times in seconds.items():
        ratios = [t / o for t, o in zip(times, seconds.get("ours", times), strict=True)]
        cpu = min(busy[name]) / min(busy.get("ours", busy[name]))
        table.row(
            NAMES[name],
            f"{tokens / statistics.median(times):,.0f}",
            f"{statistics.median(ratios):.2f}x",
            f"{min(ratios):.2f}x",
            f"{max(ratios):.2f}x",
            f"{cpu:.2f}x",
            f"{peaks[name] / 1e9:.2f} GB",
            f"{sizes[name]:,}" if contenders[name].pads else "",
        )
        case = f"{size}, {kind} up to {longest}"
        report.figures[f"{case}, {name}: tokens/s"] = tokens / statistics.median(times)
        if name != "ours" and "ours" in seconds:
            report.figures[f"{case}: times {name}"] = statistics.median(ratios)
            report.figures[f"{case}: CPU time, times {name}"] = cpu


def best_size(contender: Contender, documents: Documents, device: torch.device) -> int:
    """Return the size of padded batches that takes the least time for some of the documents."""
    if not contender.pads:
        return 0
    some = documents[: max(2, len(documents) // 4)]
    longest = max(map(len, documents))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = {}
    for tokens in sorted({max(longest, tokens) for tokens in PADDED_TOKENS[device.type]}):
        try:
            start = clock()
            contender.embed(some, tokens)
            settle(device)
            times[tokens] = clock() - start
        except torch.OutOfMemoryError:
            break
    return min(times, key=lambda tokens: times[tokens])


def check_vectors(vectors: dict[str, np.ndarray], device: torch.device) -> None:
    """Raise RuntimeError unless all with our weights have the same vectors."""
    bound = 1e-4 if device.type == "cpu" else 0.05  # bf16 rounds in other places
    first = next(iter(vectors.values()))
    for name, other in vectors.items():
        difference = float(np.abs(first - other).max())
        if not difference <= bound:
            raise RuntimeError(f"{name}: not the same vectors: {difference}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sizes", default="17m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--lengths", default="512,8192", help="of 512, 8192")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of %(default)s")
    parser.add_argument("--contenders", default=",".join(NAMES), help="of %(default)s")
    parser.add_argument("--documents", type=int, help="the paper has 8192")
    parser.add_argument("--rounds", type=int, default=3, help="the paper has 10")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.lengths, options.kinds = "tiny", "512", "variable"
        options.documents, options.rounds = 8, 1
    keep_freed_memory()
    with Report(options, device_name(torch.device(options.device))) as report:
        for size in options.sizes.split(","):
            for longest in map(int, options.lengths.split(",")):
                for kind in options.kinds.split(","):
                    if kind != "lognormal" or longest == 512:
                        compare(report, size, longest, kind, options)


if __name__ == "__main__":
    main()

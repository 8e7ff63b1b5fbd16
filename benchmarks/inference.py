"""Our way to embed many documents beside transformers', on one device, in one run.

The paper's protocol (arXiv 2412.13663, section 4.1): 8,192 synthetic documents, of 512 or 8,192
tokens each (fixed), or of normally distributed lengths with half of that as mean and a standard
deviation of 64 or 1,024 (variable). Texts are less even than that: a third kind has log-normal
lengths (median 200, sigma 0.9), cut at 512. On a CPU `--documents`
takes fewer. All compute the mean of a document's last hidden states, without gradients:

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

    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 python benchmarks/inference.py --sizes 17m
    python benchmarks/inference.py --device cuda --sizes 150m,395m --documents 8192 --rounds 10
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import encoder_step
import numpy as np
import torch
from encoder_step import SIZES, machine, settle
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertModel, ModernBertModel

from restomod.model.config import EncoderConfig
from restomod.model.cpu import keep_freed_memory
from restomod.model.encoder import MaskedLM
from restomod.model.hf import save_transformers
from restomod.model.init import initialize
from restomod.vectors.texts import TextEncoder

LENGTHS = {512: 64, 8192: 1024}
"""Longest document, and the standard deviation of the variable lengths."""
KINDS = ("fixed", "variable", "lognormal")
CONTENDERS = ("ours", "padded", "batch", "sorted", "bert")
NAMES = {
    "ours": "restomod, unpadded",
    "padded": "ModernBertModel, padded to the limit",
    "batch": "ModernBertModel, padded by batch",
    "sorted": "ModernBertModel, sorted and padded",
    "bert": "BertModel, padded to the limit",
}
DOCUMENTS = {("17m", 512): 64, ("17m", 8192): 6, ("150m", 512): 12, ("150m", 8192): 2}
"""On a CPU, unless --documents says otherwise; other sizes take the 17 M model's."""
PADDED_TOKENS = {"cpu": (1024, 4096, 16_384), "cuda": (32_768, 131_072, 524_288)}
"""Sizes of padded batches that are tried, in tokens."""
PAD = 0
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


def contenders_of(names: list[str], config: EncoderConfig, longest: int) -> dict[str, Contender]:
    """Return those named; ours and ModernBertModel with the same weights."""
    device = encoder_step.DEVICE
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


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most that `work` allocates over what exists before it."""
    if encoder_step.DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return encoder_step.peak_of(profiler)


def compare(size: str, longest: int, kind: str, names: list[str], options: Any) -> list[str]:
    """Time the contenders on one size and one kind of documents; return lines of a report."""
    fields = ("layers", "hidden_size", "heads", "intermediate_size", "vocab_size")
    shape = dict(zip(fields, SIZES[size], strict=True))
    config = EncoderConfig(**shape, pad_id=PAD, cls_id=1, sep_id=2, max_sequence_length=longest)
    count = options.documents or DOCUMENTS.get((size, longest)) or DOCUMENTS["17m", longest]
    documents = synthetic(longest, kind, count, config.vocab_size)
    if kind == "fixed":  # batches are all of one length: there is nothing to sort or spare
        names = [name for name in names if name not in ("batch", "sorted")]
    if longest > 512:
        names = [name for name in names if name != "bert"]
    contenders = contenders_of(names, config, longest)
    sizes = {name: best_size(contender, documents) for name, contender in contenders.items()}
    vectors = {name: c.embed(documents, sizes[name]) for name, c in contenders.items()}
    check_vectors({name: v for name, v in vectors.items() if name != "bert"})
    peaks = {
        name: peak_bytes(lambda name=name: contenders[name].embed(documents, sizes[name]))
        for name in contenders
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            settle()
            start, used = time.perf_counter(), time.process_time()
            contender.embed(documents, sizes[name])
            seconds[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - used)
    tokens = sum(map(len, documents))
    lines = [
        f"{size}, {kind} lengths up to {longest}: {count} documents, {tokens} tokens, "
        f"{options.rounds} rounds",
        f"  {'':<38}{'tokens/s':>9}{'ours / this':>13}{'least':>8}{'most':>8}"
        f"{'CPU time':>10}{'memory':>10}{'batch':>8}",
    ]
    for name, times in seconds.items():
        ratios = [t / o for t, o in zip(times, seconds.get("ours", times), strict=True)]
        lines.append(
            f"  {NAMES[name]:<38}{tokens / statistics.median(times):>9.0f}"
            f"{statistics.median(ratios):>12.2f}x{min(ratios):>7.2f}x{max(ratios):>7.2f}x"
            f"{min(busy[name]) / min(busy.get('ours', busy[name])):>9.2f}x"
            f"{peaks[name] / 1e9:>8.2f} GB{sizes[name]:>8}"
        )
    return lines


def best_size(contender: Contender, documents: Documents) -> int:
    """Return the size of padded batches that takes the least time for some of the documents."""
    if not contender.pads:
        return 16_384
    some = documents[: max(2, len(documents) // 4)]
    clock = time.process_time if encoder_step.DEVICE.type == "cpu" else time.perf_counter
    times = {}
    for tokens in PADDED_TOKENS[encoder_step.DEVICE.type]:
        try:
            start = clock()
            contender.embed(some, tokens)
            settle()
            times[tokens] = clock() - start
        except torch.OutOfMemoryError:
            break
    return min(times, key=lambda tokens: times[tokens])


def check_vectors(vectors: dict[str, np.ndarray]) -> None:
    """Raise RuntimeError unless all with our weights have the same vectors."""
    bound = 1e-4 if encoder_step.DEVICE.type == "cpu" else 0.05  # bf16 rounds in other places
    first = next(iter(vectors.values()))
    for name, other in vectors.items():
        difference = float(np.abs(first - other).max())
        if not difference <= bound:
            raise RuntimeError(f"{name}: not the same vectors: {difference}")


def main() -> None:
    """Run the comparison and print it; with --out, write it to a file too."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default="17m", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--lengths", default="512,8192", help="of 512, 8192")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of %(default)s")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="of %(default)s")
    parser.add_argument("--documents", type=int, help="the paper has 8192")
    parser.add_argument("--rounds", type=int, default=5, help="the paper has 10")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    encoder_step.DEVICE = torch.device(options.device)
    keep_freed_memory()
    command = f"python benchmarks/inference.py {' '.join(sys.argv[1:])}"
    policy = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    command = " ".join([*(f"{x}={os.environ[x]}" for x in policy if x in os.environ), command])
    lines = [command, *machine()]
    sys.stdout.write("\n".join(lines) + "\n")
    for size in options.sizes.split(","):
        for longest in map(int, options.lengths.split(",")):
            for kind in options.kinds.split(","):
                if kind == "lognormal" and longest > 512:
                    continue
                names = options.contenders.split(",")
                report = ["", *compare(size, longest, kind, names, options)]
                sys.stdout.write("\n".join(report) + "\n")
                sys.stdout.flush()
                lines += report
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""Memory that a training step needs on a device, as `restomod plan` prints it.

Enters: the encoder's shape, the phase's micro-batch, and how it is computed. Leaves: bytes by part.
Counts the tensors that eager PyTorch keeps for the backward pass, operation by operation, and what
else is alive when the most is. Compiled layers need less, since they compute elementwise results
again; the allocator's fragments and the CUDA context come on top, and with shards what a rank sends
while it computes. Imports no torch.

Shapes: T tokens of the micro-batch, M predicted ones, D hidden, I intermediate, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from restomod.config import ComputeConfig, ModelConfig, PhaseConfig, Recipe
from restomod.data.mlm import predicted_slots
from restomod.extensions import USE, is_extension, make
from restomod.model.config import BLOCK

FLOAT32, BF16 = 4, 2
PROCESS_BYTES = 1e9
"""What a process that trains on a CPU takes beside tensors: Python, torch, Composer."""


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    weights: float
    """Float32 weights; on CUDA their bf16 copies too, which autocast keeps for a forward pass."""
    gradients: float
    optimizer: float
    """First and second moments."""
    activations: float
    """What the backward pass finds or has computed again at the peak."""
    logits: float
    """What the loss holds at the peak: a piece of the logits and the decoder's gradient, or that
    gradient and its product with the loss's scale."""
    exchange: float
    """With DDP, the buckets into which gradients are copied to be reduced (Composer's DDP has no
    gradients that are views of them). With shards, what is gathered of the others': embedding, head
    and final norm whole, two layers (or all, where they stay), and the gradients of one."""

    @property
    def peak(self) -> float:
        """All of them at once, in any but the first step."""
        return sum(vars(self).values())


def layer_parameters(model: ModelConfig) -> int:
    """Return the parameters of a layer (the first has one norm less)."""
    d, i = model.hidden_size, model.intermediate_size
    layer = 4 * d * d + 3 * i * d + 2 * (2 * d if model.norm_bias else d)
    return layer + 4 * d * model.attention_bias + (2 * i + d) * model.mlp_bias


def parameters(model: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Return (parameters of body and head, parameters of embedding and decoder bias).

    Embedding and decoder are tied, so the matrix counts once.
    """
    d = model.hidden_size
    norm = 2 * d if model.norm_bias else d
    layer = layer_parameters(model)
    head = d * d + d * model.head_bias + norm
    # The embedding's norm and the last one come on top; the first layer has no attention norm.
    body = model.layers * layer + norm + head
    return body, vocab_size * d + vocab_size * model.decoder_bias


def step_memory(
    model: ModelConfig,
    vocab_size: int,
    tokens: int,
    predicted: int,
    compute: ComputeConfig,
    device: str,
    shards: int = 1,
    reshard: bool = True,
    ranks: int = 1,
    moments: float = 2.0,
) -> Memory:
    """Estimate a step on a micro-batch of `tokens`, of which `predicted` count.

    `device` is cpu (float32) or cuda (bf16 autocast). `shards` of the `ranks` share a copy of
    weights, gradients and optimizer state; `reshard` is `parallel.reshard_after_forward`; `moments`
    is how many the optimizer keeps of a parameter, in the mean.
    """
    cuda = device == "cuda"
    count = sum(parameters(model, vocab_size))
    matrix = vocab_size * model.hidden_size
    itemsize = BF16 if cuda else FLOAT32
    attention, gated, kept = layer_activations(model, tokens, itemsize, compute.recompute_keep)
    whole, every = attention + gated, compute.recompute_every
    layers = [kept if every and n % every == 0 else whole for n in range(model.layers)]
    stream = FLOAT32 * tokens * model.hidden_size
    # The embedding's norm, and the last layer's output; the mask of the CPU's local layers.
    body = sum(layers) + 2 * stream
    local = [n for n in range(model.layers) if n % model.global_every]
    mask = FLOAT32 * tokens * (BLOCK + model.local_window) if local and not cuda else 0.0
    mask *= model.heads if model.positions == "alibi" else 1
    head = 6 * FLOAT32 * predicted * model.hidden_size
    piece = min(compute.logits_mb * 1e6, itemsize * predicted * vocab_size)
    decoder = FLOAT32 * matrix
    # Where the loss is; in the feed-forward block of the last recomputed layer; in the last local
    # layer's attention on the CPU, whose blocks of keys and values overlap.
    peaks = [(body + head, decoder + max(piece, decoder))]
    if every:
        last = (model.layers - 1) // every * every
        gradients = 2 * stream + 2 * itemsize * tokens * model.intermediate_size
        peaks.append((2 * stream + sum(layers[:last]) + whole + gradients, decoder))
    if local and not cuda:
        blocks = (6 + 2 * (1 + model.local_window / BLOCK)) * stream
        peaks.append((2 * stream + sum(layers[: local[-1]]) + attention + blocks, decoder))
    activations, logits = max(peaks, key=sum)
    buckets = FLOAT32 * count if ranks > 1 else 0.0
    return Memory(
        weights=(FLOAT32 + (BF16 if cuda and shards == 1 else 0)) * count / shards,
        gradients=FLOAT32 * count / shards,
        optimizer=moments * FLOAT32 * count / shards,
        activations=activations + mask,
        logits=logits,
        exchange=_gathered(model, vocab_size, cuda, reshard) if shards > 1 else buckets,
    )


def resident(memory: Memory, device: str) -> float:
    """Return what a step takes of a device's memory: the peak; on a CPU the process's resident
    memory, whose heap keeps freed blocks (`model/cpu.py`) and so holds activations about twice."""
    if device == "cuda":
        return memory.peak
    return PROCESS_BYTES + memory.peak + memory.activations + memory.logits


def moments_per_parameter(recipe: Recipe, vocab_size: int) -> float:
    """Return how many moments the optimizer keeps of a parameter, in the mean: AdamW and
    StableAdamW two, Muon one of a layer's and the head's matrices, one of the user's own what it
    says."""
    name = recipe.optimizer.name
    if is_extension(name):
        return float(len(make({USE: name, **recipe.optimizer.options}).moments))
    if name != "muon":
        return 2.0
    model = recipe.model
    d, i = model.hidden_size, model.intermediate_size
    hidden = model.layers * (4 * d * d + 3 * i * d) + d * d
    return 2.0 - hidden / sum(parameters(model, vocab_size))


def phase_memory(
    recipe: Recipe,
    phase: PhaseConfig,
    vocab_size: int,
    device: str,
    shards: int,
    ranks: int = 1,
    rows: int = 0,
) -> Memory:
    """Estimate a step of a phase, on one of `ranks` of which `shards` share a copy of the model;
    `rows` of a micro-batch, the recipe's if 0."""
    tokens = (rows or phase.micro_batch_rows) * phase.row_tokens
    return step_memory(
        recipe.model,
        vocab_size,
        tokens,
        predicted_slots(tokens, phase),
        recipe.compute,
        device,
        shards,
        recipe.parallel.reshard_after_forward,
        ranks,
        moments_per_parameter(recipe, vocab_size),
    )


def _gathered(model: ModelConfig, vocab_size: int, cuda: bool, reshard: bool) -> float:
    """Return the bytes that a shard's rank gathers: layers in the type of the products, the rest in
    float32, of which autocast keeps a bf16 copy."""
    layer = layer_parameters(model)
    rest = sum(parameters(model, vocab_size)) - model.layers * layer
    layers = min(2, model.layers) if reshard else model.layers
    x = BF16 if cuda else FLOAT32
    return (FLOAT32 + (BF16 if cuda else 0)) * rest + (layers + 1) * x * layer


def layer_activations(
    model: ModelConfig, tokens: int, x: int, keep: str
) -> tuple[float, float, float]:
    """Return the bytes that a layer's attention and its feed-forward block keep, and what the layer
    keeps if it is recomputed.

    `x` is the bytes of a product's element.
    """
    d, i = model.hidden_size, model.intermediate_size
    cuda = x == BF16
    stream = FLOAT32 * d  # residual stream
    # qkv, and its rotated queries and keys, on CUDA; rotated queries, keys and values on the CPU.
    attention = (5 if cuda else 3) * x * d + x * d + FLOAT32 * model.heads
    drops = 1.0 * d if model.attention_dropout else 0.0
    # The GLU's projection, activated values and product; our kernel computes the values again.
    gated = x * (3 if cuda else 4) * i
    # On the CPU, RMSNorm is several operations, which keep what the weight multiplies.
    norm = stream + x * d + (stream if model.norm == "rmsnorm" and not cuda else 0)
    kept = stream
    if keep in ("attention", "products"):
        kept += attention
    if keep == "products":
        kept += x * (3 * d + d + 2 * i + d) - (3 * x * d if cuda else 0)
    return tokens * (norm + attention + drops), tokens * (norm + gated), tokens * kept

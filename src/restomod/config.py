"""The schema of a recipe: a dataclass for each section, with every default usable on a CPU.

`restomod.recipe` fills it from YAML; everything else reads it. Imports no torch. One long file on
purpose: all keys of a recipe, to be read from the first to the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from restomod.batches import BatchSizes
from restomod.units import parse_slots

ATTENTION_KERNELS = ("flash_attn_3", "flash_attn_4", "flash_attn_2", "varlen", "cpu", "reference")
"""In the order in which `auto` tries them."""


@dataclass
class ModelConfig:
    """Shape of the encoder (paper, table 4; the defaults are ModernBERT-base)."""

    layers: int = 22
    """Number of transformer blocks."""
    hidden_size: int = 768
    """Width of the residual stream."""
    heads: int = 12
    """Attention heads; divides hidden_size into an even head size."""
    intermediate_size: int = 1152
    """Width of the GLU's output; its input projection has twice as many rows."""
    global_every: int = 3
    """Layers 0, n, 2n, ... attend globally, the others within `local_window`."""
    local_window: int = 128
    """Tokens that a local layer sees: local_window / 2 on either side, both ends inclusive."""
    rope_fraction: float = 1.0
    """Share of each head's channels that RoPE turns; the rest carry no position."""
    positions: str = field(default="rope", metadata={"choices": ("rope", "alibi")})
    """rope, or alibi: a penalty on distance, with a slope of its own per head (JinaBERT)."""
    norm: str = field(default="layernorm", metadata={"choices": ("layernorm", "rmsnorm")})
    """layernorm or rmsnorm."""
    norm_eps: float = 1e-5
    """Added to the variance (or the mean square) in every norm."""
    activation: str = field(default="geglu", metadata={"choices": ("geglu", "swiglu")})
    """Gated linear unit of the feed-forward block: geglu or swiglu."""
    norm_bias: bool = False
    """Whether norms have a bias; needs layernorm."""
    attention_bias: bool = False
    """Whether the attention block's linear layers have biases."""
    mlp_bias: bool = False
    """Whether the feed-forward block's linear layers have biases."""
    head_bias: bool = False
    """Whether the head's dense layer has a bias."""
    decoder_bias: bool = True
    """Whether the decoder, which shares the embedding's matrix, has a bias of its own."""
    attention_dropout: float = 0.1
    """Dropout probability on the output of the attention block (paper, table 3)."""

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.heads

    @property
    def rope_channels(self) -> int:
        """Channels of a head that RoPE turns: an even number, 0 under ALiBi."""
        return (
            0 if self.positions == "alibi" else 2 * round(self.head_size * self.rope_fraction / 2)
        )


@dataclass
class ComputeConfig:
    """How the model is computed: speed and memory, not results."""

    attention: str = field(default="auto", metadata={"choices": ("auto", *ATTENTION_KERNELS)})
    """Attention kernel. auto takes the best that is installed and suits device, dtype and model."""
    compile: str = field(default="auto", metadata={"choices": ("auto", "always", "never")})
    """torch.compile of layers, embedding and head. auto: on a GPU only, since on a CPU compilation
    takes a minute the first time (its results are kept in cache_dir)."""
    recompute_every: int = 0
    """Every n-th layer computes its activations again in the backward pass instead of keeping them;
    1 is every layer, 0 none."""
    recompute_keep: str = field(
        default="input", metadata={"choices": ("input", "attention", "products")}
    )
    """What a recomputed layer keeps: its input only, attention's output too, or the results of all
    matrix products and attention."""
    logits_mb: int = 256
    """Largest piece of the [masked tokens, vocabulary] logits that exists at a time, in MB."""


@dataclass
class ParallelConfig:
    """How ranks share the work: memory and speed, not results. One process ignores it."""

    strategy: str = field(default="ddp", metadata={"choices": ("ddp", "fsdp", "hsdp")})
    """ddp: every rank holds all weights. fsdp: all ranks share one copy of weights, gradients and
    optimizer state (FSDP2). hsdp: groups of `shard_ranks` ranks share a copy each, so that weights
    travel within a group and only gradients between groups."""
    shard_ranks: int = 0
    """Ranks that share one copy, with hsdp; 0 means the ranks of a node."""
    reduce_dtype: str = field(default="float32", metadata={"choices": ("float32", "bfloat16")})
    """In what gradients travel; bfloat16 halves the traffic and rounds the gradients."""
    reshard_after_forward: bool = True
    """Whether a layer's gathered weights are given up after its forward pass and gathered again for
    the backward pass, with fsdp and hsdp: less memory, half as much traffic again."""

    def shards(self, world_size: int, node_ranks: int) -> int:
        """Return how many ranks share one copy of weights, gradients and optimizer state, where a
        node runs `node_ranks` of the `world_size` ranks."""
        if world_size == 1 or self.strategy == "ddp":
            return 1
        return world_size if self.strategy == "fsdp" else self.shard_ranks or node_ranks


@dataclass
class OptimizerConfig:
    """How weights are updated; the defaults are ModernBERT-base's (paper, table 3)."""

    name: str = field(
        default="stable_adamw",
        metadata={"choices": ("stable_adamw", "adamw", "muon"), "extends": True},
    )
    """stable_adamw; adamw: the same without its clip of each tensor's update; or muon: steps along
    the orthogonalised momentum of the layers' matrices and the head's, at the same learning rate;
    the other parameters follow StableAdamW."""
    lr: float = 8e-4
    """Peak learning rate, of phases that have none of their own."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """Decay rates of the first and second moments."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    weight_decay: float = 1e-5
    """Fully decoupled: each step multiplies weights by 1 - weight_decay x lr / the phase's peak lr.
    Not applied to norms and biases."""
    clip_norm: float = 0.0
    """With adamw: gradients whose 2-norm, all parameters together, exceeds this are scaled down to
    it; 0 clips none."""
    momentum: float = 0.95
    """Decay rate of Muon's momentum."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of an optimizer of the user's own."""


@dataclass
class InitConfig:
    """Initial weights: Megatron's truncated normal, as ModernBERT's, or those of another model."""

    weights: str = ""
    """Start from the weights of this run, checkpoint or transformers ModernBERT folder, of the same
    shape; empty draws new ones."""
    log_unigram_bias: bool = False
    """Start the decoder's bias at the logarithm of the training data's token frequencies instead of
    zero: a short run does not spend its first steps on learning them."""


@dataclass
class StreamConfig:
    """One data set: an MDS folder, or a source of the user's own."""

    path: str = ""
    """Folder that holds index.json: a local path, or a remote that Streaming reads (s3://...)."""
    source: dict[str, Any] = field(default_factory=dict)
    """Instead of a path, something of the user's own that reads documents: `use`, and its
    options."""
    local: str = ""
    """Node-local folder that keeps downloaded and unpacked shards; under cache_dir when empty."""
    domain: str = ""
    """Name under which metrics group the stream; the stream's own name when empty."""
    column: str = ""
    """Column with token ids or text; found by name and type when empty."""
    transform: dict[str, Any] = field(default_factory=dict)
    """Something of the user's own that every text goes through before it is tokenised: `use`, and
    its options; for data sets that hold text."""
    max_epochs: float = 1000.0
    """How often the stream may be read in a run, each time in a new order; a recipe that needs more
    is refused. Repeating more than about four times teaches little (arXiv 2305.16264)."""


@dataclass
class DataConfig:
    """Where training documents come from and how they become rows."""

    streams: dict[str, StreamConfig] = field(default_factory=dict)
    """Named data sets; a phase's `mixture` refers to the names."""
    lanes: int = 8
    """Independent sequences of rows: row n of the run comes from lane n mod lanes. A multiple of
    every world size that the run may ever have; fixed for the life of the run."""
    workers: int = 1
    """Loader processes per rank; 0 reads in the main process. Changes nothing but speed."""
    buffer_rows: int = 16
    """Rows' worth of waiting chunks in each lane, from which its rows are drawn: so the chunks of a
    long document mix with others, which a short run feels (benchmarks/results/demo-packing.md)."""
    tokens_per_document_min: int = 16
    """A row is closed at row_tokens / this many documents, so that cu_seqlens has a static size."""
    special_tokens: str = field(
        default="each_chunk", metadata={"choices": ("each_chunk", "document_ends", "none")}
    )
    """Where [CLS] and [SEP] stand: around each chunk, at a document's first and last chunk's outer
    ends only, or nowhere. Those that a data set has stored around its documents are taken off
    first."""
    skip_shorter_than: int = 1
    """Documents with fewer ordinary tokens are left out, and counted."""
    shuffle_block_documents: int = 65_536
    """Documents permuted together within a lane's share of a stream, at most."""
    shuffle_shards: int = 4
    """Places of a lane's share that one block draws from: about as many shards, or up to twice as
    many where a place lies across two, are open at a time for every lane and stream."""
    shards_open_per_rank: int = 512
    """Most shards that a rank keeps open. A recipe whose order needs more is refused; fewer lanes,
    fewer shuffle_shards or more ranks need fewer."""
    cache_limit_gb: float = 1000.0
    """Disk that downloaded and unpacked shards may take in a node's cache folder, in GB; those that
    were not used for longest go first. A recipe that needs more at once is refused."""
    download_attempts: int = 5
    """Tries to fetch a shard, with growing pauses between them."""
    download_timeout_s: float = 120.0
    """Seconds that a remote may stay silent before a try counts as failed."""
    on_damaged_shard: str = field(default="stop", metadata={"choices": ("stop", "skip")})
    """What a shard does that stays damaged or missing after all tries: stop the run, or be skipped,
    which is recorded in the skip ledger and in the metrics. A remote that cannot be reached always
    stops the run."""


@dataclass
class MaskStep:
    """A mask rate from some point of the phase on."""

    at: str = "0"
    """Slots since the phase began."""
    rate: float = 0.3
    """Share of ordinary tokens that are predicted, there."""


@dataclass
class MaskConfig:
    """Masked-language-model corruption (paper, section 2.2)."""

    rate: float = 0.3
    """Share of ordinary tokens that are predicted, from the phase's beginning."""
    later: list[MaskStep] = field(default_factory=list)
    """Other rates later on, in order."""
    between: str = field(default="steps", metadata={"choices": ("steps", "linear")})
    """How the rate gets from one to the next of `later`: at once when it is reached, or in a
    straight line towards it."""
    mask_share: float = 0.8
    """Of the predicted tokens, the share replaced by [MASK]; 1 replaces all (NeoBERT)."""
    random_share: float = 0.1
    """Of these, the share replaced by a random ordinary token; the rest stay as they are."""
    whole_word: bool = False
    """Whether words are drawn rather than tokens: all tokens of a word are predicted, or none (of
    words longer than 8 tokens, pieces of 8)."""

    @property
    def rates(self) -> str:
        """The rates of the phase in words."""
        towards = "" if self.between == "steps" else "linearly "
        later = [f", {towards}{100 * step.rate:.3g}% at {step.at}" for step in self.later]
        return f"{100 * self.rate:.3g}%" + "".join(later)


@dataclass
class ScheduleConfig:
    """Trapezoidal learning rate: linear warm-up, constant, decay (paper, section 2.2.2)."""

    warmup: str = "0"
    """Slots of linear warm-up from zero."""
    decay: str = "0"
    """Slots of decay, at the end of the phase."""
    decay_shape: str = field(
        default="one_minus_sqrt",
        metadata={"choices": ("one_minus_sqrt", "linear", "cosine"), "extends": True},
    )
    """How the rate falls."""
    decay_options: dict[str, Any] = field(default_factory=dict)
    """Options of a shape of the user's own."""
    final_factor: float = 0.0
    """The learning rate at the end of the decay, as a share of the peak."""

    @property
    def warmup_slots(self) -> int:
        return parse_slots(self.warmup)

    @property
    def decay_slots(self) -> int:
        return parse_slots(self.decay)


@dataclass
class BatchWarmupConfig:
    """Smaller batches at a phase's beginning: first_rows, first_rows + increment_rows, ... below
    batch_rows, each for the same number of steps (paper, A.1)."""

    slots: str = "0"
    """Slots that the smaller batches take together, as nearly as whole steps allow; 0: there are
    none."""
    first_rows: int = 0
    """Rows of the first batch."""
    increment_rows: int = 0
    """Rows by which the batch grows. The world size x micro_batch_rows must divide every size."""


@dataclass
class PhaseConfig:
    """One stretch of training with constant shapes."""

    name: str = "pretrain"
    """Name of the phase, in metrics and checkpoints."""
    slots: str = "0"
    """Length in token slots (rows x row_tokens), as 1_200_000, 50B or 1.719T; rounded up to whole
    batches."""
    sequence_length: int = 1024
    """Longest chunk of a document, [CLS] and [SEP] included."""
    row_tokens: int = 16_384
    """Slots of a row; at least 27 times the mean chunk for 99.9 % packing efficiency."""
    batch_rows: int = 288
    """Rows of a global batch (288 x 16,384 = 4.72 M slots, as the paper's 4,608 x 1,024)."""
    batch_warmup: BatchWarmupConfig = field(default_factory=BatchWarmupConfig)
    micro_batch_rows: int = 1
    """Rows that a device computes at a time; changes memory and speed, not results."""
    mixture: dict[str, float] = field(default_factory=dict)
    """What is drawn of each stream, in the unit of `mixture_by`; 0 leaves a stream out."""
    mixture_by: str = field(
        default="proportion", metadata={"choices": ("proportion", "repeat", "choose")}
    )
    """What the mixture's numbers are. proportion: shares of the tokens, which need not add up to
    one. repeat: how often each stream is read while one with 1 is read once. choose: how many
    documents of each stream make up a turn."""
    objective: str = field(default="mlm", metadata={"choices": ("mlm", "clm")})
    """mlm: masked tokens from both sides (`mask`). clm: every next token from those before it, with
    causal attention; evaluation does likewise."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    z_loss: float = 0.0
    """Weight of the mean squared log-partition of the predictions, added to the loss; it keeps
    logits from drifting (arXiv 2204.02311)."""
    lr: float | None = None
    """Peak learning rate of this phase; null takes optimizer.lr."""
    weight_decay: float | None = None
    """Weight decay of this phase; null takes optimizer.weight_decay."""
    optimizer_state: str = field(default="keep", metadata={"choices": ("keep", "reset")})
    """Whether the phase goes on with the moments that the one before it has gathered, or begins
    with none. The first phase has none to keep."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    rope_base_global: float = 10_000.0
    """RoPE base of the global layers: 10,000 in the 1,024 phase, 160,000 in the 8,192 phases."""
    rope_base_local: float = 10_000.0
    """RoPE base of the local layers: always 10,000 in ModernBERT; Ettin raises it, too."""

    @property
    def batches(self) -> BatchSizes:
        """Rows of every step's batch."""
        warmup = self.batch_warmup
        slots = parse_slots(warmup.slots)
        if not slots:
            return BatchSizes(self.batch_rows)
        return BatchSizes.warming_up(
            self.batch_rows, warmup.first_rows, warmup.increment_rows, slots / self.row_tokens
        )

    @property
    def batch_slots(self) -> int:
        """Slots of a global batch, after the batch's warm-up."""
        return self.batch_rows * self.row_tokens

    @property
    def steps(self) -> int:
        """Optimizer steps of the phase."""
        return self.batches.steps(math.ceil(parse_slots(self.slots) / self.row_tokens))

    @property
    def total_slots(self) -> int:
        """Slots of all steps of the phase."""
        return self.slots_before(self.steps)

    def slots_before(self, step: int) -> int:
        """Return the slots of the phase's steps before `step` (its first is 0)."""
        return self.batches.before(step) * self.row_tokens


@dataclass
class ProbeConfig:
    """A labelled task: how well a logistic regression tells labels by the model's frozen features,
    the mean over a text's tokens. Half of the examples fit it, the other half judge it."""

    path: str = ""
    """JSON lines (also .gz, .zst) or Parquet."""
    text: str = "text"
    """Name of the column, or field, that holds the text."""
    label: str = "label"
    """Name of the one that holds what is to be told: words or whole numbers."""
    examples: int = 1000
    """Examples that are read, from the file's start."""
    tokens: int = 128
    """Tokens of a text, the first ones."""


@dataclass
class EvaluationConfig:
    """Held-out loss and accuracy by domain, on fixed rows with fixed masks."""

    streams: dict[str, StreamConfig] = field(default_factory=dict)
    """Held-out data sets by name; none switches evaluation off."""
    every_steps: int = 1000
    """Steps between evaluations; there is always one at the end."""
    rows: int = 64
    """Rows of each stream that are read, from its start."""
    mask_rate: float = 0.15
    """Share of tokens predicted in evaluation (paper, table 3), all other shares as in training."""
    mask_rates: list[float] = field(default_factory=list)
    """More shares at which the same rows are evaluated, each for as long again; not for `clm`."""
    sequence_lengths: list[int] = field(default_factory=list)
    """More lengths that the documents are cut to, at `mask_rate`, also beyond the phase's; rows
    grow where they must, and hold as many slots altogether."""
    probes: dict[str, ProbeConfig] = field(default_factory=dict)
    """Labelled tasks by name."""
    hooks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Measurements of the user's own by name: `use`, and its options."""
    samples: int = 2
    """Passages of each stream with a hidden word that the model guesses at every evaluation, the
    same ones each time; 0: none."""


@dataclass
class CheckpointConfig:
    """Checkpoints, from which the same command continues the run."""

    every_steps: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep: int = 3
    """Newest checkpoints kept."""
    keep_every: str = "0"
    """Keep for ever the first checkpoint at or after each multiple of so many token slots, as 50B;
    0 keeps none."""
    keep_best: int = 0
    """Checkpoints kept of each phase for their held-out loss (`all`, of the evaluation at their
    step or the last one before), the best ones."""
    keep_local: int = 2
    """With a `store`: newest checkpoints that stay in the run folder too. All rules above hold for
    the store."""
    average_best: int = 0
    """At the end, average the weights of the last checkpoint and of this many others of the last
    phase with the best held-out loss, into the run's `averaged/`; 0 does not (ModernBERT-base:
    3)."""


@dataclass
class SpikeConfig:
    """Losses that leap up: what is done about a step whose loss lies more than `threshold` robust
    standard deviations above the median of the steps before it."""

    action: str = field(default="off", metadata={"choices": ("off", "skip", "rollback")})
    """off; skip: the step changes no weight; rollback: the run goes back to its last checkpoint and
    does not learn from the rows that caused it."""
    window_steps: int = 128
    """Steps that median and deviation (1.4826 x the median absolute deviation) are taken of, and of
    a phase's beginning half as many without judgement."""
    threshold: float = 8.0
    """Deviations above the median that make a spike."""
    rollback_steps: int = 1
    """Steps, from the spike's on, whose rows a roll-back puts on the skip ledger."""
    max_rollbacks: int = 10
    """Roll-backs of a run, after which the next spike stops it."""


@dataclass
class FaultsConfig:
    """What is done when something goes wrong."""

    grace: str = "60s"
    """Time that the cluster leaves between a signal and the end; `restomod plan` compares what
    saving has taken."""
    hang_timeout: str = "30m"
    """Time without a finished step, evaluation or checkpoint after which a run counts as hung:
    every rank writes its stack to hangs/, and the job ends with the requeue code."""
    nonfinite_steps: int = 10
    """Steps with a non-finite gradient, one after the other, that stop the run. Each is skipped by
    all ranks and counted."""
    spikes: SpikeConfig = field(default_factory=SpikeConfig)


@dataclass
class ProfileConfig:
    """A torch.profiler trace and a memory snapshot of some steps, in the run folder's profile/."""

    steps: list[int] = field(default_factory=list)
    """[FROM, TO], steps of the run, the last excluded, for instance [20, 24]; empty: none."""
    ranks: list[int] = field(default_factory=lambda: [0])
    """Ranks that write theirs."""


@dataclass
class WandbConfig:
    """Weights & Biases."""

    mode: str = field(
        default="auto", metadata={"choices": ("auto", "online", "offline", "disabled")}
    )
    """auto: online where WANDB_API_KEY is set or W&B's agent has started the run, else offline."""
    project: str = "restomod"
    """Project that the run is shown in."""


ALERTS = ("stop", "spike", "nonfinite", "hang", "failure", "end")


@dataclass
class AlertsConfig:
    """Messages to people when something happens to a run; W&B shows them, too."""

    webhook: str = ""
    """Name of the environment variable that holds the address (with its secrets) that messages are
    posted to, as JSON; empty: none are."""
    events: list[str] = field(default_factory=lambda: list(ALERTS))
    """Of what: stop (on request), spike, nonfinite (gradients that stop the run), hang, failure,
    end."""


@dataclass
class LoggingConfig:
    """What is written while training."""

    every_steps: int = 1
    """Steps between lines of metrics.jsonl; each line covers the steps since the one before."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: bool = False
    """Whether TensorBoard's files are written, too, to the run folder's tensorboard/."""
    alerts: AlertsConfig = field(default_factory=AlertsConfig)


@dataclass
class StartConfig:
    """What a new run begins from, if not from nothing. Once it has a checkpoint of its own, it goes
    on from that."""

    checkpoint: str = ""
    """A checkpoint of another run: `phase` begins with its weights, moments and place in the data
    (train.py --from)."""
    phase: str = ""
    """The only phase that is trained (train.py --phase)."""
    fork: str = ""
    """RUN@STEP: go on from this checkpoint of another run, with a recipe that may differ in all but
    model, data and seed (train.py --fork)."""


@dataclass
class CardConfig:
    """What the model card of an exported model says beyond what the run itself knows; read by
    `restomod export`, which takes these keys, too."""

    licence: str = ""
    """Of the weights, as the Hugging Face hub spells it: apache-2.0, mit, cc-by-4.0, other, ...;
    empty: the card says that none is stated."""
    language: list[str] = field(default_factory=list)
    """Of the texts, as codes: en, de, ...; multilingual; code."""
    datasets: list[str] = field(default_factory=list)
    """Data sets of the hub that the streams were made from, as owner/name."""
    description: str = ""
    """What the model is for, in a sentence or two."""


@dataclass
class ResumeConfig:
    """What a resumed run may change."""

    allow: list[str] = field(default_factory=list)
    """Guarded keys (or sections) whose change is accepted, for instance optimizer.lr."""


@dataclass
class Recipe:
    """Everything that defines a run."""

    run_name: str = "run"
    """Name of the run and of its folder."""
    runs_dir: str = "runs"
    """Folder that holds the run's folder."""
    store: str = ""
    """Remote folder, s3://bucket/runs or another of fsspec's, under whose run_name checkpoints and
    metrics are kept too: the run then goes on from nodes that never saw it, and needs no shared
    disk. Empty: the run folder alone, which all nodes must see."""
    cache_dir: str = "cache"
    """Node-local folder for downloaded and unpacked shards and for compiled code."""
    seed: int = 17
    """Seed of initialisation, data order, masks and dropout."""
    device: str = field(default="auto", metadata={"choices": ("auto", "cpu", "cuda")})
    """auto: cuda where there is one."""
    deterministic: bool = False
    """On cuda, kernels that give the same bits for the same batches, at some cost in speed: runs on
    the same GPUs, resumed ones too, are then bit-equal. On a CPU they always are."""
    tokenizer: str = ""
    """tokenizer.json, or a folder that AutoTokenizer loads."""
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    phases: list[PhaseConfig] = field(default_factory=list)
    """The run's phases, in order."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Composer callbacks of the user's own by name: `use`, and its options."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stop_after: str = "0"
    """Wall-clock time, such as 23h30m, after which the run saves, stops and wants to be requeued;
    0: never."""
    faults: FaultsConfig = field(default_factory=FaultsConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    card: CardConfig = field(default_factory=CardConfig)
    start: StartConfig = field(default_factory=StartConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)

    @property
    def run_folder(self) -> Path:
        return Path(self.runs_dir) / self.run_name

    @property
    def trained_phases(self) -> list[PhaseConfig]:
        """The phases of this run, in order: all, or start.phase alone."""
        return [phase for phase in self.phases if self.start.phase in ("", phase.name)]

"""What a rank finds out about itself and its node before a run, for `restomod doctor`.

Enters: the recipe, if there is one, and the rank's place. Leaves: `Facts`, plain values that travel
as JSON to rank 0, where `nodes.py` judges them. Whatever may hang (a disk, an object
store, a driver) has a deadline, so that the rank can still say what it waits for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import resource
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

import restomod
from restomod import provenance
from restomod.config import Recipe
from restomod.data.sources import Sources, open_sources
from restomod.data.working_set import working_set
from restomod.errors import UserError
from restomod.model.attention import choose_backend
from restomod.model.compile import check_compiler, compiles
from restomod.model.memory import FLOAT32, parameters, phase_memory, resident
from restomod.tools.doctor.place import Place
from restomod.tools.plan.checkpoints import checkpoint_bytes, most_kept
from restomod.train.hardware import choose_device

Result = TypeVar("Result")

PACKAGES = (
    "torch",
    "triton",
    "mosaicml",
    "mosaicml-streaming",
    "flash-attn",
    "flash-attn-3",
    "transformers",
    "numpy",
    "restomod",
)
WRITTEN_BYTES = 64 * 2**20
"""Written into a folder to see how fast that is."""
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Folder:
    """A folder that the run writes into, on one node."""

    path: str
    free_bytes: int = 0
    write_bytes_per_s: float = 0.0
    problem: str = ""
    """Why nothing can be written there."""


@dataclass
class Needs:
    """What the recipe asks of a node, in bytes unless the name says otherwise; 0 is unknown."""

    step_memory: float = 0.0
    """Of one rank's device; on a CPU, of its process."""
    checkpoint: float = 0.0
    """Weights and the optimizer's moments, in float32."""
    checkpoints_kept: int = 0
    """In the run folder, at most."""
    gradients: float = 0.0
    cache: float = 0.0
    """Shards in use at once."""
    cache_all: float = 0.0
    """All shards that are cached, or as many as the limit allows."""
    open_files: int = 0
    """Shards that a rank has open at once."""
    open_files_allowed: int = 0


@dataclass
class Facts:
    """What one rank has measured. Folders, needs, data and store are its node's leader's."""

    place: Place
    device: str = ""
    """cpu or cuda; empty if there is none to use."""
    device_name: str = ""
    device_id: str = ""
    """Of this rank's GPU, wherever it is numbered."""
    devices: int = 0
    """That this rank sees."""
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    matmul_flops: float = 0.0
    """Median FLOP/s of a matrix product: bf16 on CUDA, float32 on a CPU."""
    versions: dict[str, str] = field(default_factory=dict)
    recipe_digest: str = ""
    shm_bytes: int = 0
    shm_free_bytes: int = 0
    open_files: int = 0
    """The process's limit."""
    run_folder: Folder | None = None
    cache_folder: Folder | None = None
    needs: Needs = field(default_factory=Needs)
    store: str = ""
    streams: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    """By check: what went wrong."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By check: how long measuring took."""

    def plain(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Facts:
        """Return facts that `plain` made."""
        facts = cls(**plain)
        facts.place = Place(**plain["place"])
        facts.needs = Needs(**plain["needs"])
        facts.run_folder = Folder(**plain["run_folder"]) if plain["run_folder"] else None
        facts.cache_folder = Folder(**plain["cache_folder"]) if plain["cache_folder"] else None
        return facts


def within(timeout_s: float, action: Callable[[], Result]) -> Result:
    """Return what `action` returns, or raise what it raises.

    Raises TimeoutError if that takes longer than `timeout_s`; the action is then left to itself, in
    a thread that does not keep the process alive.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def measure(recipe: Recipe | None, recipe_problem: str, place: Place, timeout_s: float) -> Facts:
    """Measure this rank, and its node if it is the node's leader; takes `timeout_s` at most, in
    all. `recipe_problem` is why the recipe could not be read here."""
    facts = Facts(place)
    deadline = time.monotonic() + timeout_s

    def attempt(check: str, action: Callable[[], Result]) -> Result | None:
        started = time.monotonic()
        try:
            return within(max(1.0, deadline - started), action)
        except TimeoutError:
            facts.problems[check] = f"no answer within {timeout_s:g} s"
        except UserError as error:
            facts.problems[check] = str(error)
        except Exception as error:  # the report names it: looking for what fails is the purpose
            facts.problems[check] = f"{type(error).__name__}: {error}"
        finally:
            facts.seconds[check] = time.monotonic() - started
        return None

    facts.versions = attempt("versions", versions) or {}
    device = attempt("devices", lambda: _find_device(recipe, facts))
    if device:
        facts.matmul_flops = (
            attempt("matmul", lambda: matmul_flops(rank_device(device, place))) or 0
        )
    attempt("shared memory", lambda: _shared_memory(facts))
    facts.open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if recipe_problem:
        facts.problems["recipe"] = recipe_problem
    if recipe is None:
        return facts
    facts.recipe_digest = digest(recipe)
    if not place.leader:
        return facts
    if device:
        attempt("compute", lambda: _check_compute(recipe, device))
    sources = attempt("data", lambda: _open(recipe, place.world_size))
    if sources:
        facts.streams = len(sources.streams) + len(sources.heldout)
        facts.needs = needs(recipe, sources, place, device or "cpu")
    facts.run_folder = _folder(attempt, "run folder", Path(recipe.runs_dir))
    facts.cache_folder = _folder(attempt, "cache folder", Path(recipe.cache_dir))
    facts.store = recipe.store
    if facts.store:
        attempt("store", lambda: check_store(facts.store))
    return facts


def versions() -> dict[str, str]:
    """Return the versions that all ranks should share, by name."""
    found = dict.fromkeys(PACKAGES, "absent") | provenance.versions(PACKAGES)
    found["restomod's code"] = _code_digest()
    if torch.version.cuda:
        found["CUDA of torch"] = torch.version.cuda
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    found["driver"] = _driver()
    return found


def digest(recipe: Recipe) -> str:
    """Return a text that differs for recipes that differ."""
    plain = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


def rank_device(device: str, place: Place) -> torch.device:
    """Return the rank's device, `cpu` or `cuda`. A rank that sees one GPU only, as a launcher may
    bind it, takes that one."""
    if device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", place.local_rank % torch.cuda.device_count())


def matmul_flops(where: torch.device) -> float:
    """Return the median FLOP/s of a large product: bf16 on CUDA, float32 on the CPU."""
    cuda = where.type == "cuda"
    size, tries = (8192, 20) if cuda else (1024, 7)
    a = torch.ones(size, size, dtype=torch.bfloat16 if cuda else torch.float32, device=where)
    b = torch.ones_like(a)
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize(where)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[2:])  # the first ones load kernels


def needs(recipe: Recipe, sources: Sources, place: Place, device: str) -> Needs:
    """Return what the recipe asks of each node."""
    vocab_size, data = sources.tokenizer.vocab_size, recipe.data
    count = sum(parameters(recipe.model, vocab_size))
    used = working_set(recipe, sources.streams, place.world_size)
    shards = recipe.parallel.shards(place.world_size, place.ranks_per_node)
    cached = sum(int(s.shard_bytes.sum()) for s in sources.streams.values() if s.cached)
    memories = [
        phase_memory(recipe, phase, vocab_size, device, shards, place.world_size)
        for phase in recipe.trained_phases
    ]
    return Needs(
        step_memory=max(resident(memory, device) for memory in memories),
        checkpoint=checkpoint_bytes(recipe, vocab_size),
        checkpoints_kept=recipe.checkpoint.keep_local if recipe.store else most_kept(recipe),
        gradients=FLOAT32 * count,
        cache=used.cached_bytes,
        cache_all=min(cached, data.cache_limit_gb * 1e9),
        open_files=used.open_shards,
        open_files_allowed=data.shards_open_per_rank,
    )


def measure_folder(path: Path) -> Folder:
    """Write into a folder, or into the nearest one above it that is there, and leave nothing
    behind.

    A folder that cannot be written is a `problem`, not an error.
    """
    path = path.resolve()
    folder = Folder(str(path))
    try:
        inside = existing(path)
        free = os.statvfs(inside)
        folder.free_bytes = free.f_bavail * free.f_frsize
        file = inside / f".restomod-doctor-{uuid.uuid4().hex}"
        block = os.urandom(2**20)
        try:
            started = time.perf_counter()
            with file.open("wb") as out:
                for _ in range(WRITTEN_BYTES // len(block)):
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
            folder.write_bytes_per_s = WRITTEN_BYTES / (time.perf_counter() - started)
        finally:
            with suppress(FileNotFoundError):
                file.unlink()
    except OSError as error:
        folder.problem = error.strerror or str(error)
    return folder


def existing(path: Path) -> Path:
    """Return the nearest of a path and its parents that is there; raises OSError if that is no
    folder."""
    found = next(folder for folder in (path, *path.parents) if folder.exists())
    if not found.is_dir():
        raise NotADirectoryError(0, f"{found} is a file")
    return found


def check_store(store: str) -> None:
    """List the store, write a small object into it, read that and delete it; raises UserError
    saying which of these failed."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    doing = "reached"
    try:
        system, inside = fsspec.core.url_to_fs(store, skip_instance_cache=True)
        name = f"{inside.rstrip('/')}/.restomod-doctor-{uuid.uuid4().hex}"
        doing = "listed"
        if system.exists(inside):
            system.ls(inside)
        doing = "written"
        if isinstance(system, LocalFileSystem):  # S3's would create a bucket
            system.makedirs(inside, exist_ok=True)
        system.pipe_file(name, b"restomod")
        doing = "read"
        if system.cat_file(name) != b"restomod":
            raise OSError("what was written comes back changed")
        doing = "deleted from"
        system.rm_file(name)
    except Exception as error:  # each file system of fsspec's has its own
        raise UserError(f"{store} cannot be {doing}: {error}") from error


def _folder(
    attempt: Callable[[str, Callable[[], Folder]], Folder | None], check: str, path: Path
) -> Folder:
    return attempt(check, lambda: measure_folder(path)) or Folder(str(path))


def _open(recipe: Recipe, world_size: int) -> Sources:
    """Open the data with few tries: a remote that answers only now and then is worth knowing."""
    data = dataclasses.replace(recipe.data, download_attempts=min(2, recipe.data.download_attempts))
    return open_sources(dataclasses.replace(recipe, data=data), world_size)


def _find_device(recipe: Recipe | None, facts: Facts) -> str:
    device = choose_device(recipe or Recipe())
    if device == "cuda":
        own = rank_device(device, facts.place)
        properties = torch.cuda.get_device_properties(own)
        facts.device_name, facts.device_id = properties.name, str(properties.uuid)
        facts.devices = torch.cuda.device_count()
        facts.memory_free_bytes, facts.memory_bytes = torch.cuda.mem_get_info(own)
    else:
        facts.devices = len(os.sched_getaffinity(0))
        facts.device_name = _cpu_name()
        memory = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
        facts.memory_bytes = int(memory["MemTotal"]) * 1024
        facts.memory_free_bytes = int(memory["MemAvailable"]) * 1024
    facts.device = device
    return device


def _shared_memory(facts: Facts) -> None:
    state = os.statvfs(SHARED_MEMORY)
    facts.shm_bytes = state.f_blocks * state.f_frsize
    facts.shm_free_bytes = state.f_bavail * state.f_frsize


def _check_compute(recipe: Recipe, device: str) -> None:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    alibi = recipe.model.positions == "alibi"
    choose_backend(recipe.compute.attention, device, dtype, alibi, recipe.model.head_size)
    if compiles(recipe.compute, device):
        check_compiler(device)


def _code_digest() -> str:
    root = Path(restomod.__file__).parent
    content = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        content.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return content.hexdigest()[:12]


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "absent"
    found = re.search(r"(\d+\.\d+(?:\.\d+)?)", text)
    return found[1] if found else "unknown"


def _cpu_name() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()

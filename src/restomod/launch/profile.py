"""The schema of a cluster's profile: what `restomod launch` must know of a cluster, and no recipe
says.

In: one YAML file per cluster. Out: a `Profile`, checked as strictly as a recipe. Read on the
machine that launches; nodes see only what was rendered from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from restomod.errors import UserError
from restomod.impossible import VARIABLE
from restomod.launch.words import (
    HOST,
    IMAGE,
    OBJECT_NAME,
    PATH,
    QUANTITY,
    SBATCH,
    VOLUME,
    is_secret,
    unprintable,
)
from restomod.strict import load_strict
from restomod.units import parse_duration

Problems = list[tuple[str, str]]


@dataclass
class Mount:
    """A folder that ranks see inside a container or a pod."""

    source: str = ""
    """A folder of the node; on Kubernetes also pvc:CLAIM, or scratch: for an empty one."""
    target: str = ""
    """Where ranks see it."""
    read_only: bool = False
    """Whether ranks may not write there."""


@dataclass
class SlurmProfile:
    """Slurm."""

    partition: str = ""
    """Partition; empty: the cluster's default, as for the next three."""
    account: str = ""
    """Account that the hours are taken from."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that nodes must have, as sbatch takes them."""
    exclusive: bool = True
    """Whether a node runs nothing else; the job then has all of its memory."""
    cpus: int = 0
    """Cores of each node; 0: Slurm decides, which gives all of an exclusive node."""
    container: str = field(default="none", metadata={"choices": ("none", "pyxis", "apptainer")})
    """How `image` is run; none: `python` on the node itself."""
    output: str = ""
    """Log of the job, with Slurm's patterns; logs/slurm-JOB.log in the run folder when empty."""


@dataclass
class KubernetesProfile:
    """Kubernetes."""

    kind: str = field(default="job", metadata={"choices": ("job", "pytorchjob", "trainjob")})
    """job: an indexed Job and a headless service, which every cluster runs. pytorchjob, trainjob:
    Kubeflow's, with its training operator (v1) or its trainer (v2)."""
    namespace: str = "default"
    """Namespace of all objects."""
    runtime: str = "torch-distributed"
    """The ClusterTrainingRuntime of a trainjob."""
    service_account: str = ""
    """Service account of the pods; empty: the namespace's default."""
    secret: str = ""
    """The Secret that holds the variables that `secrets` names."""
    gpu_resource: str = "nvidia.com/gpu"
    """Resource that stands for a GPU."""
    cpu: str = "8"
    """Cores of a pod, as Kubernetes writes them."""
    memory: str = "64Gi"
    """Memory of a pod, its shared memory included."""
    shared_memory: str = "8Gi"
    """/dev/shm of a pod: loader workers and NCCL use it."""
    user_id: int = 1000
    """User and group of the pod's processes; never 0."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels that a node must have."""
    tolerated_taints: list[str] = field(default_factory=list)
    """Keys of taints that pods may ignore, for instance nvidia.com/gpu."""
    max_failures: int = 3
    """Failed pods after which a job has failed; saved and preempted ones do not count."""


@dataclass
class SkyPilotProfile:
    """SkyPilot."""

    infra: str = ""
    """Where, as SkyPilot writes it (aws/us-east-1, k8s); empty: the cheapest."""
    gpu: str = "H100"
    """Kind of GPU, as SkyPilot names it."""
    spot: bool = True
    """Whether instances that may be taken away are used; SkyPilot then recovers them."""
    disk_gb: int = 512
    """Disk of an instance, in GB."""
    setup: str = "make setup"
    """Command that sets a new instance up, without an `image`."""


@dataclass
class TorchrunProfile:
    """Hosts that nothing schedules."""

    hosts: list[str] = field(default_factory=list)
    """Hosts, the first of which the others can reach under this name; empty: this machine alone."""
    remote_shell: list[str] = field(default_factory=lambda: ["ssh", "-tt", "-o", "BatchMode=yes"])
    """Command that takes a host and a command for its bash. Ending it must end the command there:
    for ssh, -tt."""


@dataclass
class Profile:
    """Facts of a cluster."""

    name: str = "local"
    """Name of the cluster, in messages."""
    workdir: str = ""
    """The project's checkout on the nodes, on which paths of a recipe are based; empty: the folder
    where `restomod launch` runs, or the image's own on Kubernetes."""
    python: str = "python"
    """The interpreter on the nodes, or in the image."""
    image: str = ""
    """Container image, made from the Dockerfile."""
    mounts: list[Mount] = field(default_factory=list)
    network_interface: str = ""
    """Interface for NCCL's and gloo's connections, for instance ib0; empty: they choose."""
    env: dict[str, str] = field(default_factory=dict)
    """Further variables, for instance NCCL_IB_HCA. No secrets: this is written into scripts."""
    secrets: list[str] = field(default_factory=list)
    """Variables that hold secrets, for instance WANDB_API_KEY; only names are ever written."""
    secrets_file: str = ""
    """Shell file on the first node (Slurm) or each (torchrun) that sets the secrets."""
    time_limit: str = "24h"
    """Of one Slurm allocation; a run that it ends goes on in the next."""
    port: int = 29500
    """Rendezvous port on the first node; Slurm jobs take one worked out from the job's number."""
    restarts: int = 3
    """Times that torchrun starts the ranks again when one of them dies."""
    max_requeues: int = 100
    """Times that a run which saved is started again. An indexed Job and SkyPilot do not count."""
    peers_timeout: str = "15m"
    """Time that a node without running ranks waits for its peers before it ends with exit code
    75."""
    slurm: SlurmProfile = field(default_factory=SlurmProfile)
    kubernetes: KubernetesProfile = field(default_factory=KubernetesProfile)
    skypilot: SkyPilotProfile = field(default_factory=SkyPilotProfile)
    torchrun: TorchrunProfile = field(default_factory=TorchrunProfile)


def load_profile(path: str) -> Profile:
    """Read a profile; an empty path gives the defaults. Raises UserError listing what is wrong."""
    return load_strict([path], [], Profile, _impossible) if path else Profile()


def default_profile(system: str) -> str:
    """Return the profile that is taken where none is named: launchers/profiles/SYSTEM.yaml, if
    there is one."""
    path = Path("launchers") / "profiles" / f"{system}.yaml"
    return str(path) if path.is_file() else ""


def need(holds: bool, message: str) -> None:
    """Raise UserError with the message unless `holds`."""
    if not holds:
        raise UserError(message)


def _impossible(profile: Profile) -> Problems:
    bad: Problems = []

    def fits(key: str, value: str, pattern: re.Pattern[str], empty: bool = True) -> None:
        if not (pattern.fullmatch(value) or (empty and not value)):
            bad.append((key, f"{value!r}: only what fits {pattern.pattern} is accepted here"))

    slurm, kubernetes = profile.slurm, profile.kubernetes
    for key in ("partition", "account", "qos", "constraint", "output"):
        fits(f"slurm.{key}", getattr(slurm, key), SBATCH)
    for key in ("namespace", "runtime"):
        fits(f"kubernetes.{key}", getattr(kubernetes, key), OBJECT_NAME, empty=False)
    for key in ("service_account", "secret"):
        fits(f"kubernetes.{key}", getattr(kubernetes, key), OBJECT_NAME)
    for key in ("cpu", "memory", "shared_memory"):
        fits(f"kubernetes.{key}", getattr(kubernetes, key), QUANTITY, empty=False)
    fits("name", profile.name, OBJECT_NAME)
    fits("image", profile.image, IMAGE)
    fits("network_interface", profile.network_interface, HOST)
    for key in ("workdir", "secrets_file"):
        fits(key, getattr(profile, key), PATH)
    fits("python", profile.python, PATH, empty=False)
    for n, host in enumerate(profile.torchrun.hosts):
        fits(f"torchrun.hosts.{n}", host, HOST, empty=False)
    for n, mount in enumerate(profile.mounts):
        fits(f"mounts.{n}.source", mount.source, VOLUME, empty=False)
        fits(f"mounts.{n}.target", mount.target, PATH, empty=False)
    for name in [*profile.env, *profile.secrets]:
        fits("env" if name in profile.env else "secrets", name, VARIABLE, empty=False)
    bad += [(f"env.{n}", SECRET_ADVICE) for n, text in profile.env.items() if is_secret(n, text)]
    bad += _impossible_values(profile)
    bad += [(key, f"{text!r}: holds what cannot be printed") for key, text in unprintable(profile)]
    return bad


SECRET_ADVICE = "looks like a secret, and would be written into scripts: list its name in `secrets`"


def _impossible_values(profile: Profile) -> Problems:
    bad: Problems = []
    for key in ("time_limit", "peers_timeout"):
        try:
            if parse_duration(getattr(profile, key)) < 1:
                bad.append((key, "must be at least a second"))
        except ValueError as error:
            bad.append((key, str(error)))
    if not 1024 <= profile.port <= 65535:
        bad.append(("port", f"{profile.port}: must lie in 1024 .. 65535"))
    for key, value, least in (
        ("restarts", profile.restarts, 0),
        ("slurm.cpus", profile.slurm.cpus, 0),
        ("max_requeues", profile.max_requeues, 0),
        ("kubernetes.max_failures", profile.kubernetes.max_failures, 0),
        ("kubernetes.user_id", profile.kubernetes.user_id, 1),
        ("skypilot.disk_gb", profile.skypilot.disk_gb, 1),
    ):
        if value < least:
            bad.append((key, f"{value}: must be at least {least}"))
    if profile.slurm.container != "none" and not profile.image:
        bad.append(("slurm.container", f"{profile.slurm.container} needs an `image`"))
    if profile.torchrun.hosts and not profile.torchrun.remote_shell:
        bad.append(("torchrun.remote_shell", "is missing: hosts are reached by it"))
    return bad

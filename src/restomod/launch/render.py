"""From a recipe and a profile to the text that a scheduler takes.

In: a `Job`. Out: a script or a manifest, made from a template in launchers/, in which every value
has been quoted by `words.py` for the language of the template. `submit.py` is the caller; sweeps
fill a template of their own with the same parts (`sweep/script.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.launch.profile import Profile, need
from restomod.launch.words import Quoted, label, pod, sbatch, words, yaml
from restomod.units import counted, parse_duration

TEMPLATES = Path(__file__).parents[3] / "launchers"
SYSTEMS = ("slurm", "kubernetes", "skypilot", "torchrun")
SBATCH_EXPORT = ("HOME", "USER", "LANG", "PATH")
"""Variables that a job takes from where it is submitted; no others, which may hold secrets."""


@dataclass
class Job:
    """A run on some nodes of a cluster."""

    recipe: Recipe
    words: list[str]
    """Recipe files and overrides, as nodes are given them."""
    profile: Profile
    system: str
    nodes: int
    gpus: int
    """GPUs of a node; 0: ranks compute on CPUs."""
    ranks: int
    """Ranks of a node."""
    commit: str
    """The project's git state where the job is launched."""

    @property
    def grace_s(self) -> int:
        """Seconds between a signal and the end: what the recipe says."""
        return math.ceil(parse_duration(self.recipe.faults.grace))

    @property
    def workdir(self) -> str:
        return self.profile.workdir or str(Path.cwd())

    @property
    def in_yaml(self) -> bool:
        """Whether the system takes a manifest, not a script."""
        return self.system in ("kubernetes", "skypilot")

    @property
    def run_folder(self) -> Path:
        """The run's folder as nodes see it."""
        return Path(self.workdir) / self.recipe.run_folder


def render(job: Job) -> str:
    """Return the script or manifest. Raises UserError for what cannot be written safely, and for a
    profile that does not suit the system."""
    _check(job)
    return fill(_template(job), _values(job))


def _template(job: Job) -> str:
    if job.system == "kubernetes":
        return f"kubernetes-{job.profile.kubernetes.kind}.yaml"
    return f"{job.system}.yaml" if job.in_yaml else f"{job.system}.sh"


def _check(job: Job) -> None:
    profile = job.profile
    for name, text in (("workdir", job.workdir), ("runs_dir", str(job.recipe.run_folder))):
        need(text.isprintable(), f"{name}: {text!r}: holds what cannot be printed")
    if job.system == "kubernetes":
        need(
            bool(profile.image),
            "image: is missing, and pods run one; name it in launchers/profiles/kubernetes.yaml or "
            "the file of --profile (launchers/profiles/example.yaml shows one)",
        )
        need(
            not profile.secrets or bool(profile.kubernetes.secret),
            "kubernetes.secret: is missing: the Secret of the cluster that holds "
            f"{', '.join(profile.secrets)}",
        )
        bad = [
            m.source for m in profile.mounts if not m.source.startswith(("/", "pvc:", "scratch:"))
        ]
        need(not bad, f"mounts: {bad}: write pvc:CLAIM, scratch: or an absolute path")
    elif job.system == "slurm":
        check_slurm(profile, job.recipe.faults.grace)
    else:
        _check_volumes(profile)
        need(
            job.system != "torchrun" or not profile.secrets or bool(profile.secrets_file),
            "secrets_file: is missing: nodes read the secrets from it",
        )
    if job.system == "torchrun":
        hosts = profile.torchrun.hosts
        need(
            job.nodes <= max(1, len(hosts)),
            f"torchrun.hosts: {counted(len(hosts), 'host')} in the profile, "
            f"{counted(job.nodes, 'node')} asked for",
        )


def check_slurm(profile: Profile, grace: str) -> None:
    """Raise UserError for a profile that does not suit Slurm, or does not suit a run with `grace`
    between a signal and its end."""
    _check_volumes(profile)
    need(
        2 * math.ceil(parse_duration(grace)) < parse_duration(profile.time_limit),
        f"time_limit: {profile.time_limit} is not twice faults.grace {grace}: "
        "a run that is signalled while it starts saves nothing, and would start for ever",
    )
    need(
        not profile.secrets or bool(profile.secrets_file),
        "secrets_file: is missing: nodes read the secrets from it",
    )


def _check_volumes(profile: Profile) -> None:
    bad = [m.source for m in profile.mounts if m.source.startswith(("pvc:", "scratch:"))]
    need(not bad, f"mounts: {bad}: only Kubernetes has such volumes")


def environment(profile: Profile) -> dict[str, str]:
    """Return the variables that a profile sets."""
    network = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if profile.network_interface else ()
    return {**profile.env, **dict.fromkeys(network, profile.network_interface)}


def _values(job: Job) -> dict[str, Any]:
    profile, recipe = job.profile, job.recipe
    command = [profile.python, "-m", "restomod.launch.node"]
    command += ["--nodes", str(job.nodes), "--ranks-per-node", str(job.ranks)]
    command += ["--restarts", str(profile.restarts), "--peers-timeout", profile.peers_timeout]
    name = label(recipe.run_name)
    return {
        "job": job,
        "profile": profile,
        "run_name": recipe.run_name,
        "name": name,
        "nodes": job.nodes,
        "gpus": job.gpus,
        "command": command,
        "words": job.words,
        "env": {**environment(profile), "RESTOMOD_COMMIT": job.commit},
        "grace_s": job.grace_s,
        "time_limit": slurm_time(parse_duration(profile.time_limit)),
        "output": profile.slurm.output or f"{job.run_folder}/logs/slurm-%j.log",
        "export": ",".join(SBATCH_EXPORT),
        "in_container": container(profile),
        "hosts": profile.torchrun.hosts[: job.nodes],
        "mounts": [
            {
                "name": f"mount-{n}",
                "volume": _volume(mount.source),
                "target": mount.target,
                "read_only": mount.read_only,
            }
            for n, mount in enumerate(profile.mounts)
        ],
    }


def _volume(source: str) -> Quoted:
    """Return a pod's volume, as YAML."""
    kind, _, name = source.rpartition(":")
    if kind == "pvc":
        return Quoted(f"persistentVolumeClaim: {{claimName: {yaml(name)}}}")
    if kind == "scratch" or source == "scratch:":
        return Quoted("emptyDir: {}")
    return Quoted(f"hostPath: {{path: {yaml(source)}, type: Directory}}")


def container(profile: Profile) -> list[str]:
    """Return what stands between srun and the command: options of Pyxis', or Apptainer's own
    command."""
    workdir = profile.workdir or str(Path.cwd())
    mounts = [(m.source, m.target, m.read_only) for m in profile.mounts]
    if workdir not in (target for _, target, _ in mounts):
        mounts.append((workdir, workdir, False))
    binds = ",".join(f"{a}:{b}" + (":ro" if read_only else "") for a, b, read_only in mounts)
    if profile.slurm.container == "pyxis":
        image = f"--container-image={profile.image}"
        return [image, f"--container-mounts={binds}", f"--container-workdir={workdir}"]
    if profile.slurm.container == "apptainer":
        return ["apptainer", "exec", "--nv", "--bind", binds, "--pwd", workdir, profile.image]
    return []


def slurm_time(seconds: float) -> str:
    """Write a time limit as Slurm does."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}:{rest:02d}"


def fill(template: str, values: dict[str, Any]) -> str:
    """Fill a template of launchers/; every value is quoted for its language."""
    import jinja2

    quote = words if template.endswith(".sh") else yaml

    def finalize(value: Any) -> Any:
        if isinstance(value, Quoted | jinja2.Undefined):
            return value
        return quote(value)

    if not (TEMPLATES / template).is_file():
        raise UserError(f"{TEMPLATES / template} is missing: launch from a checkout of the project")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        autoescape=False,  # which is HTML's; `finalize` quotes everything
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # `command` is for what the profile gives as a command of the shell's: it stays as it is.
    templates.filters |= {"shell": words, "sbatch": sbatch, "pod": pod, "command": Quoted}
    return templates.get_template(template).render(values)

"""Manifests, scripts, sweeps and the Dockerfile against the schemas and linters of what takes them,
in an environment of its own."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from restomod.launch.profile import Mount, Profile
from restomod.launch.render import SYSTEMS, Job, render
from restomod.launch.submit import plan_job
from restomod.sweep.jobs import Setting, Task
from restomod.sweep.script import Cluster
from tests.conftest import Tiny

ROOT = Path(__file__).parents[2]
CLUSTERS = Path(os.environ.get("RESTOMOD_CLUSTERS", ROOT / ".venv" / "clusters"))
pytestmark = pytest.mark.skipif(
    not (CLUSTERS / "bin" / "hadolint").exists(), reason="needs `make .venv/clusters/.set-up`"
)
KINDS = ("job", "pytorchjob", "trainjob")


@pytest.fixture
def jobs(tiny: Tiny, tmp_path: Path) -> dict[str, Job]:
    """One of each kind, with everything that a profile may hold."""
    recipe = tiny.write(tmp_path / "recipe.yaml")
    made = {}
    for system, kind in [(system, "job") for system in SYSTEMS] + [
        ("kubernetes", k) for k in KINDS
    ]:
        job = plan_job([str(recipe), "tokenizer='$(HOME): # x'"], system, "", 2, 1, 2)
        job.profile = Profile(
            image="registry.local/restomod:1",
            mounts=[Mount("/data", "/data", True)],
            network_interface="ib0",
            env={"NCCL_DEBUG": "WARN"},
            secrets=["WANDB_API_KEY"],
            secrets_file="/etc/secrets.sh",
        )
        job.profile.torchrun.hosts = ["one", "two"]
        kubernetes = job.profile.kubernetes
        kubernetes.kind, kubernetes.secret, kubernetes.service_account = kind, "wandb", "trainer"
        kubernetes.node_selector, kubernetes.tolerated_taints = {"gpu": "h100"}, ["nvidia.com/gpu"]
        if system == "kubernetes":
            job.profile.mounts += [Mount("pvc:runs", "/runs"), Mount("scratch:", "/cache")]
        made[f"{system}-{kind}" if system == "kubernetes" else system] = job
    return made


def problems(files: dict[str, str], folder: Path) -> dict[str, str]:
    """Return what the schemas find wrong with manifests."""
    paths = []
    for name, text in files.items():
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(text)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "WANDB_API_KEY": "x"}
    done = subprocess.run(
        [CLUSTERS / "bin" / "python", Path(__file__).with_name("manifests.py"), *paths],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {Path(path).stem: problem for path, problem in json.loads(done.stdout).items()}


def test_manifests_fit_their_schemas_and_mistakes_do_not(jobs, tmp_path):
    texts = {name: render(job) for name, job in jobs.items() if job.in_yaml}
    assert set(texts) == {"skypilot", *(f"kubernetes-{kind}" for kind in KINDS)}
    found = problems(texts, tmp_path)
    assert found == dict.fromkeys(texts, "")
    mistakes = {
        "skypilot": ("num_nodes", "num_node"),
        "kubernetes-job": ("restartPolicy", "restartPolice"),
        "kubernetes-pytorchjob": ("backoffLimit", "backofLimit"),
        "kubernetes-trainjob": ("terminationGracePeriodSeconds", "terminationGraceSeconds"),
    }
    wrong = {name: texts[name].replace(*change) for name, change in mistakes.items()}
    wrong["inside-a-pod"] = texts["kubernetes-pytorchjob"].replace("mountPath", "mountpath")
    wrong["type"] = texts["kubernetes-trainjob"].replace("numNodes: 2", 'numNodes: "2"')
    found = problems(wrong, tmp_path)
    assert [name for name, problem in found.items() if not problem] == []


def test_shipped_sweeps_fit_wandbs_schema_and_mistakes_do_not(tmp_path):
    files = {file.stem: file.read_text() for file in (ROOT / "yamls" / "sweeps").glob("*.yaml")}
    assert len(files) == 3
    assert problems(files, tmp_path) == dict.fromkeys(files, "")
    wrong = {
        "no-list": files["window-pattern"].replace("[16, 32, 64]", "16"),
        "method": files["lr-batch"].replace("method: bayes", "method: bayesian"),
        "stop": files["mask-rate"].replace("type: hyperband", "type: hyperbnd"),
        "limit": files["lr-batch"].replace("    min: 3.0e-4\n", ""),
    }
    found = problems(wrong, tmp_path)
    assert [name for name, problem in found.items() if not problem] == []


def test_secrets_are_named_alone_and_pods_are_not_root(jobs):
    for kind in KINDS:
        text = render(jobs[f"kubernetes-{kind}"])
        manifest = list(yaml.safe_load_all(text))[-1]
        flat = json.dumps(manifest)
        assert '"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}' in flat
        assert '"runAsNonRoot": true' in flat
        assert '"medium": "Memory"' in flat
        assert '"nvidia.com/gpu": 1' in flat


def test_scripts_and_dockerfile_pass_their_linters(jobs, tmp_path):
    for name in ("slurm", "torchrun"):
        (tmp_path / f"{name}.sh").write_text(render(jobs[name]))
    for name, before in (("plain", ["python"]), ("srun", ["srun", "python"])):
        setting = Setting("rates", tmp_path, before, "60s", {}, True)
        tasks = [
            Task(n, f"rates-00{n}", [*before, "train.py", "a.yaml"], tmp_path / "log", tmp_path)
            for n in range(2)
        ]
        script = Cluster(setting, jobs["slurm"].profile).script(tasks, 2)
        (tmp_path / f"sweep-{name}.sh").write_text(script)
    scripts = sorted(tmp_path.glob("*.sh"))
    checks = [
        ["shellcheck", "--exclude=SC2016", *scripts, ROOT / ".ci" / "run"],  # quoted on purpose
        ["hadolint", ROOT / "Dockerfile"],
    ]
    for program, *words in checks:
        done = subprocess.run([CLUSTERS / "bin" / program, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_image_is_made_of_files_that_are_let_into_it():
    let_in = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for sources in re.findall(
        r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M
    ):
        for source in sources.split():
            assert source in let_in
            assert (ROOT / source).exists()

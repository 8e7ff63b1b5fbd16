"""What a user writes reaches a shell or a manifest as it is, or is refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from restomod.errors import UserError
from restomod.launch import render as rendering
from restomod.launch.profile import Mount, Profile, load_profile
from restomod.launch.render import Job, render
from restomod.launch.submit import plan_job
from restomod.launch.words import check_words, is_secret, label
from tests.conftest import Tiny

HOSTILE = [
    "tokenizer='a b'",
    'tokenizer="$(touch pwned)"',
    "tokenizer='`touch pwned`'",
    "tokenizer=a;touch pwned",
    'tokenizer="it\'s $(HOME) $HOME {{ job }} {% raw %}"',
    "tokenizer=é漢🙂",
    "tokenizer='x' ",
    "tokenizer='%j --wrap'",
    "tokenizer=~/*",
    "tokenizer=EOF",
]
KINDS = ["job", "pytorchjob", "trainjob"]


def job(
    recipe: Path, system: str, *words: str, profile: Profile | None = None, nodes: int = 2
) -> Job:
    planned = plan_job([str(recipe), *words], system, "", nodes, 0, 2)
    planned.profile = profile or Profile(image="registry.local/restomod:1", max_requeues=0)
    return planned


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny.write(tmp_path / "re ci'pe$(touch pwned).yaml", runs_dir="runs")


def run_script(text: str, folder: Path) -> list[str]:
    """Run a script whose programs are stand-ins; return the arguments of the node wrapper."""
    programs = folder / "bin"
    programs.mkdir()
    show = f"#!{sys.executable}\nimport sys\nprint('\\0'.join(sys.argv[1:]), end='\\0\\0')\n"
    for name, content in {
        "python": show,
        "srun": '#!/bin/sh\nwhile [ "$1" != python ]; do shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/sh\necho NodeAddr=10.0.0.1\n",
    }.items():
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": "/nowhere"}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"}
    done = subprocess.run(
        ["bash"], input=text, cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0\0")[0].split("\0")


@pytest.mark.parametrize("system", ["slurm", "torchrun"])
def test_hostile_words_reach_the_nodes_as_they_are(recipe, tmp_path, system):
    arguments = run_script(render(job(recipe, system, *HOSTILE, nodes=1)), tmp_path)
    assert arguments[arguments.index("--") + 1 :] == [str(recipe), *HOSTILE]
    assert not list(tmp_path.rglob("pwned"))


def expanded(text: str) -> str:
    """Return what Kubernetes makes of a command's word: $$ is $, $(NAME) a variable's value."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda match: "EXPANDED" if match[1] else "$", text)


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_words_reach_pods_as_they_are(recipe, kind):
    profile = Profile(image="i")
    profile.kubernetes.kind = kind
    manifest = list(
        yaml.safe_load_all(render(job(recipe, "kubernetes", *HOSTILE, profile=profile)))
    )[-1]
    spec = manifest["spec"]
    if kind == "job":
        command = spec["template"]["spec"]["containers"][0]["command"]
    elif kind == "trainjob":
        command = spec["trainer"]["command"]
    else:
        worker = spec["pytorchReplicaSpecs"]["Worker"]
        command = worker["template"]["spec"]["containers"][0]["command"]
    words = [expanded(part) for part in command]
    assert words[words.index("--") + 1 :] == [str(recipe), *HOSTILE]


def test_hostile_words_reach_skypilots_shell_as_they_are(recipe, tmp_path):
    task = yaml.safe_load(render(job(recipe, "skypilot", *HOSTILE, profile=Profile())))
    script = "SKYPILOT_NODE_IPS=10.0.0.1 SKYPILOT_NODE_RANK=0\n" + task["run"]
    arguments = run_script(script, tmp_path)
    assert arguments[arguments.index("--") + 1 :] == [str(recipe), *HOSTILE]
    assert not list(tmp_path.rglob("pwned"))


def test_skypilots_nodes_run_the_python_that_their_set_up_makes(recipe, tmp_path):
    made = tmp_path / ".venv" / "bin" / "python"
    made.parent.mkdir(parents=True)
    made.write_text("#!/bin/sh\necho made by set-up\n")
    made.chmod(0o755)
    task = yaml.safe_load(render(job(recipe, "skypilot", profile=Profile())))
    assert task["setup"].strip() == "make setup"
    script = "SKYPILOT_NODE_IPS=10.0.0.1 SKYPILOT_NODE_RANK=0\n" + task["run"]
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "made by set-up\n"


def test_a_secret_that_pods_need_is_asked_for_by_the_variables_that_it_holds(recipe):
    profile = Profile(image="registry.local/restomod:1", secrets=["WANDB_API_KEY"])
    with pytest.raises(UserError, match=r"kubernetes\.secret: is missing.* holds WANDB_API_KEY"):
        render(job(recipe, "kubernetes", profile=profile))


@pytest.mark.parametrize(
    "word",
    [
        "a=b\nrm -rf x",
        "tokenizer=\x00",
        "tokenizer=\u2028- x",
        "--help",
        "",
        "store=s3://me:pw@x/y",
    ],
)
def test_words_that_no_script_carries_are_refused(word):
    with pytest.raises(UserError):
        check_words([word])


@pytest.mark.parametrize("name", ["a b", "$(x)", "../up", "-n", "a\nb", "a;b", "a'b"])
@pytest.mark.parametrize("system", rendering.SYSTEMS)
def test_run_names_that_are_no_names_are_refused(recipe, name, system):
    with pytest.raises(UserError):
        job(recipe, system, f"run_name={name!r}")


def test_folder_that_an_sbatch_line_cannot_hold_is_refused(recipe):
    with pytest.raises(UserError, match="SBATCH"):
        render(job(recipe, "slurm", "runs_dir='my runs'"))


def test_time_limit_that_leaves_no_time_to_train_is_refused(recipe):
    with pytest.raises(UserError, match=r"twice faults\.grace"):
        render(job(recipe, "slurm", "faults.grace=13h"))


def test_labels_are_dns_names_and_do_not_collide():
    names = ["demo", "Demo", "de.mo", "de_mo", "7", "a" * 90, "a" * 91, "x-", "_".join("abc")]
    labels = [label(name) for name in names]
    assert labels[0] == "demo"
    assert len(set(labels)) == len(names)
    for text in labels:
        assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", text)
        assert len(text) <= 40


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SLURM_JWT"]
)
def test_secrets_are_known_by_their_names(name):
    assert is_secret(name)
    assert not is_secret("TOKENIZERS_PARALLELISM", "false")
    assert is_secret("HTTP_PROXY", "http://me:password@proxy")


def test_secrets_stay_out_of_scripts_and_manifests(recipe, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hidden-value")
    profile = Profile(image="i", secrets=["WANDB_API_KEY"], secrets_file="/etc/secrets.sh")
    profile.kubernetes.secret = "wandb"
    for system in rendering.SYSTEMS:
        text = render(job(recipe, system, profile=profile, nodes=1))
        assert "hidden-value" not in text
        assert "WANDB_API_KEY" in text or "/etc/secrets.sh" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slurm: {partiton: gpu}", "did you mean `slurm.partition`"),
        ("slurm: {partition: 'gpu --wrap=x'}", "slurm.partition"),
        ("env: {WANDB_API_KEY: abc}", "list its name in `secrets`"),
        ("env: {'A B': abc}", "env: 'A B'"),
        ('env: {A: "x\\ny"}', "cannot be printed"),
        ("torchrun: {hosts: ['-oProxyCommand=x']}", "torchrun.hosts.0"),
        ("mounts: [{source: '/a:/b', target: /c}]", "mounts.0.source"),
        ("mounts: [{source: 'pvc:A', target: /c}]", "mounts.0.source"),
        ("mounts: [{source: '/a,/b', target: /c}]", "mounts.0.source"),
        ("kubernetes: {user_id: 0}", "kubernetes.user_id"),
        ("slurm: {container: pyxis}", "needs an `image`"),
        ("image: 'x y'", "image"),
        ("time_limit: soon", "time_limit"),
    ],
)
def test_profiles_are_strict(tmp_path, text, message):
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        load_profile(str(path))


@pytest.mark.parametrize("container", ["pyxis", "apptainer"])
def test_containers_get_the_project_and_the_mounts(recipe, container):
    profile = Profile(image="/images/x.sqsh", mounts=[Mount("/data", "/d", True)])
    profile.slurm.container = container
    text = render(job(recipe, "slurm", profile=profile))
    workdir = str(Path.cwd())
    assert f"/data:/d:ro,{workdir}:{workdir}" in text
    assert "/images/x.sqsh" in text

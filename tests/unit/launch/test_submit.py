"""`restomod launch` at the command line, with stand-ins for what takes the jobs."""

import sys

import pytest
import yaml

from restomod import cli


@pytest.fixture
def recipe(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tiny.write(tmp_path / "recipe.yaml", runs_dir="runs")


def launch(monkeypatch, capsys, *words):
    nodes = ("--nodes=2", "--gpus-per-node=0", "--procs-per-node=2")
    monkeypatch.setattr(sys, "argv", ["restomod", "launch", *map(str, words), *nodes])
    code = cli.main()
    return code, *capsys.readouterr()


def test_dry_run_shows_what_would_be_submitted_and_writes_nothing(
    recipe, tmp_path, monkeypatch, capsys
):
    code, out, err = launch(monkeypatch, capsys, recipe, "--on=slurm", "--dry-run", "run_name=a")
    assert code == 0
    assert "#SBATCH --nodes=2\n" in out
    assert "#SBATCH --signal=USR1@60\n" in out
    assert "scancel" in err
    assert not (tmp_path / "runs").exists()


def test_pods_that_keep_nothing_are_warned_of(recipe, tmp_path, monkeypatch, capsys):
    bare, mounted = tmp_path / "bare.yaml", tmp_path / "mounted.yaml"
    bare.write_text("image: ours:1\n")
    mounted.write_text("image: ours:1\nmounts: [{source: 'pvc:runs', target: /runs}]\n")
    for words, warned in (
        ([f"--profile={bare}"], True),
        ([f"--profile={mounted}"], False),
        ([f"--profile={bare}", "store=s3://bucket/runs"], False),
    ):
        dry = [recipe, "--on=kubernetes", "--dry-run", *words]
        code, _, err = launch(monkeypatch, capsys, *dry)
        assert code == 0, err
        assert ("checkpoints go with the machine" in err) == warned


def test_job_is_submitted_and_its_number_told(recipe, tmp_path, monkeypatch, capsys):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\ntest "$1" = --parsable && cp "$2" given && echo "41;cluster"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    code, out, err = launch(monkeypatch, capsys, recipe, "--on=slurm")
    assert code == 0, err
    assert "scancel 41 " in out
    assert "logs/slurm-41.log" in out
    script = (tmp_path / "given").read_text()
    assert script == (tmp_path / "runs" / "tiny" / "launch" / "job.sh").read_text()
    assert (tmp_path / "runs" / "tiny" / "logs").is_dir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "profile.yaml").write_text(f"workdir: {tmp_path}/shared\n")
    elsewhere = ("--on=slurm", "--profile=profile.yaml")
    assert launch(monkeypatch, capsys, recipe, *elsewhere)[0] == 0
    assert f"--output={tmp_path}/shared/runs/tiny/logs/" in (tmp_path / "given").read_text()
    assert (tmp_path / "shared" / "runs" / "tiny" / "logs").is_dir()  # or the job would end
    (tmp_path / "shared" / "runs" / "tiny" / "logs").rmdir()
    (tmp_path / "shared" / "runs" / "tiny" / "logs").touch()
    code, _, err = launch(monkeypatch, capsys, recipe, *elsewhere)
    assert code == 2
    assert "logs: cannot be made: File exists; the job's log goes there" in err
    sbatch.write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    code, out, err = launch(monkeypatch, capsys, recipe, "--on=slurm")
    assert code == 2
    assert "no such partition" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.lanes=3"], "data.lanes: 3 lanes cannot be shared by 4 ranks"),
        (["data.lane=4"], "did you mean `data.lanes`"),
        (["--profile=profile.yaml"], "profile.yaml"),
        ([], "kubectl is not here"),
    ],
)
def test_mistakes_end_with_code_2_before_anything_is_submitted(
    recipe, tmp_path, monkeypatch, capsys, words, message
):
    (tmp_path / "launchers" / "profiles").mkdir(parents=True)
    profile = tmp_path / "launchers" / "profiles" / "kubernetes.yaml"  # taken by itself
    profile.write_text(yaml.safe_dump({"image": "restomod"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = launch(monkeypatch, capsys, recipe, "--on=kubernetes", *words)
    assert code == 2
    assert message in err
    assert not (tmp_path / "runs").exists()

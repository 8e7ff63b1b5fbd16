import json
import subprocess

from restomod.launch.record import git_state, kept, record_start


def test_variables_that_matter_are_kept_and_secrets_are_not():
    environment = {
        "NCCL_DEBUG": "WARN",
        "SLURM_JOB_ID": "7",
        "SLURM_JWT": "hidden",
        "HF_TOKEN": "hidden",
        "HF_HOME": "/cache",
        "RESTOMOD_STORE": "s3://me:hidden@host/x",
        "MY_OWN": "hidden",
        "PATH": "/bin",
    }
    assert kept(environment) == {
        "HF_HOME": "/cache",
        "NCCL_DEBUG": "WARN",
        "PATH": "/bin",
        "SLURM_JOB_ID": "7",
    }


def test_git_state_names_changed_files_and_keeps_no_change(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    assert git_state(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("one\n")
    git("add", "file")
    git("commit", "-m", "first")
    clean = git_state(tmp_path)
    assert clean["changed"] == []
    assert clean["diff_sha256"] == ""
    (tmp_path / "file").write_text("hidden\n")
    dirty = git_state(tmp_path)
    assert dirty["changed"] == ["file"]
    assert dirty["commit"] == clean["commit"]
    assert len(dirty["diff_sha256"]) == 64


def test_every_start_adds_a_line_without_git_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for word in ("first", "second"):
        record_start(tmp_path / "logs", [word], ["torchrun"], {"RESTOMOD_COMMIT": "abc"})
    lines = [json.loads(line) for line in (tmp_path / "logs" / "starts.jsonl").open()]
    assert [line["words"] for line in lines] == [["first"], ["second"]]
    assert lines[0]["git"] == {"commit": "abc"}
    assert "torch" in lines[0]["versions"]

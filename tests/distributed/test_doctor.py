"""The doctor on several ranks: what is wrong with one of them is named by rank 0, and nobody
hangs."""

import json
import multiprocessing
import os
import re
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Tiny

HURRIED_S = 4
"""Where the deadline is what is tested."""


def _doctor(arguments, environment, log, trouble):
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if trouble:
        globals()[f"_{trouble}"]()
    from restomod.cli import main

    sys.argv = ["restomod", "doctor", *arguments]
    sys.exit(main())


def _other_version():
    import importlib.metadata

    found = importlib.metadata.version
    importlib.metadata.version = lambda name: "9.9" if name == "triton" else found(name)


def _silent_while_measuring():
    from restomod.tools.doctor import doctor

    doctor.measure = lambda *_: time.sleep(600)


def _silent_in_the_network():
    from restomod.tools.doctor import bandwidth

    bandwidth._exchange = lambda *_: time.sleep(600)


def _wrong_values():
    from restomod.tools.doctor import bandwidth

    measure = bandwidth._fastest
    bandwidth._fastest = lambda where, prepare, action: measure(
        where, lambda: prepare().mul_(2), action
    )


def _late_clock():
    import restomod.tools.doctor.doctor as doctor

    class Late:
        def __getattr__(self, name):
            return getattr(time, name)

        def time(self):
            return time.time() - 60

    doctor.time = Late()


def _no_shared_folder():
    from restomod.tools.doctor import doctor

    doctor._sees = lambda token: False


@pytest.fixture
def doctor(tiny: Tiny, tmp_path: Path):
    """Start `restomod doctor` on some of `world_size` ranks; return rank 0's code and text."""
    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path / "runs"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["restomod.train.builder"])  # as other tests want it

    def run(
        *arguments, world_size, each=1, absent=(), troubled=(), trouble="", own=(), timeout_s=60
    ):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        processes = []
        for rank in range(world_size):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % each),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(each),
                "GROUP_RANK": str(rank // each),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(port),
            }
            words = [str(recipe), "--timeout", str(timeout_s), *arguments]
            words += own if rank in troubled else ()
            log = tmp_path / f"{rank}.log"
            bad = trouble if rank in troubled else ""
            process = context.Process(target=_doctor, args=(words, environment, str(log), bad))
            if rank not in absent:
                process.start()
                processes.append(process)
        processes[0].join(timeout=120)
        code = processes[0].exitcode
        for rank, process in enumerate(processes):
            process.join(timeout=0 if trouble.startswith("silent") else 60)
            silent = process.is_alive()
            process.kill()
            assert silent or process.exitcode == code, (tmp_path / f"{rank}.log").read_text()
        for rank in range(1, world_size):
            log = tmp_path / f"{rank}.log"
            assert not log.exists() or "Traceback" not in log.read_text(), log.read_text()
        text = (tmp_path / "0.log").read_text()
        assert code is not None, text
        return code, text

    return run


def states(text):
    """Return {check: (state, rest of its line)} of a table."""
    found = re.findall(r"^(ok|warning|failed) +(\S+(?: \S+)*)  +(.*)$", text, re.MULTILINE)
    return {name: (state, measured) for state, name, measured in found}


@pytest.mark.parametrize(("world_size", "each"), [(2, 2), (2, 1), (4, 2)])
def test_healthy_ranks(doctor, world_size, each):
    code, text = doctor("--json", world_size=world_size, each=each)
    assert code == 0, text
    report = json.loads(text[text.index("{") :])
    found = {check["name"]: check["state"] for check in report["checks"]}
    assert "failed" not in found.values(), report["checks"]
    assert {"ranks", "versions", "matmul", "all-reduce", "data"} <= found.keys()
    assert ("links between nodes" in found) == (world_size > each)
    assert ("clocks" in found) == (world_size > each)
    assert ("links in a node" in found) == (world_size > each > 1)
    if world_size > each:
        assert found["clocks"] == found["shared run folder"] == "ok"
    for rank in range(world_size):
        network = report["network"][str(rank)]
        assert min(network["all_reduce"].values()) > 1e6
        partners = [str((rank + each) % world_size)] if world_size > each else []
        assert list(network["pairs"]) == partners
        assert (network["in_node"] > 0) == (world_size > each > 1)


def test_alone_as_a_table(tiny, tmp_path, capsys, monkeypatch):
    from restomod import cli

    recipe = tiny.write(tmp_path / "recipe.yaml", runs_dir=str(tmp_path / "runs"))
    monkeypatch.setattr(sys, "argv", ["restomod", "doctor", str(recipe), "seed=3"])
    assert cli.main() == 0
    found = states(capsys.readouterr().out)
    assert {"devices", "versions", "memory", "cache folder", "data"} <= found.keys()
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(sys, "argv", ["restomod", "doctor"])
    assert cli.main() == 0
    text = capsys.readouterr().out
    assert "none given" in text
    assert "run folder" not in states(text)
    monkeypatch.setattr(sys, "argv", ["restomod", "doctor", str(recipe), "sed=3"])
    assert cli.main() == 2
    assert "did you mean `seed`" in capsys.readouterr().err


def test_rank_that_never_comes_is_named(doctor):
    code, text = doctor(world_size=4, absent=[2, 3], timeout_s=2 * HURRIED_S)
    assert code == 2
    assert "2 of 4 ranks" in text
    assert "never came: node 2, node 3" in " ".join(text.split())
    assert states(text)["versions"][0] == "ok"


def test_rank_that_falls_silent_is_named(doctor):
    code, text = doctor(
        world_size=2, troubled=[1], trouble="silent_while_measuring", timeout_s=HURRIED_S
    )
    assert code == 2
    assert f"came and fell silent: node 1 ({socket.gethostname()})" in " ".join(text.split())


def test_ranks_say_what_they_wait_for_in_the_network(doctor):
    code, text = doctor(
        world_size=2, troubled=[1], trouble="silent_in_the_network", timeout_s=HURRIED_S
    )
    assert code == 2
    assert states(text)["network"][0] == "failed"
    assert f"exchange with rank 1 did not end within {HURRIED_S} s on node 0" in " ".join(
        text.split()
    )


def test_values_that_arrive_changed_are_named(doctor):
    code, text = doctor(world_size=2, troubled=[1], trouble="wrong_values")
    assert code == 2
    assert "arrived changed" in " ".join(text.split())


def test_rank_with_another_version_is_named(doctor):
    code, text = doctor(world_size=2, troubled=[1], trouble="other_version")
    assert code == 2
    state, measured = states(text)["versions"]
    assert state == "failed"
    assert "9.9 on node 1" in measured


def test_folder_that_only_one_node_cannot_write_is_named(doctor, tmp_path):
    (tmp_path / "file").touch()
    code, text = doctor(world_size=2, troubled=[1], own=[f"runs_dir={tmp_path}/file/runs"])
    assert code == 2
    found = states(text)
    assert found["run folder"][0] == found["recipe"][0] == "failed"
    assert "file is a file on node 1" in " ".join(text.split())
    assert found["cache folder"][0] != "failed"  # a busy disk may be a slow one


def test_recipe_that_only_one_node_cannot_read_is_named(doctor):
    code, text = doctor(world_size=2, troubled=[1], own=["sed=3"])
    assert code == 2
    assert states(text)["recipe"][0] == "failed"
    assert "did you mean `seed`" in " ".join(text.split())


def test_clock_that_is_off_is_named(doctor):
    code, text = doctor(world_size=2, troubled=[1], trouble="late_clock")
    assert code == 0
    state, measured = states(text)["clocks"]
    assert state == "warning"
    assert f"node 1 ({socket.gethostname()}): -60.0 s" in measured


def test_run_folder_that_is_not_shared_is_named(doctor):
    code, text = doctor(world_size=2, troubled=[1], trouble="no_shared_folder")
    assert code == 2
    state, measured = states(text)["shared run folder"]
    assert state == "failed"
    assert "not there on node 1" in measured

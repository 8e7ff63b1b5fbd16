"""`restomod launch --on torchrun` over hosts that share no disk: network namespaces with folders of
their own, and an S3 server that both reach."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import Tiny, Trainings, metrics
from tests.integration.test_resume import exactly
from tests.s3 import BUCKET, ENVIRONMENT, Server
from tests.systems.test_nodes import ip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHELL = """#!/bin/bash
# The remote shell of a test: an address belongs to a namespace, in which its disk lies where all
# have theirs.
host=$(cat {folder}/names/"$1")
exec ip netns exec "$host" bash -c 'mount --bind "$0" "$1" && exec bash -c "$2"' \\
  {folder}/"$host" {folder}/disk "$2"
"""


@dataclass
class Network:
    """Hosts, on a bridge that this process reaches them by."""

    folder: Path
    hosts: list[str]
    address: str
    """Of the bridge."""
    url: str = ""
    """Of the S3 server."""

    def disk(self, host: str) -> Path:
        return self.folder / host

    def kill(self) -> None:
        """End all that runs on the hosts, at once."""
        for host in self.hosts:
            for pid in ip("netns", "pids", host).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def network(tmp_path: Path):
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2: network namespaces stand for the hosts")
    number = os.getpid()
    bridge = f"rm{number}"
    made = Network(tmp_path, [f"rm{number}-{n}" for n in (1, 2)], "10.77.0.254")
    try:
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("address", "add", f"{made.address}/24", "dev", bridge)
            ip("link", "set", bridge, "up")
            for n, host in enumerate(made.hosts, 1):
                ip("netns", "add", host)
                peer = ("type", "veth", "peer", "name", "link0", "netns", host)
                ip("link", "add", host, *peer)
                ip("link", "set", host, "master", bridge, "up")
                ip("-n", host, "address", "add", f"10.77.0.{n}/24", "dev", "link0")
                for name in ("lo", "link0"):
                    ip("-n", host, "link", "set", name, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the right to make namespaces: {error.stderr}")
        for name in (*made.hosts, "disk", "names"):
            (tmp_path / name).mkdir()
        for n, host in enumerate(made.hosts, 1):
            (tmp_path / "names" / host).write_text(f"10.77.0.{n}")
            (tmp_path / "names" / f"10.77.0.{n}").write_text(host)
        (tmp_path / "shell").write_text(SHELL.format(folder=tmp_path))
        (tmp_path / "shell").chmod(0o755)
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.kill()
            for host in made.hosts:
                ip("netns", "delete", host)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "delete", bridge)


def launched(network: Network, hosts: list[str], *words: object) -> subprocess.Popen:
    """Launch on hosts, of which the first one is where nodes meet."""
    addresses = [(network.folder / "names" / host).read_text() for host in hosts]
    (network.folder / "secrets.sh").write_text(
        "".join(f"{name}={value}\n" for name, value in ENVIRONMENT.items())
    )
    profile = network.folder / "profile.yaml"
    facts = {
        "python": sys.executable,
        "workdir": str(ROOT),
        "network_interface": "link0",
        "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        "secrets_file": str(network.folder / "secrets.sh"),
        "env": {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        "torchrun": {"hosts": addresses, "remote_shell": [str(network.folder / "shell")]},
    }
    facts["env"]["AWS_ENDPOINT_URL"] = network.url
    profile.write_text(yaml.safe_dump(facts))
    command = [Path(sys.executable).parent / "restomod", "launch", *words, "--on", "torchrun"]
    command += ["--profile", profile, "--nodes=2", "--gpus-per-node=0", "--procs-per-node=1"]
    with (network.folder / "log").open("a") as log:
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=log, stderr=log)


def test_run_goes_on_exactly_on_hosts_that_share_no_disk(
    tiny: Tiny, train: Trainings, tmp_path: Path, network: Network
):
    recipe = tiny.write(tmp_path / "recipe.yaml", phases__slots=48 * 4 * 512)
    code, text = train(recipe, f"runs_dir={tmp_path}/whole", "run_name=moved", world_size=2)
    assert code == 0, text
    server = Server(network.address)
    network.url = server.url
    server.client().create_bucket(Bucket=BUCKET)
    words = (recipe, f"store=s3://{BUCKET}/runs", "run_name=moved")
    words += (f"runs_dir={tmp_path}/disk/runs", f"cache_dir={tmp_path}/disk/cache")

    def stored() -> int:
        listed = server.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])
        names = [item["Key"] for item in listed]
        return sum("/step-" in name and name.endswith("manifest.json") for name in names)

    try:
        first, second = network.hosts
        script = launched(network, [first, second], *words)
        while script.poll() is None and stored() < 2:
            time.sleep(0.05)
        network.kill()
        assert script.wait(timeout=60) == 1, (tmp_path / "log").read_text()
        # One host is replaced, and the other one leads.
        shutil.rmtree(network.disk(first))
        network.disk(first).mkdir()
        script = launched(network, [second, first], *words)
        assert script.wait(timeout=240) == 0, (tmp_path / "log").read_text()
    finally:
        server.close()
    # Rank 0 is where the lowest address is: its node writes the metrics and sends them.
    run = network.disk(first) / "runs" / "moved"
    assert exactly(run) == exactly(tmp_path / "whole" / "moved")
    assert metrics(run, "resume")[-1]["from_step"] >= 10
    assert (network.disk(second) / "runs" / "moved" / "logs" / "node-0").is_dir()
    everything = b"".join(p.read_bytes() for p in tmp_path.rglob("logs/**/*") if p.is_file())
    assert ENVIRONMENT["AWS_SECRET_ACCESS_KEY"].encode() not in everything

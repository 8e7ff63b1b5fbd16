"""Two nodes, each a network namespace with folders of its own, whose link is cut and restored."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.conftest import Tiny, Trainings, metrics
from tests.integration.test_resume import exactly

ROOT = Path(__file__).parents[2]
LINK = "link0"
"""The interface's name on either node."""


@dataclass
class Node:
    namespace: str
    address: str
    folder: Path
    """Where its processes work; runs and caches are below."""

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "cut"

    @property
    def hung(self) -> list[int]:
        """The processes that a watchdog has written the stack of."""
        stacks = [path.read_text() for path in self.run.glob("hangs/*")]
        return [int(pid) for text in stacks for pid in re.findall(r", process (\d+),", text)]

    def link(self, state: str) -> None:
        ip("-n", self.namespace, "link", "set", LINK, state)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def remove(of: Callable[[int], bool]) -> None:
    """Delete the namespaces that these processes' tests have made, and end what runs there."""
    for line in ip("netns", "list").splitlines():
        namespace = line.split()[0]
        made = re.fullmatch(r"restomod-(\d+)-\d", namespace)
        if made and of(int(made[1])):
            for pid in ip("netns", "pids", namespace).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", namespace)


@pytest.fixture
def nodes(tmp_path: Path):
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2: network namespaces stand for the nodes")
    remove(ended)  # of a run that was killed
    made = [
        Node(f"restomod-{os.getpid()}-{n}", f"10.0.0.{n + 1}", tmp_path / f"node-{n}")
        for n in range(2)
    ]
    first, second = made
    try:
        try:
            for node in made:
                ip("netns", "add", node.namespace)
                ip("netns", "exec", node.namespace, "true")
            peer = ("type", "veth", "peer", "name", LINK, "netns", second.namespace)
            ip("link", "add", LINK, "netns", first.namespace, *peer)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the right to make network namespaces: {error.stderr.strip()}")
        for node in made:
            node.folder.mkdir()
            ip("-n", node.namespace, "address", "add", f"{node.address}/24", "dev", LINK)
            ip("-n", node.namespace, "link", "set", "lo", "up")
            node.link("up")
        yield made
    finally:
        remove(lambda pid: pid == os.getpid())


def start(node: Node, rendezvous: Node, *words: object) -> subprocess.Popen:
    """Start torchrun's agent of a node that runs one rank."""
    command = [
        *("ip", "netns", "exec", node.namespace, Path(sys.executable).with_name("torchrun")),
        *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{rendezvous.address}:29400"),
        # Names do not resolve here, so torchrun cannot tell that the address is its own.
        *("--rdzv-conf", f"is_host={int(node is rendezvous)}", "--local-addr", node.address),
        *(ROOT / "train.py", *words),
    ]
    with (node.folder / "log").open("w") as log:
        return subprocess.Popen(
            command,
            cwd=node.folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "GLOO_SOCKET_IFNAME": LINK},
        )


def test_job_goes_on_by_itself_after_its_link_was_cut(
    tiny: Tiny, train: Trainings, tmp_path: Path, nodes: list[Node]
):
    recipe = tiny.write(tmp_path / "recipe.yaml", phases__slots=40 * 4 * 512)
    code, text = train(recipe, f"runs_dir={tmp_path}", "run_name=unbroken", world_size=2)
    assert code == 0, text
    store = tmp_path / "store"  # stands for an object store, which either node reaches at all times
    words = ("runs_dir=runs", "cache_dir=cache", "run_name=cut", f"store={store}")
    agents = [start(node, nodes[0], recipe, *words, "faults.hang_timeout=15s") for node in nodes]

    def wait_for(what) -> None:
        deadline = time.monotonic() + 240
        while not what():
            logs = [(node.folder / "log").read_text() for node in nodes]
            assert time.monotonic() < deadline, logs
            assert all(agent.poll() in (None, 0) for agent in agents), logs
            time.sleep(0.01)

    wait_for(lambda: any(store.glob("cut/checkpoints/*/manifest.json")))
    nodes[1].link("down")
    wait_for(lambda: all(node.hung and all(map(ended, node.hung)) for node in nodes))
    nodes[1].link("up")
    wait_for(lambda: all(agent.poll() is not None for agent in agents))
    lines = metrics(nodes[0].run)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert exactly(nodes[0].run) == exactly(tmp_path / "unbroken")
    (resume,) = metrics(nodes[0].run, "resume")
    assert resume["from_step"] >= 5
    assert resume["world_size"] == 2
    for node in nodes:
        assert not (node.run / "REQUEUE").exists()
        assert (node.run / "checkpoints" / "step-00000040").exists()

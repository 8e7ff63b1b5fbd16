"""`python -m restomod.launch.node`: what runs once on each node, between a scheduler and torchrun.

Enters: how many nodes there are and which one this is, where they meet, the recipe's words.
Leaves: an exit code that a scheduler understands, logs per rank and a record of the start in the
run folder. It checks the recipe once before ranks are spawned, passes requests to stop on to ranks,
turns their REQUEUE into exit code 75, and ends a node that is cut off from its peers. Imports no
torch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from restomod.errors import UserError
from restomod.launch.record import record_start
from restomod.train.faults.stopping import REQUEUE, REQUEUE_CODE, read_requeue
from restomod.train.launch import EXIT_CODE
from restomod.units import parse_duration

log = logging.getLogger("restomod.launch")

STOPPED_CODE = 130
PERSONS = ("STOP file", "SIGINT")
"""Reasons in REQUEUE that a person gave: nobody should start the run again by itself."""
NODE_RANKS = (
    "NODE_RANK",
    "SLURM_NODEID",
    "JOB_COMPLETION_INDEX",
    "PET_NODE_RANK",
    "SKYPILOT_NODE_RANK",
)
"""Where schedulers say which node this is."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
POLL_S, LOOK_S = 0.1, 1.0
"""Between looks at the agent, and at its ranks."""
LEAVE_S = 20.0
"""Time that the agent may take to end after its ranks have saved."""
END_S = 40.0
"""Time that torchrun may take to end its ranks."""
PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run this node to its end; return the exit code."""
    parser = argparse.ArgumentParser(prog="restomod.launch.node", description=__doc__)
    parser.add_argument("words", nargs="+", metavar="RECIPE.yaml|key=value")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ranks-per-node", type=int, required=True)
    parser.add_argument("--node-rank", type=int, help=f"default: one of {', '.join(NODE_RANKS)}")
    parser.add_argument("--rendezvous", required=True, metavar="HOST:PORT", help="on node 0")
    parser.add_argument("--restarts", type=int, default=0, help="torchrun's --max-restarts")
    parser.add_argument("--peers-timeout", type=parse_duration, default=900.0, metavar="TIME")
    parser.add_argument("--alive", type=Path, help="a file that is touched every second")
    arguments = parser.parse_args()
    if arguments.node_rank is None:
        arguments.node_rank = _node_rank(os.environ, arguments.nodes)
    logging.basicConfig(
        level=logging.INFO, format=f"[node {arguments.node_rank}] %(message)s", stream=sys.stderr
    )
    try:
        return Node(arguments).run()
    except UserError as error:
        if arguments.node_rank == 0:
            sys.stderr.write(f"error: {error}\n")
        return 2


class Node:
    """A node's torchrun, its ranks, and the requests to stop them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from restomod.recipe import check_world, load_recipe
        from restomod.strict import split_words

        self._arguments = arguments
        self._recipe = load_recipe(*split_words(arguments.words))
        world_size = arguments.nodes * arguments.ranks_per_node
        check_world(self._recipe, world_size, arguments.ranks_per_node)
        if not Path("train.py").is_file():
            raise UserError(
                f"{Path.cwd()} holds no train.py: nodes run in a checkout of the project"
            )
        self._folder = self._recipe.run_folder
        self._logs = self._folder / "logs" / f"node-{arguments.node_rank}"
        self._agent: subprocess.Popen | None = None
        self._request: signal.Signals | None = None
        self._told: set[int] = set()
        self._ran_at: float | None = None
        """When a rank was last seen."""
        self._cut_off = False

    def run(self) -> int:
        """Start torchrun, watch it, and return what it came to."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        before = _stamp(self._folder / REQUEUE)
        attempts = {path for path in self._logs.glob("*") if path.is_dir()}
        command = self._command()
        record_start(self._logs, self._arguments.words, command, os.environ)
        log.info("runs %s", " ".join(command))
        libc = ctypes.CDLL(None, use_errno=True)
        self._agent = subprocess.Popen(
            command,
            env=_environment(os.environ),
            start_new_session=True,
            preexec_fn=lambda: _shield(libc),
        )
        self._watch(self._agent, before, attempts)
        codes = _left_codes(self._logs, attempts)
        return self._verdict(self._agent.wait(), before, codes)

    def _command(self) -> list[str]:
        given = self._arguments
        host, _, port = given.rendezvous.rpartition(":")
        leads = given.node_rank == 0
        return [
            *(sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", str(given.nodes), "--nproc-per-node", str(given.ranks_per_node)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", given.rendezvous),
            *("--rdzv-id", self._recipe.run_name),
            # Said, since a node's own idea of its name may differ from its peers'.
            *("--rdzv-conf", f"is_host={int(leads)},join_timeout={int(given.peers_timeout)}"),
            *("--local-addr", host if leads else _own_address(host, int(port))),
            *("--max-restarts", str(given.restarts)),
            *("--log-dir", str(self._logs), "--redirects", "3", "--tee", "3"),
            *("--local-ranks-filter", "0"),
            # Other signals come to ranks from here; this one when this process has died.
            *("--signals-to-handle", "SIGHUP"),
            *("train.py", *given.words),
        ]

    def _watch(self, agent: subprocess.Popen, before: Any, attempts: set[Path]) -> None:
        """Return when the agent has ended, if need be by our hand."""
        looked, began = 0.0, time.monotonic()
        while agent.poll() is None:
            time.sleep(POLL_S)
            now = time.monotonic()
            if now - looked < LOOK_S and not self._request:
                continue
            looked = now
            if self._arguments.alive:
                self._arguments.alive.touch()
            ranks = _ranks(agent.pid)
            self._ran_at = now if ranks else self._ran_at
            saved = _stamp(self._folder / REQUEUE) not in (before, None)
            if self._request and not saved:
                self._pass_on(agent, ranks)
            if 2 in _left_codes(self._logs, attempts):
                _end(agent)  # which would start them again, in vain
            patience = LEAVE_S if saved else self._arguments.peers_timeout
            if not ranks and now - (self._ran_at or began) > patience:
                log.warning("no rank runs here for %.0f s: ending torchrun", patience)
                _end(agent)
                self._cut_off = True

    def _pass_on(self, agent: subprocess.Popen, ranks: Sequence[psutil.Process]) -> None:
        """Send the request to every rank that listens and has not had it; before there are ranks,
        there is nothing to save."""
        assert self._request is not None
        if not ranks and not self._ran_at:
            log.info("%s before ranks run: nothing to save", self._request.name)
            self._cut_off = True
            _end(agent)
        for rank in ranks:
            if rank.pid not in self._told and _listens(rank.pid):
                self._told.add(rank.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    rank.send_signal(self._request)
                log.info("%s passed on to process %d", self._request.name, rank.pid)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._request is None:
            # A terminal that goes away is no reason of its own.
            self._request = signal.Signals(signal.SIGTERM if number == signal.SIGHUP else number)
        elif number == signal.SIGINT:
            self._told.clear()  # a second Ctrl-C ends ranks at once

    def _verdict(self, code: int, before: Any, left: set[int]) -> int:
        if 2 in left:  # for which torchrun has asked the other ranks to stop
            return 2
        stamp = _stamp(self._folder / REQUEUE)
        if stamp not in (before, None):
            told = read_requeue(self._folder) or {}  # nothing where it cannot be read
            log.info("saved after step %s: %s", told.get("step", "?"), told.get("reason", "?"))
            return STOPPED_CODE if told.get("reason") in PERSONS else REQUEUE_CODE
        if self._cut_off:
            return STOPPED_CODE if self._request == signal.SIGINT else REQUEUE_CODE
        return code if code >= 0 else 1


def _node_rank(environment: Mapping[str, str], nodes: int) -> int:
    for name in NODE_RANKS:
        if name in environment:
            return int(environment[name])
    if nodes == 1:
        return 0
    raise SystemExit(f"which node is this? Give --node-rank, or one of {', '.join(NODE_RANKS)}")


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torchrun: without those that schedulers set for other ways to start
    ranks, which it and its ranks would believe."""
    strange = ("RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {
        name: value
        for name, value in environment.items()
        if name not in strange and not name.startswith(("PET_", "LOCAL_", "TORCHELASTIC_"))
    }


def _shield(libc: ctypes.CDLL) -> None:
    """In torchrun's process: leave requests to stop to this module, also where a scheduler signals
    every process of a job, and end when it has died. Ranks ignore them likewise until they
    listen."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGHUP)


def _own_address(host: str, port: int) -> str:
    """Return the address from which this node reaches the first one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:  # its name may not be known yet
        return socket.getfqdn()


def _ranks(agent: int) -> list[psutil.Process]:
    """Return the agent's children that are ranks."""
    try:
        return [child for child in psutil.Process(agent).children() if _is_rank(child)]
    except psutil.NoSuchProcess:  # the agent has just ended
        return []


def _is_rank(child: psutil.Process) -> bool:
    try:
        return child.status() != psutil.STATUS_ZOMBIE and "RANK" in child.environ()
    except psutil.Error:  # it has just ended
        return False


def _listens(pid: int) -> bool:
    """Return whether a process handles SIGUSR1: a rank that does not would be killed by it, or not
    hear it."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)
    except OSError:
        pass
    return False


def _end(agent: subprocess.Popen) -> None:
    """Let torchrun end its ranks, for which it takes up to 30 s; kill them if it does not."""
    first = _ranks(agent.pid)
    deadline = time.monotonic() + END_S
    agent.send_signal(signal.SIGHUP)
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(timeout=2)
            return
        if not any(_is_rank(rank) for rank in first):
            agent.send_signal(signal.SIGHUP)  # one between two starts gets lost
    for process in [psutil.Process(agent.pid), *_ranks(agent.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    agent.wait()


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written anew."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _left_codes(logs: Path, before: set[Path]) -> set[int]:
    """Return the exit codes that ranks of this start have left beside their logs. A file that is
    not whole, being written or for want of room, tells none."""
    starts = [path for path in logs.glob("*") if path.is_dir() and path not in before]
    texts = [file.read_text() for start in starts for file in start.rglob(EXIT_CODE)]
    return {int(text) for text in texts if text.endswith("\n")}


if __name__ == "__main__":
    sys.exit(main())

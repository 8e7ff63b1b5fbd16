"""A real Slurm on this machine: its controller and virtual nodes, with files and ports of their
own."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.ranks import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
REQUEUE_S = 5
"""After which a requeued job may start: by default two minutes, the life of Slurm's credentials."""
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire={expire}
CryptoType=crypto/munge
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=0
KillWait=60
SchedulerParameters=sched_interval=1,bf_interval=1
"""


def programs() -> list[str]:
    """Return those of Slurm's programs that are not here."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class Slurm:
    """The daemons; `environment` makes Slurm's commands use them."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self._folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.environment["PATH"] += os.pathsep + "/usr/sbin"
        self._daemons: list[subprocess.Popen] = []
        host = socket.gethostname().partition(".")[0]
        text = CONFIGURATION.format(
            host=host,
            user=pwd.getpwuid(os.getuid()).pw_name,
            folder=folder,
            expire=REQUEUE_S,
            port=free_port(),
        )
        names = [f"node{n}" for n in range(nodes)]
        for name in names:
            port = free_port()
            text += f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1\n"
        text += f"PartitionName=main Nodes={','.join(names)} Default=YES State=UP\n"
        (folder / "slurm.conf").write_text(text)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        munged = ["munged", "--foreground", "--force", f"--key-file={key}"]
        munged += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
        try:
            self._begin(munged, names)
        except BaseException:  # nobody else would end those that run
            self.close()
            raise

    def __call__(self, *command: str) -> str:
        """Run one of Slurm's commands; return what it prints."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self("scontrol", "show", "job", number)))

    def close(self) -> None:
        """End the daemons, and what is left of jobs."""
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            daemon.wait(timeout=30)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    process.kill()

    def _begin(self, munged: list[str], names: list[str]) -> None:
        self._start(*munged, f"--socket={self._folder}/munge.sock")
        until((self._folder / "munge.sock").exists, 10)
        self._start("slurmctld", "-D", "-i")
        for name in names:
            (self._folder / name).mkdir()
            self._start("slurmd", "-D", "-N", name)
        until(lambda: self("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == str(len(names)), 30)

    def _start(self, *command: str) -> None:
        with (self._folder / f"{command[0]}.out").open("a") as log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
            )


def until(holds: Callable[[], object], timeout_s: float) -> None:
    """Wait until `holds`; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.1)

"""A store through which ranks exchange small messages before there is a process group.

Unlike a process group it needs nobody's presence: rank 0 can see who has come, and say who has not.
Values are JSON. `tools/doctor/doctor.py` is the caller.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, Store, TCPStore

from restomod.errors import UserError
from restomod.tools.doctor.place import Place

POLL_S = 0.05


class Meeting:
    """The ranks of a launch; raises UserError if rank 0's address does not answer in time."""

    def __init__(self, place: Place, timeout_s: float) -> None:
        self._place = place
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun's agent on the first node has opened the store already.
        hosts = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not hosts:
            _wait_for(address, port, timeout_s)
        self.store: Store = TCPStore(
            address,
            port,
            is_master=hosts,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
        self._ranks = range(place.world_size)

    def post(self, key: str, value: Any) -> None:
        """Leave this rank's value under `key`."""
        self.store.set(f"doctor/{key}/{self._place.rank}", json.dumps(value))

    def collect(
        self, key: str, timeout_s: float, ranks: Sequence[int] | None = None
    ) -> dict[int, Any]:
        """Return the values that these ranks (all of them by default) have left under `key`, by
        rank; those that have not come after `timeout_s` are not among them."""
        names = {n: f"doctor/{key}/{n}" for n in (self._ranks if ranks is None else ranks)}
        deadline = time.monotonic() + timeout_s
        while not self.store.check(list(names.values())) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return {
            n: json.loads(self.store.get(name))
            for n, name in names.items()
            if self.store.check([name])
        }

    def hear(self, key: str, rank: int, timeout_s: float) -> Any:
        """Return what `rank` leaves under `key`; raises TimeoutError if it does not."""
        name = f"doctor/{key}/{rank}"
        try:
            self.store.wait([name], timedelta(seconds=timeout_s))
            return json.loads(self.store.get(name))
        except (DistStoreError, RuntimeError) as error:
            raise TimeoutError(f"nothing came from rank {rank}: {error}") from error


def _wait_for(address: str, port: int, timeout_s: float) -> None:
    """Wait for a listener; torch's own attempt fails with pages of C++ frames."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((address, port), timeout=timeout_s).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{socket.gethostname()}: rank 0 does not answer at {address}:{port} within "
                    f"{timeout_s:g} s: {error}; check that it was started, MASTER_ADDR, and that "
                    "the network lets the port through"
                ) from error
            time.sleep(POLL_S)

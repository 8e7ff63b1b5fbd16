"""`restomod doctor`: checks of the nodes before a run, on all ranks, told by rank 0.

Started as `train.py` is: alone, or on every rank by torchrun or composer. Each rank measures itself
(`probe.py`) and posts that; rank 0 sees who has come, and only if all have, they measure what joins
them (`bandwidth.py`). Rank 0 judges (`nodes.py`, `network.py`) and prints. Nobody waits without a
deadline, and no rank ends before rank 0 has told it how: a launcher kills the others when one ends.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from restomod.config import Recipe
from restomod.errors import UserError
from restomod.tools.doctor.bandwidth import Network, measure_network
from restomod.tools.doctor.meeting import Meeting
from restomod.tools.doctor.network import (
    check_all_reduce,
    check_clocks,
    check_in_node,
    check_network,
    check_pairs,
    check_ranks,
    check_shared,
)
from restomod.tools.doctor.nodes import (
    check_devices,
    check_folder,
    check_matmul,
    check_memory,
    check_open_files,
    check_recipe,
    check_shared_memory,
    check_simple,
    check_versions,
)
from restomod.tools.doctor.place import Place, find_place, is_even
from restomod.tools.doctor.probe import Facts, Folder, existing, measure, within
from restomod.tools.doctor.verdict import FAILED, OK, WARNING, Check

log = logging.getLogger(__name__)

PINGS = 5
PATIENCE = 4
"""Deadlines of rank 0, one after the other, that the others may have to wait for."""
GRACE_S = 10.0
"""Added to what a rank may take, before it counts as silent."""
SEEN_S = 5.0
"""Time that a new file may take to show on other nodes: NFS caches what a folder holds."""
WIDTH = 100


@dataclass
class Report:
    """What rank 0 has found out."""

    place: Place
    checks: list[Check] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    networks: dict[int, Network] = field(default_factory=dict)
    stuck: bool = False
    """Whether a thread of this process hangs, so that it must not wait for its threads' end."""

    @property
    def code(self) -> int:
        """Exit code: 2 if something failed."""
        return 2 if any(check.state == FAILED for check in self.checks) else 0

    def text(self) -> str:
        """Return the table."""
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            first = f"{check.state:<8} {check.name:<{width}}  "
            below = " " * len(first)
            lines += textwrap.wrap(
                check.measured,
                WIDTH,
                initial_indent=first,
                subsequent_indent=below,
                break_long_words=False,
                break_on_hyphens=False,
            )
            if check.state != OK:
                lines += textwrap.wrap(
                    check.advice,
                    WIDTH,
                    initial_indent=f"{below}-> ",
                    subsequent_indent=f"{below}   ",
                    break_on_hyphens=False,
                )
        states = [check.state for check in self.checks]
        counts = ", ".join(f"{states.count(s)} {s}" for s in (OK, WARNING, FAILED))
        return "\n".join([*lines, counts]) + "\n"

    def json(self) -> str:
        """Return checks and all that was measured as one JSON object."""
        return (
            json.dumps(
                {
                    "code": self.code,
                    "world_size": self.place.world_size,
                    "checks": [dataclasses.asdict(check) for check in self.checks],
                    "ranks": [fact.plain() for fact in self.facts],
                    "network": {n: dataclasses.asdict(v) for n, v in self.networks.items()},
                }
            )
            + "\n"
        )


def doctor(
    recipe: Recipe | None,
    recipe_problem: str,
    timeout_s: float,
    write: Callable[[str], object],
    as_json: bool = False,
) -> tuple[int, bool]:
    """Check the nodes; return the exit code and whether a thread hangs, so that the process must
    not wait for its end. Rank 0 gives its report to `write`.

    `recipe_problem` is why this rank could not read the recipe. `timeout_s` is what a rank has to
    answer, at each stage.
    """
    place = find_place()
    if place.world_size == 1:
        report = Report(place, facts=[measure(recipe, recipe_problem, place, timeout_s)])
        report.checks = judge_nodes(report.facts, recipe)
        write(report.json() if as_json else report.text())
        return report.code, False
    try:
        meeting = Meeting(place, timeout_s)
        meeting.post("here", dataclasses.asdict(place))
        if place.rank:
            return _follow(meeting, place, recipe, recipe_problem, timeout_s)
    except (UserError, TimeoutError) as error:
        log.warning("%s", error)
        return 2, True
    report = _lead(meeting, place, recipe, timeout_s)
    write(report.json() if as_json else report.text())
    meeting.post("code", report.code)
    meeting.collect("bye", GRACE_S, [fact.place.rank for fact in report.facts if fact.place.rank])
    return report.code, report.stuck or not _leave()


def _follow(
    meeting: Meeting, place: Place, recipe: Recipe | None, recipe_problem: str, timeout_s: float
) -> tuple[int, bool]:
    """Do what rank 0 asks for; return its exit code and whether a thread hangs."""
    facts = measure(recipe, recipe_problem, place, timeout_s)
    meeting.post("facts", facts.plain())
    patience_s = PATIENCE * (timeout_s + GRACE_S)
    order = meeting.hear("go", 0, patience_s)
    network = Network()
    if order["go"]:
        if place.leader:
            for n in range(PINGS):
                meeting.hear(f"ping/{place.rank}/{n}", 0, patience_s)
                meeting.post(f"pong/{n}", time.time())
            meeting.post("sees", not order["token"] or _sees(Path(order["token"])))
        network = measure_network(place, meeting.store, facts.device, timeout_s, order["even"])
        meeting.post("network", dataclasses.asdict(network))
    code = meeting.hear("code", 0, patience_s)
    meeting.post("bye", True)
    return code, network.stuck or not _leave()


def _lead(meeting: Meeting, place: Place, recipe: Recipe | None, timeout_s: float) -> Report:
    report = Report(place)
    here = {n: Place(**v) for n, v in meeting.collect("here", timeout_s).items()}
    meeting.post("facts", measure(recipe, "", place, timeout_s).plain())
    answers = meeting.collect("facts", timeout_s + GRACE_S, sorted(here))
    report.facts = [Facts.from_plain(plain) for _, plain in sorted(answers.items())]
    report.checks = [check_ranks(here, sorted(answers), place)]
    report.checks += judge_nodes(report.facts, recipe)
    devices = {fact.device for fact in report.facts}
    go = len(answers) == place.world_size and len(devices) == 1 and "" not in devices
    if not go:
        meeting.post("go", {"go": False})
        return report
    leaders = [fact for fact in report.facts if fact.place.leader]
    others = [fact.place.rank for fact in leaders if fact.place.rank]
    even = is_even([fact.place for fact in report.facts])
    token = _make_token(recipe) if recipe else None
    try:
        meeting.post("go", {"go": True, "even": even, "token": str(token or "")})
        offsets = _clocks(meeting, others, timeout_s)
        sees = meeting.collect("sees", timeout_s + GRACE_S, others)
    finally:
        if token:
            token.unlink(missing_ok=True)
    network = measure_network(place, meeting.store, devices.pop(), timeout_s, even)
    report.stuck = network.stuck
    meeting.post("network", dataclasses.asdict(network))
    found = meeting.collect("network", 2 * timeout_s + GRACE_S)
    report.networks = {n: Network(**plain) for n, plain in sorted(found.items())}
    report.checks += judge_network(report, leaders, offsets, sees if token else {})
    return report


def judge_nodes(facts: Sequence[Facts], recipe: Recipe | None) -> list[Check]:
    """Return the verdicts on what each rank and node has measured by itself."""
    checks: list[Check | None] = [
        check_recipe(facts),
        check_devices(facts),
        check_versions(facts),
        check_matmul(facts),
        check_memory(facts),
    ]
    leaders = [fact for fact in facts if fact.place.leader]
    if leaders:
        checks += [check_shared_memory(leaders), check_open_files(facts)]
    opened = [fact for fact in leaders if fact.run_folder and fact.cache_folder]
    if recipe and opened:
        first = opened[0]
        data = f"{first.streams} data sets opened in {first.seconds.get('data', 0):.1f} s"
        checks += [
            check_simple("compute", opened, "attention kernel and compiler are there", "see there"),
            check_folder("run folder", opened, lambda fact: fact.run_folder or Folder("")),
            check_folder("cache folder", opened, lambda fact: fact.cache_folder or Folder("")),
            check_simple(
                "data", opened, data, "mend paths, credentials or the network on these nodes"
            ),
        ]
        if first.store:
            took = first.seconds.get("store", 0)
            checks.append(
                check_simple(
                    "store",
                    opened,
                    f"{first.store}: listed, written and deleted in {took:.1f} s",
                    "check address, credentials and rights of the store on these nodes",
                )
            )
    elif not recipe:
        checks.append(
            Check("recipe", OK, "none given: its folders, data, memory and store are not checked")
        )
    return [check for check in checks if check]


def judge_network(
    report: Report,
    leaders: Sequence[Facts],
    offsets: Mapping[int, tuple[float, float]],
    sees: Mapping[int, bool],
) -> list[Check]:
    """Return the verdicts on what joins the ranks."""
    checks: list[Check | None] = []
    if len(leaders) > 1:
        checks.append(check_clocks({0: (0.0, 0.0), **offsets}, leaders))
        if sees:
            checks.append(check_shared(sees, leaders, leaders[0].store))
    broken = check_network(report.networks, report.facts)
    if broken:
        checks.append(broken)
    else:
        gradients = max(fact.needs.gradients for fact in report.facts)
        checks += [
            check_all_reduce(report.networks, gradients),
            check_in_node(report.networks, leaders),
            check_pairs(report.networks, report.facts),
        ]
        if not is_even([fact.place for fact in report.facts]):
            checks.append(
                Check(
                    "links between nodes",
                    WARNING,
                    "not compared: nodes run different numbers of ranks",
                    "start as many ranks on each node",
                )
            )
    return [check for check in checks if check]


def _clocks(
    meeting: Meeting, leaders: Sequence[int], timeout_s: float
) -> dict[int, tuple[float, float]]:
    """Return by rank how many seconds its clock is ahead of ours, and half the round trip in which
    that was asked, the shortest of a few; ranks that do not answer are left out."""
    offsets: dict[int, tuple[float, float]] = {}
    for rank in leaders:
        with suppress(TimeoutError):
            for n in range(PINGS):
                sent = time.time()
                meeting.post(f"ping/{rank}/{n}", None)
                theirs = meeting.hear(f"pong/{n}", rank, timeout_s)
                back = time.time()
                offset, half = theirs - (sent + back) / 2, (back - sent) / 2
                if rank not in offsets or half < offsets[rank][1]:
                    offsets[rank] = offset, half
    return offsets


def _make_token(recipe: Recipe) -> Path | None:
    """Leave a file where the run folder will be; None if that fails, which another check tells."""
    try:
        token = existing(Path(recipe.runs_dir).resolve()) / f".restomod-doctor-{uuid.uuid4().hex}"
        token.touch()
        return token
    except OSError:
        return None


def _sees(token: Path) -> bool:
    deadline = time.monotonic() + SEEN_S
    while not token.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _leave() -> bool:
    """Leave the process group; return whether that succeeded."""
    try:
        if dist.is_initialized():
            within(GRACE_S, dist.destroy_process_group)
    except Exception:
        return False
    return True

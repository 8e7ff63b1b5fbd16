"""Requests to stop a run: signals, a time limit, a STOP file. All ranks stop at the same step.

A request is only noted when it arrives. The step in progress is finished; before the next one,
which a rank that still waits for data gives up, all ranks agree (`Stopper.agree`), save, leave
REQUEUE in the run folder and exit. Where nothing would be lost (before the first step, or in a
first step that compiles) the request breaks in at once as `StopRequested`; or, where the main
thread does not come back to Python, as it waits for a rank that has left, it ends the process.
`commands.py` makes the Stopper, `stoppable.py` asks it, `builder.py` acts on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from restomod.train.launch import leave_code

log = logging.getLogger(__name__)

STOP, REQUEUE = "STOP", "REQUEUE"
"""Files of a run folder: stops the run when it appears; says that a run wants to go on."""
STOP_FILE = "STOP file"
REASONS = ("", "SIGTERM", "SIGUSR1", "SIGINT", "stop_after", STOP_FILE, "lost launcher")
"""In the order in which ranks that have different ones settle on the last."""
POLL_S = 0.5
DEAF_S = 5.0
"""Left to the main thread to hear of a request that may break in; launchers kill after 30."""
SAME_PRESS_S = 1.0
"""A launcher passes Ctrl-C on to ranks that have it from the terminal already: twice within so long
is once."""
REQUEUE_CODE = 75
STOPPED, FAILED = "restomod/stop", "restomod/failed"
"""Keys in the ranks' store: a reason to stop, the exit code of a rank that fails."""


class StopRequested(BaseException):
    """Ends training; no Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, reason: str, agreed: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.agreed = agreed
        """Whether all ranks stop before the same step, and save; else there is nothing to save."""
        self.step = 0
        """Steps that the saved run has done."""


class Stopper:
    """Notes requests to stop, on every rank."""

    def __init__(self) -> None:
        self.requested = ""
        """The reason, one of REASONS; empty as long as nothing asks to stop."""
        self._breaks_in = False
        self._others_may_leave = False
        """Whether another rank may have left without agreeing: it may have been broken into."""
        self._interrupted_at = -float("inf")
        self._group: Any = None
        self._store: Any = None
        self._folder: Path | None = None
        self._deadline = float("inf")
        self._launcher = 0
        """Process id of torchrun's agent, which starts ranks anew when some end; 0 without one."""
        self._ended = threading.Event()
        self._before: dict[int, Any] = {}
        self._arrived = -1
        """Read end of a pipe to which Python writes the number of each signal as it arrives, also
        while the main thread is where no handler can run."""
        self._leave: Callable[[str], int] = lambda reason: 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stopper]:
        """Handle SIGTERM, SIGUSR1 and SIGINT until the end of the block; note them at first."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # handlers are the main thread's to set
            return
        self._arrived, written = os.pipe()
        for end in (self._arrived, written):
            os.set_blocking(end, False)
        wakeup = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, self._on_signal)
        try:
            yield self
        finally:
            self._ended.set()
            signal.set_wakeup_fd(wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def staying(self) -> Iterator[None]:
        """Keep our handlers while the block imports: Composer's import sets some of its own, which
        exit at once and save nothing."""
        original = signal.signal
        signal.signal = lambda number, handler: signal.getsignal(number)  # type: ignore[assignment]
        try:
            yield
        finally:
            signal.signal = original

    def ignore(self) -> None:
        """Leave SIGTERM and SIGUSR1 ignored when `listening` ends: a launcher sends SIGTERM to the
        ranks that leave a little later than the first one, and their exit code must stay theirs."""
        self._breaks_in = False
        for number in self._before.keys() - {signal.SIGINT}:
            self._before[number] = signal.SIG_IGN

    def watch(self, folder: Path, deadline: float, leave: Callable[[str], int]) -> None:
        """Stop, too, when STOP appears in `folder`, at `deadline` (monotonic seconds), and when
        torchrun was killed: its ranks would meet those of a job begun anew.

        `leave` says in the folder that the run stops for a reason, and returns the exit code.
        """
        self._folder, self._deadline, self._leave = folder, deadline, leave
        if "TORCHELASTIC_RUN_ID" in os.environ:
            self._launcher = os.getppid()
        threading.Thread(target=self._poll, daemon=True, name="stopper").start()

    def join(self, group: Any) -> None:
        """Share requests with the other ranks of a gloo group of its own from here on; None: there
        are none."""
        if group is None:
            return
        import torch.distributed as dist

        self._group = group
        # A client of its own: the default's may be busy in the main thread.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()

    def agree(self) -> str:
        """Return the reason for which some rank wants to stop, if one does; all ranks call it."""
        if self._group is not None:
            import torch
            import torch.distributed as dist

            code = torch.tensor(REASONS.index(self.requested))
            dist.all_reduce(code, dist.ReduceOp.MAX, group=self._group)
            self._others_may_leave = False
            reason = REASONS[int(code)]
            if reason and not self.requested:
                log.info("%s: all ranks save now and stop", reason)
            # A request that arrived meanwhile is told next time: nothing may take it back.
            self.requested = reason or self.requested
            return reason
        return self.requested

    def tell(self) -> None:
        """Let the other ranks know before this process ends without them: by the store, or, before
        they have joined, by the STOP file, which this process takes away when it ends."""
        by_file = self.requested == STOP_FILE and int(os.environ.get("WORLD_SIZE", "1")) > 1
        if by_file or self._store is not None:
            time.sleep(4 * POLL_S)

    def hold(self, lossless: bool = False) -> None:
        """Only note requests from here on; or, if nothing can be lost, let them break in."""
        self._breaks_in = lossless
        self._others_may_leave |= lossless
        self._break_in()

    def _break_in(self) -> None:
        if self.requested and self._breaks_in:
            self._breaks_in = False
            raise StopRequested(self.requested, agreed=False)

    @contextlib.contextmanager
    def leaving_together(self) -> Iterator[None]:
        """Raise StopRequested where the block fails since other ranks, asked to stop as this one
        is, have left. After a first agreement it means that one has failed."""
        try:
            yield
        except RuntimeError as error:
            self._breaks_in = False
            if is_lost_rank(error) and self._others_may_leave:
                self.requested = self.requested or self._found()  # a busy rank polls late
                if self.requested:
                    raise StopRequested(self.requested, agreed=False) from error
            raise

    def fail(self, code: int) -> None:
        """Tell the other ranks, which their launcher will ask to stop, that this one fails."""
        self._breaks_in = False
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the first rank, which has it, may be gone
                self._store.set(FAILED, str(code))

    def others_code(self) -> int:
        """Return the exit code of a rank that has failed; 0 if none has said so."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):
                if self._store.check([FAILED]):
                    return int(self._store.get(FAILED))
        return 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            now = time.monotonic()
            if now - self._interrupted_at > SAME_PRESS_S and self._interrupted_at > 0:
                os._exit(130)
            self._interrupted_at = now
        if not self.requested:
            self.requested = name
            # Not by the logger, whose lock the main thread may hold.
            again = "; Ctrl-C once more ends it at once" if name == "SIGINT" else ""
            os.write(2, f"{name}: the run saves after this step and stops{again}\n".encode())
        self._break_in()

    def _poll(self) -> None:
        told, arrived, deaf_from = False, "", float("inf")
        while not self._ended.wait(POLL_S):
            if not arrived and (arrived := self._signal()):
                deaf_from = time.monotonic() + DEAF_S
            reason = self.requested or arrived
            if not reason:
                self._request(self._found())
            elif not told and self._store is not None:
                # Ranks whose first step compiles do not come to `agree` for minutes.
                with self._reachable():
                    self._store.set(STOPPED, reason)
                told = True
            if self._breaks_in and time.monotonic() > deaf_from:
                self._end(reason)

    def _signal(self) -> str:
        """Return the signal that has asked to stop since the last call, heard by the main thread or
        not; empty if none has."""
        with contextlib.suppress(BlockingIOError):
            arrived = [n for n in os.read(self._arrived, 64) if n in self._before]
            return signal.Signals(arrived[0]).name if arrived else ""
        return ""

    def _end(self, reason: str) -> None:
        """End the process in the place of a main thread that does not hear what may break in."""
        code = self.others_code()  # for which the launcher asks: to go on would fail again
        if not code:
            log.info("%s: ends while it waits for other ranks, with nothing to save", reason)
            try:
                code = self._leave(reason)
            except OSError as error:
                log.error("%s cannot be written: %s", self._folder, error)
                code = 1
        os._exit(leave_code(code, os.environ))

    def _found(self) -> str:
        if time.monotonic() > self._deadline:
            return "stop_after"
        if self._folder is not None and (self._folder / STOP).exists():
            return STOP_FILE
        if self._launcher and os.getppid() != self._launcher:
            return "lost launcher"
        with self._reachable():
            if self._store is not None and self._store.check([STOPPED]):
                return str(self._store.get(STOPPED).decode())
        return ""

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        """Do without the store once it is gone: with the launcher, or with a node whose loss the
        next step shows."""
        try:
            yield
        except RuntimeError:
            self._store = None

    def _request(self, reason: str) -> None:
        if reason:
            log.info("%s: the run saves after this step and stops", reason)
            self.requested = reason
            # To break in from the handler, wherever the main thread is.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def is_lost_rank(error: BaseException) -> bool:
    """Return whether an error says that another rank has gone."""
    if not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "onnection" in str(error)


def leave_requeue(folder: Path, reason: str, step: int) -> None:
    """Say in the run folder that the run was stopped after `step` steps and wants to go on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP).unlink(missing_ok=True)
    # Whole at any time: with a shared folder, every node's first rank writes it.
    part = folder / f".{REQUEUE}-{uuid.uuid4().hex}"
    part.write_text(json.dumps({"reason": reason, "step": step}) + "\n")
    part.replace(folder / REQUEUE)


def read_requeue(folder: Path) -> dict[str, Any] | None:
    """Return what a run folder's REQUEUE says; None where there is none, nothing where it cannot be
    read."""
    try:
        told = json.loads((folder / REQUEUE).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def clear_requeue(folder: Path) -> None:
    """Take back what an earlier process left: this one goes on."""
    (folder / REQUEUE).unlink(missing_ok=True)


def exit_code() -> int:
    """Return the code of a rank that saved: REQUEUE_CODE, or 0 under torchrun, which counts any
    other as a failure and hides it."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else REQUEUE_CODE

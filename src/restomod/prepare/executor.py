"""Tasks on all cores of a machine, or on a Ray cluster: who does them never shows in the output.

In: a function, a `Job`, and numbered tasks of a stage. Out: every task's result, in order. A task
writes its files whole and its result last, so what a killed job had finished is not done again; a
task whose worker dies is begun anew, a few times. An exception in a task ends the job with the
task's traceback. `pipeline.py` is the caller.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol

from restomod.errors import UserError
from restomod.prepare.atomic import read_json, write_json
from restomod.prepare.config import ExecutionConfig
from restomod.prepare.job import Job

logger = logging.getLogger(__name__)
Task = tuple[Callable[..., dict[str, Any]], Job, str, int, tuple[Any, ...]]
"""Function, job, stage, the task's number, and its arguments."""
LOG_EVERY_S = 30.0
CONNECT_TIMEOUT_S = 10.0
QUEUED_PER_CORE = 2
"""Tasks handed out to a Ray cluster."""


class Executor(Protocol):
    """Does tasks, in any order."""

    def run(self, tasks: list[Task]) -> Iterator[int]:
        """Yield the numbers of tasks as they are done."""
        ...


def run_stage(
    executor: Executor,
    function: Callable[..., dict[str, Any]],
    job: Job,
    stage: str,
    arguments: Mapping[int, tuple[Any, ...]],
) -> list[dict[str, Any]]:
    """Do `function(job, *arguments[n])` for every n whose result is not there yet; return all
    results in the order of n."""
    open_tasks: list[Task] = [
        (function, job, stage, number, given)
        for number, given in arguments.items()
        if not job.result_file(stage, number).is_file()
    ]
    done = len(arguments) - len(open_tasks)
    if done:
        logger.info("%s: %d of %d tasks are done already", stage, done, len(arguments))
    for _ in _shown(executor.run(open_tasks), stage, len(open_tasks)):
        pass
    return [read_json(job.result_file(stage, number)) for number in arguments]


def perform(task: Task) -> int:
    """Do one task and record its result; return its number."""
    function, job, stage, number, arguments = task
    # A process for each core is what keeps all of them busy.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    write_json(job.result_file(stage, number), function(job, *arguments))
    return number


def _shown(done: Iterator[int], stage: str, total: int) -> Iterator[int]:
    """Pass on `done`, with a bar on a terminal and a few lines in a log."""
    from tqdm import tqdm

    on_terminal = sys.stderr.isatty()
    logged = time.monotonic()
    bar = tqdm(done, desc=stage, total=total, unit=" tasks", disable=not on_terminal)
    for count, number in enumerate(bar, start=1):
        yield number
        due = time.monotonic() - logged > LOG_EVERY_S
        if not on_terminal and (count == total or due):
            logger.info("%s: %d of %d tasks", stage, count, total)
            logged = time.monotonic()


def local_workers(config: ExecutionConfig) -> int:
    """Return how many processes of this machine do the tasks."""
    return config.workers or len(os.sched_getaffinity(0))


@contextmanager
def open_executor(config: ExecutionConfig) -> Iterator[Executor]:
    """Open what does the tasks: this process, more of them, or a Ray cluster."""
    workers = local_workers(config)
    if config.ray:
        yield RayExecutor(config)
    elif workers == 1:
        yield InProcess()
    else:
        pool = Processes(workers, config.attempts)
        try:
            yield pool
        finally:
            pool.close()


class InProcess:
    """Does one task after the other."""

    def run(self, tasks: list[Task]) -> Iterator[int]:
        before = os.environ.get("TOKENIZERS_PARALLELISM")
        try:
            for task in tasks:
                yield perform(task)
        finally:
            if before is None:
                os.environ.pop("TOKENIZERS_PARALLELISM", None)
            else:
                os.environ["TOKENIZERS_PARALLELISM"] = before


class Processes:
    """Processes, each with a pool of its own: when one dies, one task is to be begun anew."""

    def __init__(self, workers: int, attempts: int) -> None:
        self._attempts = attempts
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers

    def _submit(self, worker: int, task: Task) -> Future[int]:
        pool = self._pools[worker]
        if pool is not None:
            try:
                return pool.submit(perform, task)
            except BrokenProcessPool:  # it died without a task
                pool.shutdown()
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
        self._pools[worker] = pool
        with _ignoring_interrupts():  # inherited, so that Ctrl-C meets no half-started process
            return pool.submit(perform, task)

    def run(self, tasks: list[Task]) -> Iterator[int]:
        waiting = list(reversed(tasks))
        idle = list(reversed(range(len(self._pools))))
        lost: Counter[int] = Counter()
        pending: dict[Future[int], tuple[int, Task]] = {}
        while waiting or pending:
            while waiting and idle:
                worker, task = idle.pop(), waiting.pop()
                pending[self._submit(worker, task)] = worker, task
            ended, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in ended:
                worker, task = pending.pop(future)
                idle.append(worker)
                try:
                    number = future.result()
                except BrokenProcessPool:
                    lost[task[3]] += 1
                    _check_attempts(task, lost[task[3]], self._attempts)
                    logger.warning("%s, task %d: its worker died; it is begun anew", *task[2:4])
                    waiting.append(task)
                else:
                    yield number

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        self._pools = [None] * len(self._pools)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers are the main thread's to set
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_attempts(task: Task, lost: int, attempts: int) -> None:
    if lost >= attempts:
        raise UserError(
            f"{task[2]}, task {task[3]}: its worker died {lost} times, killed from outside or for "
            "want of memory; run with fewer execution.workers, or see the system's log. What is "
            "done is kept"
        )


def _end_with_parent() -> None:
    """End this process when its parent is gone, however that ended, and at Ctrl-C without a
    traceback, since the parent tells."""
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(130))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayExecutor:
    """A Ray cluster. Ray begins a task anew when its worker or node dies."""

    def __init__(self, config: ExecutionConfig) -> None:
        self._config = config

    def run(self, tasks: list[Task]) -> Iterator[int]:
        if not tasks:
            return
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not ray.is_initialized():
            address = self._config.ray
            try:
                _check_reachable(address)
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"execution.ray: {address}: no Ray cluster answers: {error}"
                ) from error
        retries = self._config.attempts - 1
        remote = ray.remote(num_cpus=1, max_retries=retries)(perform)
        waiting = list(reversed(tasks))
        pending: dict[Any, Task] = {}
        while waiting or pending:
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(pending) < QUEUED_PER_CORE * cores:
                pending[remote.remote(waiting[-1])] = waiting[-1]
                waiting.pop()
            ended, _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(ended[0])
            try:
                yield ray.get(ended[0])
            except RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from error
                raise
            except RayError:  # worker or node died, or the memory was full, every time
                _check_attempts(task, self._config.attempts, self._config.attempts)


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT, which Ray would wait minutes for."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()

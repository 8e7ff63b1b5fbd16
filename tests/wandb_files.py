"""Reads back what a W&B run has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import LEVELDBLOG_HEADER_LEN, DataStore


class WandbFile:
    """One file of a run, run-ID.wandb: what a process has written of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = ""
        self.rows: list[dict[str, Any]] = []
        """History, in order."""
        self.config: dict[str, Any] = {}
        self.metrics: list[tuple[str, str]] = []
        """Names, or patterns, and their axes."""
        self.artifacts: list[Any] = []
        self.alerts: list[Any] = []
        self.stats: set[str] = set()
        """Names of system metrics."""
        self.exit_code: int | None = None
        if path.stat().st_size < LEVELDBLOG_HEADER_LEN:
            return  # not written yet
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            self._add(record)

    def _add(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.id = record.run.run_id
            self._configure(record.run.config.update)
        elif kind == "config":
            self._configure(record.config.update)
        elif kind == "history":
            self.rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            self.metrics.append((name, record.metric.step_metric))
        elif kind == "artifact":
            self.artifacts.append(record.artifact)
        elif kind == "alert":
            self.alerts.append(record.alert)
        elif kind == "stats":
            self.stats |= {item.key for item in record.stats.item}
        elif kind == "exit":
            self.exit_code = record.exit.exit_code

    def _configure(self, updates: Any) -> None:
        for item in updates:
            self.config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)

    def tables(self, name: str) -> list[dict[str, Any]]:
        """Return the tables that were logged under a name, in order."""
        paths = [row[f"{name}/path"] for row in self.rows if f"{name}/path" in row]
        return [json.loads((self.path.parent / "files" / path).read_text()) for path in paths]


def wandb_files(run_folder: Path) -> list[WandbFile]:
    """Return a run's files, the oldest first."""
    return [WandbFile(path) for path in sorted(run_folder.glob("wandb/*run-*/run-*.wandb"))]

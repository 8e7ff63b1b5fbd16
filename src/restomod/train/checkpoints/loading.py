"""Reads what `saving.py` wrote, and others' checkpoints, without running code that somebody put
into them.

In: a checkpoint's folder that `manifest.verify` found whole. Out: tensors and numbers. A manifest
says that files are as they were written, not who wrote them, and torch.distributed.checkpoint keeps
its index and what is no tensor as pickles, which can call anything: here they make tensors' sizes
and types, and plain values, and nothing else. The only place that unpickles files.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from restomod.errors import UserError
from restomod.train.agreement import Group
from restomod.train.checkpoints.manifest import METADATA, STATE

_DCP = "torch.distributed.checkpoint"
_INDEX = {
    f"{_DCP}.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    f"{_DCP}.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),  # Python 3.13's name of it
}
"""What an index is made of."""


class StateReader(dcp.FileSystemReader):
    """Reads a checkpoint's `state/`; its index once, when it is made."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the index is damaged, or names what does not belong there."""
        super().__init__(folder / STATE)
        self._index = _read_index(folder)

    def read_metadata(self, *arguments: Any, **keywords: Any) -> Any:
        return self._index


def load_state(parts: dict[str, Any], reader: StateReader, group: Group = None) -> None:
    """Fill the tensors of `parts`, and replace its other values, with all ranks of a group.

    Raises UserError for a value that is more than plain, OSError for files that cannot be read.
    """
    try:
        dcp.load(
            parts,
            storage_reader=reader,
            planner=_Planner(),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:  # which is no Exception
        causes = [failure[0] for failure in error.failures.values()]
        told = (cause for cause in causes if isinstance(cause, UserError | OSError))
        raise next(told, RuntimeError(error)) from error


class _Planner(DefaultLoadPlanner):
    """Reads values that are no tensors as torch reads weights: without calling anything."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        try:
            content = torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{read_item.dest_index.fqn}: holds more than a plain value: {error}"
            ) from error
        plain = io.BytesIO()
        torch.save(content, plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or name in _INDEX.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _read_index(folder: Path) -> Any:
    try:
        with (folder / METADATA).open("rb") as file:
            index = _Unpickler(file).load()
        files = {Path(info.relative_path) for info in index.storage_data.values()}
    # What a damaged pickle raises is left open.
    except Exception as error:
        raise UserError(f"{folder / METADATA}: is no index of a checkpoint: {error}") from error
    if outside := sorted(str(path) for path in files if path.name != str(path)):
        raise UserError(f"{folder / METADATA}: names {outside[0]}, outside of its folder")
    return index


_WEIGHTS = {
    "collections": ("OrderedDict",),
    "torch": ("Size", "UntypedStorage"),
    "torch.storage": ("UntypedStorage",),
    "torch._utils": ("_rebuild_parameter", "_rebuild_tensor_v2"),
}
"""What tensors in a torch.save file are made of; storages' types are torch.load's to find."""


def load_foreign(file: Path) -> Any:
    """Return what others wrote with torch.save, on the CPU, tensors mapped from the file.

    Nothing that it names is imported or called, but for what tensors are made of: in the place of
    all else (generators' states, times, metrics, tokenizers) stands an `Unread`. Raises UserError
    for files of another kind.
    """
    wanted = "expected a checkpoint as torch.save writes it (not compressed, no older format)"
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file}: is no zip file; {wanted}")
    try:
        with zipfile.ZipFile(file) as archive:  # a TorchScript archive would be run
            if any(Path(name).name == "constants.pkl" for name in archive.namelist()):
                raise UserError(f"{file}: is a TorchScript archive; {wanted}")
        return torch.load(
            file, map_location="cpu", mmap=True, weights_only=False, pickle_module=_Foreign
        )
    except UserError:
        raise
    except Exception as error:  # what a damaged pickle raises is left open
        raise UserError(f"{file}: cannot be read: {error}; {wanted}") from error


class Unread:
    """Stands for a value of a foreign checkpoint that is no tensor and no plain value."""

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def _ignore(self, *_: Any, **__: Any) -> Unread:
        return self

    __call__ = __setitem__ = __setstate__ = append = extend = add = _ignore


class _Foreign:
    """What torch.load takes for the module `pickle`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if dtype or name in _WEIGHTS.get(module, ()):
                return super().find_class(module, name)
            return Unread

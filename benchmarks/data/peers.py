"""What others have between shards and batches: Streaming, and Hugging Face's datasets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.documents import STREAMS, tokenizer_folder

CONTEXT = 1024
BATCH = 32


def collator(folder: Path) -> Callable[[list[Any]], tuple[Any, int]]:
    """Return what pads and masks a batch as transformers does, and counts its tokens."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder(folder)))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def batch(samples: list[Any]) -> tuple[Any, int]:
        ids = [[cls, *np.asarray(s["tokens"]).tolist()[: CONTEXT - 2], sep] for s in samples]
        return collate([{"input_ids": i} for i in ids]), sum(map(len, ids))

    return batch


def masker(folder: Path) -> Callable[[list[Any]], tuple[Any, int]]:
    """Return what masks blocks of one length as transformers does, and counts their tokens."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder(folder)))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)

    def batch(samples: list[Any]) -> tuple[Any, int]:
        return collate(samples), sum(len(sample["input_ids"]) for sample in samples)

    return batch


def loaded(dataset: Any, collate: Callable[[list[Any]], tuple[Any, int]]) -> Iterator[int]:
    """Yield the tokens of a DataLoader's batches, epoch after epoch."""
    from torch.utils.data import DataLoader

    while True:
        for _, tokens in DataLoader(
            dataset, batch_size=BATCH, num_workers=1, collate_fn=collate, prefetch_factor=8
        ):
            yield tokens


def streaming_batches(folder: Path, root: Path) -> Iterator[int]:
    from streaming import Stream, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(
        streams=[
            Stream(local=str(root / name), proportion=share) for name, share in STREAMS.items()
        ],
        shuffle=True,
        batch_size=BATCH,
    )
    return loaded(dataset, collator(folder))


def as_arrow(folder: Path, root: Path) -> Path:
    """Write the documents of all streams as a folder of datasets'."""
    import datasets
    from streaming.base.format.mds.reader import MDSReader

    datasets.disable_progress_bars()

    def samples() -> Iterator[dict[str, Any]]:
        for name in STREAMS:
            for entry in json.loads((root / name / "index.json").read_text())["shards"]:
                reader = MDSReader.from_json(str(root / name), None, entry)
                for n in range(entry["samples"]):
                    yield {"tokens": reader[n]["tokens"]}

    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"))})
    made = datasets.Dataset.from_generator(
        samples, features=features, cache_dir=str(folder / "datasets")
    )
    made.save_to_disk(str(folder / "arrow"))
    return folder / "arrow"


def padded_batches(folder: Path, arrow: Path) -> Iterator[int]:
    import datasets

    dataset = datasets.load_from_disk(str(arrow)).with_format("numpy").shuffle(seed=0)
    return loaded(dataset, collator(folder))


def in_blocks(folder: Path, arrow: Path) -> tuple[Path, float]:
    """Join and cut the documents, shuffled, as transformers' run_mlm does; return the folder, and
    the tokens a second of it."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_folder(folder)))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id

    def cut(documents: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined: list[int] = []
        for tokens in documents["tokens"]:
            joined += [cls, *tokens, sep]
        whole = len(joined) // CONTEXT * CONTEXT
        return {"input_ids": [joined[n : n + CONTEXT] for n in range(0, whole, CONTEXT)]}

    dataset = datasets.load_from_disk(str(arrow)).shuffle(seed=0)
    started = time.perf_counter()
    blocks = dataset.map(cut, batched=True, remove_columns=["tokens"])
    rate = len(blocks) * CONTEXT / (time.perf_counter() - started)
    blocks.save_to_disk(str(folder / "blocks"))
    return folder / "blocks", rate


def block_batches(folder: Path, blocks: Path) -> Iterator[int]:
    import datasets

    dataset = datasets.load_from_disk(str(blocks)).with_format("torch").shuffle(seed=1)
    return loaded(dataset, masker(folder))

"""Streams whose documents a class of the user's reads."""

import multiprocessing
import os
from dataclasses import dataclass

import numpy as np
import pytest

from restomod import extensions
from restomod.config import DataConfig, StreamConfig
from restomod.data.files import DamagedShardError
from restomod.data.own import OwnDataset
from restomod.errors import UserError
from restomod.recipe import load_recipe


@dataclass
class Source:
    counts: tuple = (2, 0, 3)
    version: str = "1"

    def shard_documents(self):
        if self.counts == "broken":
            raise OSError("no such table")
        return list(self.counts)

    def read(self, shard, document):
        return {0: [7, 8, 9], 2: np.array([11, 12], np.uint16)}[shard][document:]

    def fingerprint(self):
        return self.version


@pytest.fixture
def opened(monkeypatch):
    def opened(source, **config):
        monkeypatch.setattr("restomod.data.own.of_this_process", lambda given: source)
        return OwnDataset("mine", StreamConfig(source={"use": "my:Source"}, **config))

    return opened


def test_documents_are_read_and_their_tokens_estimated(opened):
    dataset = opened(Source())
    assert dataset.documents == 5
    assert dataset.tokens(0, 1).tolist() == [8, 9]
    assert dataset.attributes.tokens == 3 + 2 + 2 + 1
    assert dataset.opened == {0, 2}
    assert dataset.sample() == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert not dataset.cached


def test_another_version_and_other_counts_are_other_documents(opened):
    sources = [Source(), Source(version="2"), Source(counts=(2, 0, 2))]
    assert len({opened(source).fingerprint for source in sources}) == 3
    assert opened(Source()).fingerprint == opened(Source()).fingerprint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(counts="broken"), "my:Source (stream mine): OSError: no such table"),
        (Source(counts=()), "shard_documents returned []"),
        (Source(counts=(0,)), "shard_documents returned [0]"),
        (Source(counts=(3, -1)), "shard_documents returned [3, -1]"),
        (Source(counts=((1, 2), (3, 4))), "shard_documents returned [[1, 2], [3, 4]]"),
        (Source(version=""), "fingerprint returned nothing"),
    ],
)
def test_sources_that_say_nothing_usable_are_refused(opened, source, message):
    with pytest.raises(UserError) as error:
        opened(source)
    assert message in str(error.value)


@dataclass
class Maker(Source):
    def __post_init__(self):
        self.maker = os.getpid()

    def read(self, shard, document):
        return [self.maker]


def test_every_process_reads_with_an_instance_of_its_own(monkeypatch):
    """Connections and places in files do not survive a fork, as loaders' processes are."""
    monkeypatch.setattr(extensions, "_find", lambda name: Maker)
    dataset = OwnDataset("mine", StreamConfig(source={"use": "my:Maker"}))
    assert dataset.tokens(0, 0).tolist() == [os.getpid()]
    fork = multiprocessing.get_context("fork")
    found, answer = fork.Pipe(duplex=False)
    worker = fork.Process(target=lambda: answer.send(dataset.tokens(0, 0).tolist()))
    worker.start()
    assert found.recv() == [worker.pid]
    worker.join()


def test_what_cannot_be_read_is_a_damaged_shard(opened):
    dataset = opened(Source())
    with pytest.raises(DamagedShardError, match=r"stream mine\): shard 1: document 0: KeyError"):
        dataset.tokens(1, 0)


def test_a_source_that_a_process_cannot_make_is_no_damaged_shard(opened, monkeypatch):
    """Which `on_damaged_shard: skip` would leave out, one after the other."""
    dataset = opened(Source())

    def refuse(given):
        raise ConnectionError("too many connections")

    monkeypatch.setattr("restomod.data.own.of_this_process", refuse)
    with pytest.raises(ConnectionError, match="too many"):
        dataset.tokens(0, 0)


@pytest.mark.parametrize("found", [[[1, 2]], [0.5], None, {"text": "a"}])
def test_what_is_neither_text_nor_ids_is_refused(opened, found):
    source = Source()
    dataset = opened(source)
    source.read = lambda shard, document: found
    with pytest.raises(UserError, match=r"read returned .*; a text, or token ids"):
        dataset.tokens(0, 0)


def test_a_transform_of_ids_is_refused(opened):
    with pytest.raises(UserError, match="a transform takes text"):
        opened(Source(), transform={"use": "my:Transform"})


def test_texts_need_a_tokenizer(opened):
    source = Source()
    source.read = lambda shard, document: "text"
    with pytest.raises(UserError, match="text needs a tokenizer"):
        opened(source)


def test_short_documents_are_taken_off_the_estimate(opened, tiny, monkeypatch):
    from restomod.data.tokenizer import load_tokenizer

    monkeypatch.setattr("restomod.data.own.of_this_process", lambda given: Source())
    config = StreamConfig(source={"use": "my:Source"})
    tokenizer = load_tokenizer(str(tiny.folder / "tokenizer"))
    dataset = OwnDataset("mine", config, tokenizer, DataConfig(skip_shorter_than=2))
    assert dataset.attributes.tokens == 3 + 2 + 2


def test_a_stream_has_a_path_or_a_source(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "_find", lambda name: Source)
    recipe = tiny.write(tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=r"data.streams.code.source: a stream has a path or"):
        load_recipe([recipe], ["data.streams.code.source={use: 'my:Source'}"])
    own = ["data.streams.code.path=''", "data.streams.code.source={use: 'my:Source'}"]
    with pytest.raises(UserError, match=r"data.streams.code.column: nothing reads it with a sour"):
        load_recipe([recipe], [*own, "data.streams.code.column=text"])
    assert load_recipe([recipe], own).data.streams["code"].source == {"use": "my:Source"}

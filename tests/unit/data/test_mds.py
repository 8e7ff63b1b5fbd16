"""Data sets as others write them: every form gives the same documents and the same batches."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streaming import MDSWriter

from restomod.config import StreamConfig
from restomod.data.files import DamagedShardError
from restomod.data.loader import Loader
from restomod.data.mds import parse_index
from restomod.data.shards import ShardedDataset
from restomod.data.sources import open_sources
from restomod.data.tokenizer import load_tokenizer
from restomod.errors import UserError
from restomod.recipe import load_recipe
from restomod.tools.folder import describe_folder

SHARD_DOCUMENTS = 25
DIGESTS: dict = {}
"""Of data sets already read, by folder and overrides."""


def write(folder, columns, samples, **options):
    """Write shards of SHARD_DOCUMENTS each, whatever their size."""
    with MDSWriter(columns=columns, out=str(folder), size_limit=None, **options) as writer:
        for n, sample in enumerate(samples):
            if n and n % SHARD_DOCUMENTS == 0:
                writer.flush_shard()
                writer._reset_cache()
            writer.write(sample)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(str(tiny.folder / "tokenizer"))


@pytest.fixture(scope="module")
def texts(tiny):
    lines = (tiny.folder / "prose.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def documents(texts, tokenizer):
    """Ordinary ids."""
    return tokenizer.encode_batch(texts)


@pytest.fixture
def digests(tiny, tmp_path):
    """Train's first digests on a data set."""

    def of(folder, *overrides):
        if (folder, overrides) in DIGESTS:
            return DIGESTS[folder, overrides]
        path = tiny.write(
            tmp_path / "recipe.yaml",
            data__streams={"prose": {"path": str(folder)}},
            data__workers=0,
            phases__mixture={"prose": 1.0},
            evaluation__streams={},
            cache_dir=str(tmp_path / "cache"),
        )
        recipe = load_recipe([path], list(overrides))
        loader = Loader(recipe, open_sources(recipe))
        found = [loader.facts.digest for _, _ in zip(range(6), loader, strict=False)]
        return DIGESTS.setdefault((folder, overrides), found)

    return of


@pytest.fixture(scope="module")
def plain(tmp_path_factory, documents):
    """The data set that all others must equal."""
    samples = [{"tokens": ids.astype(np.uint16)} for ids in documents]
    folder = tmp_path_factory.mktemp("plain") / "mds"
    return write(folder, {"tokens": "ndarray:uint16"}, samples, hashes=["xxh64"])


def with_specials(tokenizer, ids):
    return np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])


def padded(tokenizer, ids):
    pads = np.full(7, tokenizer.pad_id)
    return np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id], pads])


FORMS = {
    "input_ids": ("input_ids", "ndarray:uint16", np.uint16, None),
    "uint32": ("tokens", "ndarray:uint32", np.uint32, None),
    "int64": ("tokens", "ndarray:int64", np.int64, None),
    "int32": ("input_ids", "ndarray:int32", np.int32, None),
    "type in the document": ("tokens", "ndarray", np.int64, None),
    "bytes of int64": ("input_ids", "bytes", np.int64, None),
    "bytes of uint32": ("input_ids", "bytes", np.uint32, None),
    "bytes of uint16": ("input_ids", "bytes", np.uint16, None),
    "specials": ("tokens", "ndarray:uint16", np.uint16, with_specials),
    "specials and padding": ("input_ids", "ndarray:uint32", np.uint32, padded),
    "bytes of int64, specials": ("input_ids", "bytes", np.int64, with_specials),
    "bytes of uint16, padding": ("input_ids", "bytes", np.uint16, padded),
}


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "with other columns"])
@pytest.mark.parametrize("form", FORMS)
def test_form_gives_the_same_batches(
    form, beside, tmp_path, tiny, documents, plain, digests, tokenizer
):
    name, encoding, dtype, around = FORMS[form]
    columns = {name: encoding}
    if beside:
        columns |= {"id": "str", "attention_mask": "bytes", "len": "int", "score": "float32"}
    samples = []
    for n, ids in enumerate(documents):
        stored = (around(tokenizer, ids) if around else ids).astype(dtype)
        sample = {name: stored.tobytes() if encoding == "bytes" else stored}
        if beside:
            sample |= {"id": "ü" * (n % 7), "attention_mask": b"\1" * n, "len": n, "score": 0.5}
        samples.append(sample)
    folder = write(tmp_path / "mds", columns, samples)
    facts = json.loads(describe_folder(str(folder), str(tiny.folder / "tokenizer"), True))
    assert facts["column_read"] == name
    assert facts["type"] == np.dtype(dtype).name
    assert facts["documents"] == len(documents)
    assert facts["stored_special_tokens"]["first"] == (1.0 if around else 0.0)
    assert facts["stored_special_tokens"]["last"] == (1.0 if around else 0.0)
    assert facts["stored_special_tokens"]["inside"] == (1.0 if around is padded else 0.0)
    assert digests(folder) == digests(plain)


def test_fixed_shape(tmp_path, documents, tokenizer, tiny):
    """Rows padded to one length, as sequences are often published."""
    fixed = [np.resize(ids, 40) for ids in documents]
    for n, ids in enumerate(fixed):
        ids[len(ids) - n % 20 :] = tokenizer.pad_id if n % 20 else ids[-1]
    columns = {"input_ids": "ndarray:uint16:40"}
    folder = write(tmp_path / "a", columns, [{"input_ids": i.astype(np.uint16)} for i in fixed])
    dataset = ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path, tokenizer)
    for n, ids in enumerate(fixed):
        expected = ids[: len(ids) - n % 20]
        assert np.array_equal(dataset.tokens(*divmod(n, SHARD_DOCUMENTS)), expected)


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (70_000,), (255,), (256,)])
@pytest.mark.parametrize("encoding", ["ndarray", "ndarray:uint16"])
def test_shape_in_the_document(tmp_path, shape, encoding):
    ids = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16)
    folder = write(tmp_path / "mds", {"tokens": encoding}, [{"tokens": ids}] * 2)
    dataset = ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path)
    assert np.array_equal(dataset.tokens(0, 1), ids.ravel())


@pytest.mark.parametrize("compression", ["zstd", "zstd:19", "gz", "br", "bz2", "snappy"])
def test_compressed_forms(compression, tmp_path, documents, plain, digests):
    samples = [{"tokens": ids.astype(np.uint16)} for ids in documents]
    columns = {"tokens": "ndarray:uint16"}
    folder = write(tmp_path / "mds", columns, samples, compression=compression)
    assert json.loads(describe_folder(str(folder), "", True))["compression"] == compression
    assert digests(folder) == digests(plain)
    if compression == "snappy":
        return  # unpacks anything, so that only a recorded hash tells
    shard = sorted(folder.glob("shard*"))[0]
    shard.write_bytes(shard.read_bytes()[:-9] + b"\xff" * 9)
    with pytest.raises(DamagedShardError, match=rf"{shard.name} .*the shard is damaged"):
        ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path / "anew").tokens(0, 0)


@pytest.mark.parametrize("column", ["text", "content", "my words"])
def test_text_is_tokenised_into_the_same_batches(
    column, tmp_path, tiny, texts, plain, digests, documents
):
    folder = write(
        tmp_path / "mds", {column: "str", "n": "int"}, [{column: t, "n": 1} for t in texts]
    )
    assert digests(folder) == digests(plain)
    facts = json.loads(describe_folder(str(folder), str(tiny.folder / "tokenizer"), True))
    assert (facts["holds"], facts["column_read"]) == ("text", column)
    assert facts["tokens"] == pytest.approx(sum(map(len, documents)), rel=0.3)
    assert facts["first_document"] == texts[0][:300]


def test_inspection_without_a_tokenizer(tmp_path, texts, documents, plain):
    text = write(tmp_path / "text", {"text": "str"}, [{"text": text} for text in texts])
    assert texts[0][:300] in describe_folder(str(text), "", False)
    ids = write(tmp_path / "ids", {"tokens": "bytes"}, [{"tokens": d.tobytes()} for d in documents])
    assert "name the tokenizer" in describe_folder(str(ids), "", False)
    shown = describe_folder(str(plain), "", False)
    assert "holds: token ids" in shown
    assert "type: uint16" in shown


def test_column_can_be_named(tmp_path, documents, texts):
    columns = {"text": "str", "tokens": "ndarray:uint16", "other": "ndarray:uint32"}
    samples = [
        {"text": text, "tokens": ids.astype(np.uint16), "other": ids[::-1].astype(np.uint32)}
        for text, ids in zip(texts, documents, strict=True)
    ]
    folder = write(tmp_path / "mds", columns, samples)
    for column, expected in (("", documents[0]), ("other", documents[0][::-1])):
        config = StreamConfig(path=str(folder), column=column)
        assert np.array_equal(ShardedDataset("s", config, tmp_path).tokens(0, 0), expected)
    with pytest.raises(UserError, match=r"no column nothing; there is .*text \(str\)"):
        ShardedDataset("s", StreamConfig(path=str(folder), column="nothing"), tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {"tokens": "json"},
        {"tokens": "pkl"},
        {"input_ids": "ndarray:float32"},
        {"a": "str", "b": "str"},
    ],
)
def test_columns_that_hold_no_documents_are_refused(tmp_path, columns):
    values = {"json": [1], "pkl": [1], "ndarray:float32": np.ones(3, np.float32), "str": "x"}
    sample = {name: values[encoding] for name, encoding in columns.items()}
    folder = write(tmp_path / "mds", columns, [sample])
    with pytest.raises(UserError, match=r"index\.json \(stream s\).*no column can be told"):
        ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path)


def test_bytes_that_are_no_ids_are_refused(tmp_path, tokenizer):
    samples = [{"tokens": b"no ids at all, but a sentence."}] * 3
    folder = write(tmp_path / "mds", {"tokens": "bytes"}, samples)
    with pytest.raises(UserError, match="column tokens is bytes, but they are no ids below 512"):
        ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("encoding", "dtype", "wrong"),
    [
        ("ndarray:int64", np.int64, 2**32 + 7),
        ("ndarray:int64", np.int64, 2**31),
        ("ndarray:int64", np.int64, -1),
        ("ndarray:uint64", np.uint64, 2**63 + 7),
        ("ndarray:uint32", np.uint32, 2**32 - 1),
        ("ndarray:int32", np.int32, -2),
        ("ndarray:uint16", np.uint16, 512),
        ("ndarray", np.int64, 2**33 + 9),
    ],
)
def test_id_outside_the_vocabulary_names_its_document(
    tmp_path, digests, documents, encoding, dtype, wrong
):
    """Ids are never wrapped into the vocabulary."""
    samples = [{"tokens": ids.astype(dtype)} for ids in documents]
    samples[30]["tokens"][0] = wrong
    folder = write(tmp_path / "mds", {"tokens": encoding}, samples)
    message = r"shard.00001.mds \(stream prose\): document 5: token -?\d+ does not exist"
    with pytest.raises(UserError, match=message):
        digests(folder)


@pytest.mark.parametrize("special_tokens", ["each_chunk", "document_ends", "none"])
def test_special_tokens_stand_where_the_recipe_says(
    special_tokens, tmp_path, tiny, documents, tokenizer, digests, plain
):
    stored = [{"tokens": padded(tokenizer, ids).astype(np.uint16)} for ids in documents]
    folder = write(tmp_path / "mds", {"tokens": "ndarray:uint16"}, stored)
    option = f"data.special_tokens={special_tokens}"
    assert digests(folder, option) == digests(plain, option)
    others = {"each_chunk", "document_ends", "none"} - {special_tokens}
    assert all(digests(plain, f"data.special_tokens={o}") != digests(plain, option) for o in others)


def test_short_documents_are_left_out_by_their_ordinary_tokens(
    tmp_path, documents, tokenizer, digests, plain
):
    stored = [{"tokens": padded(tokenizer, ids).astype(np.uint16)} for ids in documents]
    folder = write(tmp_path / "mds", {"tokens": "ndarray:uint16"}, stored)
    option = "data.skip_shorter_than=20"
    assert digests(folder, option) == digests(plain, option)
    assert digests(plain, option) != digests(plain)
    with pytest.raises(UserError, match="no document of 100000 tokens or more"):
        digests(plain, "data.skip_shorter_than=100000", "data.streams.prose.max_epochs=1e9")


def one_shard(folder, **changes):
    """Return an index of one shard with some of its values changed."""
    index = json.loads((folder / "index.json").read_text())
    index["shards"] = [index["shards"][0] | changes]
    return json.dumps(index).encode()


@pytest.mark.parametrize(
    "basename", ["/etc/passwd", "../shard.mds", "a/../../shard.mds", "", "..", "a\0b"]
)
def test_shard_outside_its_folder_is_refused(plain, basename):
    """An index from elsewhere must not make the cache write where it likes."""
    shard = json.loads((plain / "index.json").read_text())["shards"][0]
    content = one_shard(plain, raw_data=shard["raw_data"] | {"basename": basename})
    with pytest.raises(ValueError, match="does not lie in its folder"):
        parse_index(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": -1},
        {"samples": 2.5},
        {"samples": "3"},
        {"samples": True},
        {"samples": 10**30},
        {"column_names": []},
        {"column_sizes": []},
        {"column_sizes": [-4]},
        {"column_encodings": ["ndarray:uint16", "str"]},
        {"column_encodings": [None]},
        {"column_names": [3]},
        {"compression": 3, "zip_data": {"basename": "a", "bytes": 4, "hashes": {}}},
        {"compression": "zstd", "zip_data": None},
        {"raw_data": {"basename": "a", "bytes": 4, "hashes": {"blake9": "00"}}},
        {"raw_data": {"basename": "a", "bytes": 4, "hashes": {"shake_128": "00"}}},
    ],
)
def test_index_with_odd_values_is_refused(plain, changes):
    with pytest.raises(ValueError, match=r"."):
        parse_index(one_shard(plain, **changes))


def test_only_a_shard_that_is_empty_may_be_recorded_as_empty(plain, tmp_path):
    with pytest.raises(ValueError, match=r"bytes, but 0 samples are recorded of it"):
        parse_index(one_shard(plain, samples=0))
    columns = {"tokens": "ndarray:uint16"}
    with MDSWriter(columns=columns, out=str(tmp_path), size_limit=100) as writer:
        writer.write({"tokens": np.ones(99, np.uint16)})  # larger than the limit
    content = (tmp_path / "index.json").read_bytes()
    assert parse_index(content).documents.tolist() == [0, 1]


few = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=3,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_index_is_never_more_than_a_user_error(plain, tmp_path, data):
    """Whatever one value becomes, the data set is read, or refused with a message."""
    index = json.loads((plain / "index.json").read_text())
    target = index
    path = []
    while isinstance(target, (dict, list)) and target:
        keys = sorted(target) if isinstance(target, dict) else range(len(target))
        path.append((target, data.draw(st.sampled_from(list(keys)))))
        target = target[path[-1][1]]
        if data.draw(st.booleans()):
            break
    holder, key = path[-1]
    holder[key] = data.draw(values)
    folder = tmp_path / "mds"
    folder.mkdir(exist_ok=True)
    for shard in plain.glob("*.mds"):
        if not (folder / shard.name).exists():
            (folder / shard.name).hardlink_to(shard)
    (folder / "index.json").write_text(json.dumps(index))
    try:
        dataset = ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path)
        for place in dataset.sample():
            dataset.tokens(*place)
    except UserError:
        pass


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 2999), byte=st.integers(0, 255))
@pytest.mark.parametrize("encoding", ["ndarray:uint16", "ndarray"])
def test_damage_that_no_hash_tells_is_never_more_than_a_user_error(
    encoding, tmp_path, documents, place, byte
):
    folder = tmp_path / "mds"
    if not folder.exists():
        samples = [{"id": "x", "tokens": ids.astype(np.uint16)} for ids in documents]
        write(folder, {"id": "str", "tokens": encoding}, samples)
    shard = sorted(folder.glob("*.mds"))[0]
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[place % len(content)] = byte
    shard.write_bytes(flipped)
    try:
        dataset = ShardedDataset("s", StreamConfig(path=str(folder)), tmp_path)
        for document in range(SHARD_DOCUMENTS):
            dataset.tokens(0, document)
    except UserError:
        pass
    finally:
        shard.write_bytes(content)


def test_index_of_thousands_of_shards_is_small(plain):
    index = json.loads((plain / "index.json").read_text())
    shard = index["shards"][0]
    index["shards"] = [
        shard | {"raw_data": shard["raw_data"] | {"basename": f"part/shard.{n:05}.mds"}}
        for n in range(5000)
    ]
    parsed = parse_index(json.dumps(index).encode())
    assert len(parsed.raw) == 5000
    assert parsed.documents.sum() == 5000 * SHARD_DOCUMENTS

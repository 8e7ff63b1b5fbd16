"""Whatever bytes a file holds, every record is read or has a reason, and nothing raises."""

import gzip
import json
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from restomod.prepare.files import InputFile
from restomod.prepare.normalise import FORMS, NormaliseConfig, normalise
from restomod.prepare.pieces import Piece
from restomod.prepare.quality import QualityConfig, broken_rule
from restomod.prepare.readers import read_piece
from restomod.prepare.records import Reading

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
RECORDS = st.dictionaries(st.sampled_from(["text", "a", "b"]), VALUES, max_size=3)
LINES = st.one_of(
    RECORDS.map(lambda record: json.dumps(record).encode()),
    st.text(max_size=30)
    .map(lambda text: json.dumps({"text": text}, ensure_ascii=False))
    .map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")),
    st.just(b'{"text": "a\\ud800b"}'),
)


def check(path, data, kind, compression="", begin=0, end=0, **options):
    path.write_bytes(data)
    piece = Piece(InputFile(str(path), kind, compression, len(data)), begin, end)
    records = list(read_piece(piece, Reading(**options)))
    for record in records:
        assert bool(record.text) != bool(record.reason)
        record.text.encode()
        assert record.records >= 1
    return records


@FUZZ
@given(st.lists(LINES, max_size=12), st.booleans(), st.data())
def test_json_lines_in_one_piece_or_several(tmp_path, lines, ended, data):
    content = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    whole = check(tmp_path / "a", content, "lines")
    assert len(whole) == len(content.split(b"\n")) - (content == b"" or content.endswith(b"\n"))
    edges = sorted(data.draw(st.sets(st.integers(1, max(1, len(content) - 1)), max_size=4)))
    edges = [0, *(edge for edge in edges if edge < len(content)), len(content)]
    pieces = []
    for begin, end in pairwise(edges):
        pieces += check(tmp_path / "a", content, "lines", begin=begin, end=end) if end else []
    assert [(r.text, r.reason) for r in pieces] == [(r.text, r.reason) for r in whole]


@FUZZ
@given(
    st.lists(LINES, min_size=1, max_size=12), st.integers(0, 10**6), st.sampled_from(["gz", "zst"])
)
def test_compressed_lines_cut_anywhere(tmp_path, lines, cut, suffix):
    content = b"\n".join(lines) + b"\n"
    packed = gzip.compress(content) if suffix == "gz" else zstandard.compress(content)
    whole = check(tmp_path / "a", packed, "lines", f".{suffix}")
    cut %= len(packed)
    part = check(tmp_path / "a", packed[:cut], "lines", f".{suffix}")
    kept = [r for r in part if r.reason != "broken_file"]
    assert kept == whole[: len(kept)]
    assert cut == 0 or len(part) == len(kept) + 1


@FUZZ
@given(st.binary(max_size=300), st.sampled_from(["lines", "text", "parquet", "arrow", "mds"]))
def test_any_bytes_as_any_kind_of_file(tmp_path, data, kind):
    for compression in ("", ".gz", ".zst") if kind in ("lines", "text") else ("",):
        check(tmp_path / "a", data, kind, compression)


@FUZZ
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=20), st.booleans())
def test_a_parquet_or_arrow_file_with_changed_bytes(tmp_path, place, changed, parquet):
    table = pa.table({"text": [f"text {n} " * 5 for n in range(40)]})
    if parquet:
        pq.write_table(table, tmp_path / "b", row_group_size=10)
    else:
        with pa.ipc.new_stream(str(tmp_path / "b"), table.schema) as stream:
            stream.write_table(table, max_chunksize=10)
    data = bytearray((tmp_path / "b").read_bytes())
    place %= len(data)
    data[place : place + len(changed)] = changed
    check(tmp_path / "a", bytes(data), "parquet" if parquet else "arrow")


@FUZZ
@given(st.text(), st.sampled_from(FORMS))
def test_normalising_twice_changes_nothing_more(text, form):
    config = NormaliseConfig(unicode=form)
    once = normalise(text, config)
    assert normalise(once, config) == once
    strict = QualityConfig(
        max_digit_share=0.1,
        max_symbol_share=0.1,
        max_symbol_word_ratio=0.1,
        min_alphabetic_word_share=0.8,
        max_bullet_line_share=0.5,
        max_ellipsis_line_share=0.5,
        max_repeated_line_share=0.3,
        max_repeated_character_share=0.2,
        min_stop_words=1,
    )
    assert isinstance(broken_rule(once, strict), str)

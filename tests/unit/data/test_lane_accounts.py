"""Every document of a lane accounted for: delivered + waiting + pending + skipped = drawn."""

from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restomod.config import DataConfig, MaskConfig, MaskStep, PhaseConfig
from restomod.data.files import DamagedShardError
from restomod.data.lanes import DRAWS, Lane, LaneSetting
from restomod.data.mixture import stream_draws
from restomod.data.order import StreamCursor
from restomod.data.rows import CLOSES, OPENS
from restomod.data.state import COUNTERS, LaneState
from restomod.data.tokenizer import WordParts
from restomod.errors import UserError

V = 1000


@dataclass
class Documents:
    """A stream in memory: lengths by shard and document, contents told by all three numbers."""

    name: str
    lengths: list[list[int]]
    exact: bool = True
    damaged: set[int] = field(default_factory=set)
    prefetched: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.shard_documents = np.array([len(shard) for shard in self.lengths])
        self.documents = int(self.shard_documents.sum())
        self.total = sum(map(sum, self.lengths))
        self.mean_tokens = self.total / self.documents
        self.attributes = SimpleNamespace(exact=self.exact, tokens=self.total)

    def tokens(self, shard, document):
        if shard in self.damaged:
            raise DamagedShardError(f"{self.name}: shard {shard} is damaged")
        length = self.lengths[shard][document]
        key = sum(map(ord, self.name)) * 7919 + shard * 104729 + document * 31
        return ((np.arange(length) * 17 + key) % (V - 10) + 10).astype(np.uint16)

    def prefetch(self, shard):
        self.prefetched.append(shard)

    def place(self, shard, document):
        return f"{self.name}: shard {shard}, document {document}"


class Vocabulary:
    vocab_size, reserved_ids = V, tuple(range(10))
    cls_id, sep_id, pad_id, mask_id = 1, 2, 3, 4

    def word_parts(self):
        """Every third id carries on the word before it."""
        same = np.zeros(V, np.uint8)
        return WordParts(np.arange(V) % 3 > 0, same, same)


def setting(streams, data, phase, seed=0, first_row=0):
    by_name = {stream.name: stream for stream in streams}
    return LaneSetting.of(seed, data, phase, first_row, by_name, Vocabulary())


class Account:
    """Follows a lane: what its rows held, and its state."""

    def __init__(self, number, streams, data, phase, state=None, first_row=0):
        self.streams = sorted(streams, key=lambda stream: stream.name)
        self.setting = setting(streams, data, phase, first_row=first_row)
        self.state = LaneState([s.name for s in self.streams])
        if state is not None:
            self.state = LaneState.from_plain(state, self.state.names)
        self.lane = Lane(number, self.setting, self.state if state else None)
        self.chunks = {age: tuple(fields) for age, fields in self.state.waiting.items()}
        self.delivered = []
        self.rows = []

    def step(self, rows):
        for _ in range(rows):
            row = self.lane.next_row()
            self.chunks |= {fields[0]: fields for fields in row.delta.added}
            self.delivered += [self.chunks[age] for age in row.delta.taken]
            self.state.apply(row.delta)
            self.rows.append(row)
            assert row.lane == self.lane._number
        return self

    def check(self):
        """Compare every token of the drawn documents with where it went."""
        drawn = Counter()
        for n in range(len(self.streams)):
            cursor = StreamCursor(self.setting.orders[n], self.lane._number)
            for _ in range(int(self.state.counter("documents")[n])):
                drawn[(n, *cursor.next())] += 1
            assert (cursor.epoch, cursor.position) == self.state.places[n]
        went = Counter()
        kept = [*self.delivered, *map(tuple, self.state.waiting.values())]
        kept += [tuple(self.state.pending)] if self.state.pending else []
        pending = len(kept) - bool(self.state.pending)
        for n, (_, stream, shard, document, start, length, ends) in enumerate(kept):
            for token in range(start, start + length):
                went[(stream, shard, document, token)] += 1
            whole = self.streams[stream].lengths[shard][document]
            opens, closes = start == 0, start + length == whole
            assert n == pending or ends == opens * OPENS + closes * CLOSES
        least = max(1, self.setting.data.skip_shorter_than)
        expected = Counter()
        skipped, empty, short, damaged = np.zeros((4, len(self.streams)), int)
        for (n, shard, document), times in drawn.items():
            length = self.streams[n].lengths[shard][document]
            if shard in self.streams[n].damaged:
                damaged[n] += times
                continue
            if length < least:
                (short if length else empty)[n] += times
                skipped[n] += times * length
                continue
            for token in range(length):
                expected[(n, shard, document, token)] = times
        assert went == expected
        waiting = np.zeros(len(self.streams), int)
        for fields in [
            *self.state.waiting.values(),
            *([self.state.pending] * bool(self.state.pending)),
        ]:
            waiting[fields[1]] += fields[5]
        counter = self.state.counter
        assert (counter("skipped_tokens") == skipped).all()
        assert (counter("empty") == empty).all()
        assert (counter("short") == short).all()
        assert (counter("damaged") == damaged).all()
        assert (
            counter("delivered_tokens") + waiting + counter("skipped_tokens")
            == counter("drawn_tokens")
        ).all()  # fmt: skip
        return self


shards = st.lists(st.lists(st.integers(0, 70), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    shards, shards, st.integers(1, 5), st.integers(4, 40), st.integers(1, 3), st.integers(1, 20),
    st.sampled_from(["each_chunk", "document_ends", "none"]), st.integers(1, 12),
)  # fmt: skip
def test_every_token_goes_where_the_counters_say(
    first, second, lanes, length, buffer_rows, block, special, least
):
    if max((n for s in [*first, *second] for n in s), default=0) < least:
        first[0].append(least)
    streams = [Documents("a", first), Documents("b", [*second, [least + 1]])]
    data = DataConfig(
        lanes=lanes,
        buffer_rows=buffer_rows,
        tokens_per_document_min=4,
        shuffle_block_documents=block,
        special_tokens=special,
        skip_shorter_than=least,
    )
    phase = PhaseConfig(
        sequence_length=length, row_tokens=4 * length, batch_rows=lanes, mixture={"a": 1, "b": 2}
    )
    if streams[0].total == 0:
        return
    for lane in range(lanes):
        account = Account(lane, streams, data, phase).step(7).check()
        again = Account(lane, streams, data, phase, account.state.plain())
        again.delivered = list(account.delivered)
        again.step(5).check()
        straight = Account(lane, streams, data, phase).step(12)
        assert [r.digest for r in account.rows + again.rows] == [r.digest for r in straight.rows]
        for row in straight.rows:
            lengths = np.diff(row.cu_seqlens)
            assert lengths.max() <= length
            assert row.cu_seqlens[-1] <= phase.row_tokens
            assert (row.input_ids[row.cu_seqlens[-1] :] == Vocabulary.pad_id).all()


def corpus(name, count, mean, seed, shard=50, **options):
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(np.log(mean) - 0.3, 0.8, count), 1, 3000).astype(int)
    return Documents(
        name, [lengths[n : n + shard].tolist() for n in range(0, count, shard)], **options
    )


def test_two_epochs_of_the_smallest_stream_are_complete():
    streams = [corpus("big", 2000, 60, 0), corpus("small", 60, 40, 1, shard=7)]
    data = DataConfig(lanes=3, buffer_rows=2)
    phase = PhaseConfig(
        sequence_length=64, row_tokens=512, batch_rows=3, mixture={"big": 1, "small": 1}
    )
    accounts = [Account(lane, streams, data, phase) for lane in range(3)]
    while min(account.state.places[1][0] for account in accounts) < 2:
        for account in accounts:
            account.step(1)
    seen = Counter()
    for account in accounts:
        account.check()
        kept = [*account.delivered, *map(tuple, account.state.waiting.values())]
        for _, stream, shard, document, start, *_ in kept:
            if stream == 1 and start == 0:
                seen[(shard, document)] += 1
    assert len(seen) == 60
    assert min(seen.values()) >= 2


@pytest.mark.parametrize(("before", "after"), [(64, 256), (256, 64)])
def test_phase_change_delivers_what_waits_and_draws_anew(before, after):
    """Waiting chunks are delivered as they were cut, or cut again where they are too long."""
    streams = [corpus("a", 400, 80, 0), corpus("b", 300, 90, 1), corpus("c", 200, 50, 2)]
    data = DataConfig(lanes=2, buffer_rows=4)
    first = PhaseConfig(
        sequence_length=before, row_tokens=1024, batch_rows=2, mixture={"a": 1, "b": 1}
    )
    second = PhaseConfig(
        sequence_length=after, row_tokens=2048, batch_rows=4, mixture={"a": 1, "b": 0, "c": 3}
    )
    for lane in range(2):
        old = Account(lane, streams, data, first).step(20).check()
        state = old.state.plain()
        assert state["waiting"]
        new = Account(lane, streams, data, second, state, first_row=40)
        new.delivered = list(old.delivered)
        new.step(1)
        drawn_b = new.state.counter("documents")[1]
        new.step(29)
        assert new.state.counter("documents")[1] == drawn_b == state["streams"]["b"]["documents"]
        assert {row.number for row in new.rows} == {40 + lane + 2 * n for n in range(30)}
        assert max(int(np.diff(row.cu_seqlens).max()) for row in new.rows) <= after
        ages = {fields[0] for fields in new.state.waiting.values()}
        assert not ages & {fields[0] for fields in state["waiting"]}
        # A chunk that was cut again left under its old age and came back under new ones.
        recut = {age for age, fields in new.chunks.items() if fields[5] + 2 > after}
        new.delivered = [fields for fields in new.delivered if fields[0] not in recut]
        old_delivered = [fields for fields in old.delivered if fields[0] in recut]
        new.delivered += old_delivered
        new.check()
        shares = np.sum([row.stream_tokens for row in new.rows[5:]], axis=0)
        assert shares[2] / shares.sum() > 0.6


def test_shares_are_as_asked_in_every_window():
    streams = [corpus("a", 3000, 200, 0), corpus("b", 3000, 50, 1), corpus("c", 500, 120, 2)]
    asked = np.array([0.5, 0.2, 0.3])
    data = DataConfig(lanes=4)
    phase = PhaseConfig(
        sequence_length=512, row_tokens=8192, batch_rows=4,
        mixture=dict(zip("abc", asked, strict=True)),
    )  # fmt: skip
    accounts = [Account(lane, streams, data, phase).step(120) for lane in range(4)]
    rows = np.array([[row.stream_tokens for row in account.rows] for account in accounts])
    squares = np.array([np.mean(np.concatenate(s.lengths).astype(float) ** 2) for s in streams])
    means = np.array([s.mean_tokens for s in streams])
    for window in (10, 40, 120):
        for begin in range(0, 120, window):
            tokens = rows[:, begin : begin + window].sum((0, 1))
            total = tokens.sum()
            # Documents of random stream and length: variance of a share of `total` tokens.
            per_token = asked * squares / means
            error = np.sqrt(
                ((1 - asked) ** 2 * per_token + asked**2 * (per_token.sum() - per_token)) / total
            )
            assert (np.abs(tokens / total - asked) < 3 * error).all(), (window, begin)


def test_estimated_lengths_are_corrected_by_what_is_drawn():
    wrong = corpus("a", 3000, 200, 0, exact=False)
    wrong.mean_tokens /= 3
    streams = [wrong, corpus("b", 3000, 200, 1)]
    data = DataConfig(lanes=1)
    phase = PhaseConfig(
        sequence_length=512, row_tokens=8192, batch_rows=1, mixture={"a": 0.5, "b": 0.5}
    )
    account = Account(0, streams, data, phase).step(1000)
    late = np.sum([row.stream_tokens for row in account.rows[500:]], axis=0)
    assert late[0] / late.sum() == pytest.approx(0.5, abs=0.03)
    naive = np.sum([row.stream_tokens for row in account.rows[:20]], axis=0)
    assert naive[0] / naive.sum() > 0.6


@pytest.mark.parametrize(("by", "numbers"), [("repeat", (2.0, 1.0)), ("choose", (300.0, 100.0))])
def test_repeat_and_choose_are_in_documents(by, numbers):
    streams = [corpus("a", 1500, 60, 0), corpus("b", 1000, 60, 1)]
    phase = PhaseConfig(
        sequence_length=128, row_tokens=4096, batch_rows=1, mixture_by=by,
        mixture=dict(zip("ab", numbers, strict=True)),
    )  # fmt: skip
    account = Account(0, streams, DataConfig(lanes=1), phase).step(400)
    documents = account.state.counter("documents")
    asked = np.array(numbers) * ([1500, 1000] if by == "repeat" else [1, 1])
    share = asked[0] / asked.sum()
    error = (share * (1 - share) / documents.sum()) ** 0.5
    assert abs(documents[0] / documents.sum() - share) < 4 * error


def test_a_lanes_streams_are_one_sequence_of_draws():
    """Over any number of blocks of them, and wherever it is taken up again."""
    drawn = []

    class Told(Documents):
        def tokens(self, shard, document):
            drawn.append(self.name)
            return super().tokens(shard, document)

    streams = [Told("a", [[20, 30]] * 9), Told("b", [[20, 40]] * 9), Told("c", [[20, 20]] * 9)]
    phase = PhaseConfig(
        sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1, "b": 2, "c": 3}
    )
    data = DataConfig(lanes=2)
    account = Account(1, streams, data, phase).step(160)
    count = account.state.draws
    assert count == len(drawn) > 2 * DRAWS
    expected = stream_draws(0, 1, 0, count, account.state.weights)
    assert drawn == ["abc"[n] for n in expected]
    again = Account(1, streams, data, phase, account.state.plain())
    drawn.clear()  # what waits has been read again
    again.step(10)
    expected = stream_draws(0, 1, count, len(drawn), account.state.weights)
    assert drawn == ["abc"[n] for n in expected]


def test_a_buffer_of_thousands_of_documents_is_filled():
    """More of them than may be left out one after another."""
    stream = Documents("a", [[1, 1, 1]])
    phase = PhaseConfig(sequence_length=64, row_tokens=3072, batch_rows=1, mixture={"a": 1})
    data = DataConfig(lanes=1, buffer_rows=4, tokens_per_document_min=1, special_tokens="none")
    account = Account(0, [stream], data, phase).step(2).check()
    assert account.state.counter("documents")[0] == 5 * 3072


def test_damaged_shard_stops_or_is_skipped_and_counted(caplog):
    stream = corpus("a", 300, 40, 0, shard=10, damaged={3, 7})
    phase = PhaseConfig(sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1})
    with pytest.raises(DamagedShardError, match="damaged"):
        Account(0, [stream], DataConfig(lanes=1), phase).step(40)
    data = DataConfig(lanes=1, on_damaged_shard="skip")
    account = Account(0, [stream], data, phase).step(60).check()
    assert account.state.places[0][0] >= 1
    assert account.state.counter("damaged")[0] >= 20
    assert {(n, shard) for n, shard, *_ in account.state.skipped} == {(0, 3), (0, 7)}
    assert {record.getMessage() for record in caplog.records} == {
        f"a: shard {shard} is damaged; it is skipped from here on" for shard in (3, 7)
    }
    middle = Account(0, [stream], data, phase).step(25)
    rest = Account(0, [stream], data, phase, middle.state.plain())
    rest.delivered = list(middle.delivered)
    rest.step(35).check()
    assert [r.digest for r in middle.rows + rest.rows] == [r.digest for r in account.rows]


def test_shard_that_is_gone_on_resume_is_skipped_with_what_waits():
    stream = corpus("a", 300, 40, 0, shard=10)
    phase = PhaseConfig(sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1})
    data = DataConfig(lanes=1, on_damaged_shard="skip")
    middle = Account(0, [stream], data, phase).step(25)
    waiting = {fields[2] for fields in middle.state.waiting.values()}
    damaged = replace(stream, damaged={min(waiting)})
    rest = Account(0, [damaged], data, phase, middle.state.plain()).step(40)
    counter = rest.state.counter
    assert counter("skipped_tokens")[0] > 0
    left = sum(fields[5] for fields in rest.state.waiting.values())
    left += rest.state.pending[5] if rest.state.pending else 0
    assert (
        counter("delivered_tokens")[0] + left + counter("skipped_tokens")[0]
        == counter("drawn_tokens")[0]
    )


def test_shard_that_is_gone_on_resume_takes_the_rest_of_its_document_along():
    stream = Documents("a", [[n, 5000] for n in range(1, 31)])
    phase = PhaseConfig(sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1})
    data = DataConfig(lanes=1, on_damaged_shard="skip", skip_shorter_than=20)
    middle = Account(0, [stream], data, phase).step(200)
    _, _, shard, document, start, length, _ = middle.state.pending
    assert (start + length, document) == (5000, 1)
    skipped = middle.state.counter("skipped_tokens")[0]
    assert skipped > 0
    waiting = sum(f[5] for f in middle.state.waiting.values() if f[2] == shard)
    damaged = replace(stream, damaged={shard})
    rest = Account(0, [damaged], data, phase, middle.state.plain())
    assert rest.lane._counters[0, COUNTERS.index("skipped_tokens")] == skipped + waiting + length
    rest.step(40)
    assert not any(fields[2] == shard for fields in rest.state.waiting.values())


@pytest.mark.parametrize("lengths", [[[0, 3], [0]], [[70], [9, 80]]])
def test_streams_without_a_readable_document_are_an_error(lengths):
    damaged = {shard for shard, documents in enumerate(lengths) if sum(documents) > 3}
    streams = [Documents(name, lengths, damaged=damaged) for name in "ab"]
    phase = PhaseConfig(sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1, "b": 1})
    data = DataConfig(lanes=1, skip_shorter_than=4, on_damaged_shard="skip")
    with pytest.raises(UserError, match="streams a, b hold no document of 4 tokens or more"):
        Account(0, streams, data, phase).step(1)


def test_a_stream_that_holds_nothing_is_named_and_not_the_one_beside_it():
    streams = [Documents("a", [[20] * 9]), Documents("b", [[0] * 9])]
    phase = PhaseConfig(sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1, "b": 1})
    with pytest.raises(UserError, match="streams b hold no document of 1 tokens or more"):
        Account(0, streams, DataConfig(lanes=1), phase).step(1)


def test_one_readable_document_among_thousands_of_empty_ones_is_found_in_every_epoch():
    count = 3000
    stream = Documents("a", [[0] * (count - 1) + [60]])
    phase = PhaseConfig(sequence_length=64, row_tokens=64, batch_rows=1, mixture={"a": 1})
    data = DataConfig(lanes=1, buffer_rows=1)
    account = Account(0, [stream], data, phase)
    cursor = StreamCursor(account.setting.orders[0], 0)
    found = [n for n in range(20 * count) if cursor.next()[1] == count - 1]
    assert np.diff(found).max() > 1.5 * count, "no two finds far enough apart"
    account.step(19)
    assert account.state.counter("delivered_chunks")[0] == 19


def test_a_token_that_the_tokenizer_lacks_is_an_error_that_names_its_document():
    class Foreign(Documents):
        def tokens(self, shard, document):
            ids = super().tokens(shard, document)
            return np.full_like(ids, V) if (shard, document) == (1, 3) else ids

    stream = Foreign("a", [[20] * 5] * 3)
    phase = PhaseConfig(sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1})
    with pytest.raises(UserError, match=f"^a: shard 1, document 3: token {V} does not exist"):
        Account(0, [stream], DataConfig(lanes=1, buffer_rows=2), phase).step(2)


def test_a_lane_asks_for_the_shards_that_it_will_need():
    stream = corpus("a", 300, 40, 0, shard=10)
    phase = PhaseConfig(sequence_length=64, row_tokens=512, batch_rows=1, mixture={"a": 1})
    account = Account(0, [stream], DataConfig(lanes=1), phase)
    asked = []
    account.setting.prefetcher.ask = lambda job: asked.append(job())
    account.step(40)
    assert len(asked) >= 30
    assert set(stream.prefetched) == set(range(30))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("first_row", [0, 8])
def test_odds_of_estimated_streams_are_kept_where_a_run_goes_on(number, first_row):
    """Within a block of draws they stay what they were at its beginning, or the phase's."""
    streams = [corpus("a", 300, 40, 0, exact=False), corpus("b", 300, 40, 1, exact=False)]
    streams[0].mean_tokens *= 3
    data = DataConfig(lanes=3, buffer_rows=1)
    common = {"sequence_length": 64, "row_tokens": 512, "batch_rows": 3}
    phase = PhaseConfig(mixture={"a": 2, "b": 1}, **common)
    before = None
    if first_row:
        earlier = PhaseConfig(mixture={"a": 1, "b": 9}, **common)
        before = Account(number, streams, data, earlier)
        before = before.step(len(range(number, first_row, 3))).state.plain()
    straight = Account(number, streams, data, phase, before, first_row=first_row)
    states = [straight.step(1).state.plain() for _ in range(90)]
    assert {state["draws"] // DRAWS for state in states} >= {0, 1}
    assert len({tuple(state["weights"]) for state in states}) >= 2
    for rows in (1, 2, 3, 4, 5, 60, 87):
        again = Account(number, streams, data, phase, states[rows - 1], first_row=first_row)
        again.step(3)
        assert [r.digest for r in again.rows] == [r.digest for r in straight.rows[rows : rows + 3]]
        assert again.state.plain() == states[rows + 2]


def test_mask_rate_follows_its_schedule_from_the_phases_begin():
    stream = corpus("a", 300, 40, 0)
    mask = MaskConfig(rate=0.4, later=[MaskStep(str(10 * 4096), 0.1)])
    phase = PhaseConfig(
        sequence_length=64, row_tokens=4096, batch_rows=1, mixture={"a": 1}, mask=mask
    )
    account = Account(0, [stream], DataConfig(lanes=1), phase)
    account.step(7)
    late = Account(0, [stream], DataConfig(lanes=1), phase, account.state.plain(), first_row=7)
    shares = [len(row.positions) / 4096 for row in late.step(14).rows]
    assert min(shares[:10]) > 0.3
    assert max(shares[10:]) < 0.15

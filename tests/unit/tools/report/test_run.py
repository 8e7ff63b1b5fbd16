"""The report of a run: what it says, what it keeps of long logs, and what it makes harmless."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from restomod.errors import UserError
from restomod.tools.pages import charts
from restomod.tools.record.downsampled import Downsampled, Thinned, merged
from restomod.tools.record.metrics_log import RunLog
from restomod.tools.record.run_record import asked_phases
from restomod.tools.report.run import write_report

BATCH_SLOTS = 1000


def train_line(step: int, **fields: Any) -> dict[str, Any]:
    line = {
        "event": "train",
        "step": step,
        "phase": "pretrain",
        "time_s": 2.0 * step,
        "tokens": step * BATCH_SLOTS,
        "real_tokens": step * 990,
        "masked_tokens": step * 297,
        "loss": 3.0,
        "accuracy": 0.4,
        "lr": 0.001,
        "grad_norm": 1.2,
        "tokens_per_s": 500.0,
        "packing_efficiency": 0.99,
        "data_wait_fraction": 0.015,
        "mfu": 0.432,
        "data_digest": "9f3c" * 4,
        "mixture": {"code": 0.5, "prose": 0.25, "science": 0.25},
        "epochs": {"code": 0.03, "prose": 1.25, "science": 0.2},
    }
    return line | fields


def eval_line(step: int, **losses: float) -> dict[str, Any]:
    domains = {k: {"loss": v, "accuracy": 0.5, "masked_tokens": 10} for k, v in losses.items()}
    tokens = step * BATCH_SLOTS
    return {"event": "eval", "step": step, "tokens": tokens, "time_s": 2.0 * step} | {
        "phase": "pretrain",
        "domains": domains,
    }


CONFIG = """\
run_name: small-run
phases:
- name: pretrain
  slots: 200K
  mixture: {code: 2, prose: 1, science: 1}
"""


def run_folder(
    folder: Path,
    lines: list[dict[str, Any]],
    config: str = CONFIG,
    evaluation: Any = None,
    tail: str = "",
) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + tail)
    if config:
        (folder / "config.yaml").write_text(config)
    if evaluation is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """The visible text, in one line."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


class Wellformed(HTMLParser):
    VOID = ("meta", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def parsed(page: str) -> Wellformed:
    parser = Wellformed()
    parser.feed(page)
    assert parser.stack == []
    return parser


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    lines = [{"event": "start", "step": 0, "time_s": 0.0, "world_size": 8}]
    for step in range(1, 101):
        mixture = {"code": 0.49, "prose": 0.26, "science": 0.25}
        lines.append(train_line(step, loss=8.0 - 0.05 * step, mixture=mixture))
        if step % 25 == 0:
            lines.append(eval_line(step, code=5.0 - step / 50, all=5.5 - step / 50))
            lines.append(
                {"event": "checkpoint", "step": step, "time_s": 2.0 * step}
                | {"seconds": 3.0, "bytes": 1_500_000}
            )
    lines.append({"event": "skip", "step": 100, "time_s": 200.0, "shard": "shard.00012.mds"})
    scores = {"loss": 1.234, "accuracy": 0.731, "unigram_loss": 6.31, "unigram_accuracy": 0.068}
    evaluation = {
        "domains": {"code": scores | {"masked_tokens": 812345}, "all": scores},
        "fill_mask": [
            {
                "text": "def [MASK](self)",
                "expected": "__init__",
                "predictions": [
                    {"token": " __init__", "probability": 0.94},
                    {"token": "new", "probability": 0.02},
                ],
            }
        ],
        "checkpoint": "checkpoints/step-100",
        "exported": "exported",
    }
    return page_of(run_folder(tmp_path_factory.mktemp("run"), lines, evaluation=evaluation))


def test_a_run_whose_last_batch_exceeds_the_plan_is_whole(tmp_path: Path) -> None:
    lines = [train_line(step) for step in range(1, 101)]
    for slots, said in (
        ("99.5K", "100K token slots, all that were planned, in"),
        ("200K", "50.0%"),
    ):
        text = text_of(page_of(run_folder(tmp_path, lines, CONFIG.replace("200K", slots))))
        assert said in text


def test_status_numbers_are_those_of_the_log(full_page: str) -> None:
    text = text_of(full_page)
    assert "small-run" in text
    assert "100K token slots of 200K planned (50.0%) in 3 min 20 s" in text
    assert "Training loss 4.225 mean of the last 50 logged" in text  # steps 51 to 100
    assert "Best evaluation loss 3.500 all domains, step 100" in text
    assert "Steps 100 100 logged" in text
    assert "Real tokens 99K 99,000" in text
    assert "Masked tokens 29.7K 30.0% of real" in text
    assert "Packing 99.00%" in text
    assert "Throughput 500 slots per second of training" in text
    assert "MFU 43.2%" in text
    assert "Data wait 1.50%" in text
    assert "Checkpoints 4 3 s each, 1.5 MB the last" in text


def test_every_figure_is_drawn_against_tokens_and_wall_time(full_page: str) -> None:
    figures = re.findall(r'<figure id="([a-z-]+)"', full_page)
    assert figures == [
        "loss",
        "eval-loss",
        "accuracy",
        "lr",
        "grad-norm",
        "tokens-per-s",
        "mfu",
        "data-wait-fraction",
        "packing-efficiency",
        "mixture",
    ]
    for figure in figures:
        for kind in ("tokens", "time"):
            assert f'id="{figure}-{kind}-t"' in full_page
            assert f'id="{figure}-{kind}-d"' in full_page
    assert full_page.count("token slots (thousands)</text>") == len(figures)
    assert full_page.count("wall time (minutes)</text>") == len(figures)


def test_realised_mixture_stands_beside_the_normalised_asked_one(full_page: str) -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", full_page)
    [code] = [text_of(row).split() for row in rows if "+0.01" not in row and "48.5K" in row]
    assert code == ["code", "48.5K", "0.03", "50.00%", "49.00%", "&minus;1.00"]


def test_shares_asked_by_the_run_go_before_the_recipes_and_domains_are_summed(
    tmp_path: Path,
) -> None:
    start = {
        "event": "start",
        "step": 0,
        "asked": {"pretrain": {"code": 0.6, "prose": 0.3, "science": 0.1}},
        "stream_domains": {"code": "code", "prose": "text", "science": "text"},
    }
    lines = [start, *(train_line(step) for step in range(1, 101))]
    text = text_of(page_of(run_folder(tmp_path / "run", lines)))
    assert "code 49.5K 0.03 60.00% 50.00% &minus;10.00" in text
    assert re.search(r"domain text 49\.5K \S+ 40\.00% 50\.00% \+10\.00", text)
    assert "domain code" not in text


def test_final_evaluation_stands_beside_the_unigram_model(full_page: str) -> None:
    text = text_of(full_page)
    assert "code 1.234 6.310 &minus;5.076 73.1% 6.8% 812,345" in text
    assert "Checkpoint checkpoints/step-100 Exported exported" in text


def test_fill_mask_marks_the_expected_token(full_page: str) -> None:
    assert "def <mark>[MASK]</mark>(self)" in full_page
    assert re.search(r'<li class="right"><code>__init__.*?</code>.*?94.0%', full_page)
    assert re.search(r"<li class=\"\"><code>new</code>.*?2.0%", full_page)


def test_events_of_any_kind_are_listed(full_page: str) -> None:
    text = text_of(full_page)
    assert "1 start, 100 train, 4 eval, 4 checkpoint, 1 skip" in text
    assert "3 min 20 s 100 skip shard shard.00012.mds" in text


def test_samples_show_how_the_guess_changed(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [train_line(1)]
    for step, token in ((10, "dog"), (20, " cat")):
        guesses = [{"token": token, "probability": step / 100}, {"token": "x"}]
        example = {"domain": "prose", "text": "a [MASK]", "expected": "cat", "predictions": guesses}
        lines.append({"event": "samples", "step": step, "samples": [example]})
    page = page_of(run_folder(tmp_path / "run", lines))
    [card] = re.findall(r"<article>(.*?)</article>", page, re.S)
    said = "a [MASK] step 10 dog 10.0% step 20 cat (right) 20.0% prose, expected cat"
    assert " ".join(text_of(card).split()) == said


def test_resolved_recipe_is_on_the_page(full_page: str) -> None:
    assert "slots: 200K\n" in full_page


def test_page_is_wellformed_and_refers_to_nothing_outside(full_page: str) -> None:
    parser = parsed(full_page)
    assert len(parser.ids) == len(set(parser.ids))
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(parser.tags)
    assert "//" not in full_page
    assert not re.search(r"\bsrc=|url\(|@import|https?:", full_page)
    assert all(target in parser.ids for target in re.findall(r'href="#([^"]*)"', full_page))
    assert re.findall(r'href="(?!#)', full_page) == []


def test_policy_allows_exactly_the_pages_own_script(full_page: str) -> None:
    [script] = re.findall(r"<script>(.*?)</script>", full_page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in full_page
    )


def test_hostile_strings_are_inert_wherever_they_come_from(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    quoted = json.dumps(evil)
    config = f"run_name: {quoted}\nphases:\n- name: {quoted}\n  slots: 10K\n"
    config += f"  mixture: {{{quoted}: 1, b: 1}}\n- name: {quoted}\n  slots: 5K\n"
    scores = {"loss": 1.0, "accuracy": 0.5, evil: 1.0}
    guess = {"token": evil, "probability": 0.5}
    evaluation = {
        "domains": {evil: scores},
        "fill_mask": [{"text": evil, "expected": evil, "predictions": [guess]}],
        "checkpoint": evil,
        "exported": [evil],
    }
    lines = [
        train_line(s, phase=p, mixture={evil: 1.0}, epochs={evil: 1.0}, data_digest=evil, loss=s)
        for s, p in ((1, "<u>"), (2, evil), (3, evil))
    ]
    lines += [
        eval_line(3, **{evil: 1.0}),
        {"event": evil, "step": evil, "time_s": evil, evil: evil, "more": {evil: evil}},
        {"event": "train", "step": evil, "tokens": evil, "loss": evil},
        {"event": "eval", "step": 4, "domains": [evil]},
        {"event": "checkpoint", "seconds": evil, "bytes": evil, "step": [evil]},
    ]
    page = page_of(run_folder(tmp_path / "<b>&run", lines, config, evaluation))
    parser = parsed(page)
    assert parser.tags.count("script") == 1
    assert not {"img", "u"} & set(parser.tags)
    assert "&lt;u&gt;</text>" in page
    assert "&lt;script&gt;alert(1)" in page


def test_folder_name_is_the_runs_name_without_a_recipe(tmp_path: Path) -> None:
    page = page_of(run_folder(tmp_path / "<i>x", [train_line(1)], config=""))
    assert "<h1>&lt;i&gt;x</h1>" in page
    assert "holds no config.yaml" in page


def test_resumes_are_marked_and_repeated_steps_counted_once(tmp_path: Path) -> None:
    lines = [train_line(step) for step in range(1, 61)]
    lines.append({"event": "resume", "step": 50, "time_s": 300.0, "from_step": 50})
    lines += [train_line(step, time_s=300.0 + 2 * (step - 50)) for step in range(51, 101)]
    page = page_of(run_folder(tmp_path / "run", lines))
    text = text_of(page)
    assert "Steps 100 110 logged, 10 repeated by resumes" in text
    assert "Wall time 6 min 40 s 1 resume" in text
    assert "code 49.5K 0.03 50.00% 50.00% +0.00" in text
    plots = re.findall(r'<svg class="plot".*?</svg>\s*</svg>', page, re.DOTALL)
    assert len(plots) == 18
    assert all(plot.count('class="resume"') == 1 for plot in plots)
    by_tokens = [x for plot in plots for x in re.findall(r'"resume" x1="([\d.]+)%"', plot)]
    assert by_tokens[:2] == ["51.00", "75.00"]  # step 51 of 100, second 300 of 400
    [loss] = re.findall(r'data-label="training" d="([^"]*)"', plots[0])
    assert loss.count("M") == 2  # the line is broken where the run went back


def test_phases_break_the_curves_and_have_mixtures_of_their_own(tmp_path: Path) -> None:
    config = (
        CONFIG.replace("200K", "75K")
        + "- {name: decay, slots: 100K, mixture: {code: 0.2, prose: 0.8}}\n"
    )
    lines = [train_line(step) for step in range(1, 76)]
    lines += [
        train_line(step, phase="decay", mixture={"code": 0.2, "prose": 0.8})
        for step in range(76, 101)
    ]
    page = page_of(run_folder(tmp_path / "run", lines, config))
    text = text_of(page)
    assert "code 42.1K 0.03 42.50% 42.50% +0.00 50.0% → 50.0% 20.0% → 20.0%" in text
    assert "pretrain 75K decay 25K of 100K" in text
    assert 'class="phase" x1="76.00%"' in page


def test_spike_of_one_step_survives_in_curve_and_table(tmp_path: Path) -> None:
    lines = [train_line(step, loss=9.75 if step == 4321 else 3.0) for step in range(1, 8001)]
    page = page_of(run_folder(tmp_path / "run", lines))
    [plot] = re.findall(r'<svg class="plot"[^>]*aria-labelledby="loss-tokens.*?</svg>', page, re.S)
    low, high = (float(re.findall(rf'data-{k}="([^"]*)"', plot)[0]) for k in ("y0", "y1"))
    assert low <= 3.0
    assert high >= 9.75
    [raw] = re.findall(r'class="train raw" d="([^"]*)"', plot)
    points = [tuple(map(float, p.split(","))) for p in re.findall(r"[\d.]+,[\d.]+", raw)]
    x, y = min(points, key=lambda point: point[1])
    assert x == pytest.approx(1000 * 4321 / 8000, abs=2)
    scale = charts.YScale(low, high, 'data-log="1"' in plot)
    assert y == pytest.approx(scale(9.75), abs=0.1)
    assert "<td>9.750</td>" in page


def test_smoothed_curve_starts_at_the_first_loss_and_ignores_a_spike(tmp_path: Path) -> None:
    losses = [2.0 + 8.0 * 0.97**step for step in range(400)]
    losses[300] += 5.0
    lines = [train_line(step, loss=loss) for step, loss in enumerate(losses, 1)]
    page = page_of(run_folder(tmp_path / "run", lines))
    [plot] = re.findall(r'<svg class="plot"[^>]*aria-labelledby="loss-tokens.*?</svg>', page, re.S)
    low, high = (float(re.findall(rf'data-{k}="([^"]*)"', plot)[0]) for k in ("y0", "y1"))
    scale = charts.YScale(low, high, 'data-log="1"' in plot)
    [curve] = re.findall(r'data-label="training" d="([^"]*)"', plot)
    heights = [float(point.split(",")[1]) for point in re.findall(r"[\d.]+,[\d.]+", curve)]
    assert heights[0] == pytest.approx(scale(losses[0]), abs=0.1)
    assert heights == sorted(heights)  # downwards on the page, all the way
    assert heights[-1] == pytest.approx(scale(2.0), abs=2.0)


def test_downsampling_keeps_extremes_sums_and_order() -> None:
    curves = Downsampled(max_buckets=50)
    values = [((step * 7919) % 1009) / 10 for step in range(12_345)]
    for step, value in enumerate(values):
        curves.add(step, 2.0 * step, {"a": value})
    buckets = curves.buckets()
    assert len(buckets) <= 51
    spreads = [bucket.spreads["a"] for bucket in buckets]
    assert sum(s.count for s in spreads) == len(values)
    assert sum(s.total for s in spreads) == pytest.approx(sum(values))
    assert min(s.low for s in spreads) == min(values)
    assert max(s.high for s in spreads) == max(values)
    ends = [x for bucket in buckets for x in bucket.tokens]
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (0, 12_344)


def test_thinned_items_keep_the_first_the_newest_and_some_between() -> None:
    for count in range(40):
        kept = Thinned(8)
        for item in range(count):
            kept.add(item)
        items = kept.items()
        assert items == sorted(set(items))
        assert len(items) == count if count <= 8 else 4 <= len(items) <= 9
        assert not count or (items[0], items[-1]) == (0, count - 1)
        gaps = {b - a for a, b in pairwise(items[:-1])}
        assert len(gaps) <= 1


def test_breaks_never_merge() -> None:
    curves = Downsampled(max_buckets=10)
    for step in range(1000):
        curves.add(step, step, {"a": 1.0}, breaks=step in (333, 777))
    buckets = curves.buckets()
    assert [b.tokens[0] for b in buckets if b.breaks] == [333, 777]
    assert [b.tokens[0] for b in merged(buckets, 10**6)] == [0, 333, 777]


def test_long_log_streams_into_a_small_page(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [])
    line = json.dumps({"event": "train", "phase": "p", "lr": 1e-3, "step": -1, "loss": -2})
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 200_001):
            loss = 77.5 if step == 123_457 else 3
            text = line.replace("-1", str(step)).replace("-2", f"{loss}")
            file.write(f'{text[:-1]}, "tokens": {step}, "time_s": {step}}}\n')
    page = page_of(folder)
    assert "Steps 200,000 200,000 logged" in text_of(page)
    assert "<td>77.50</td>" in page
    assert len(page) < 200_000


def test_broken_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [train_line(1), train_line(2)], tail='{"event": "tra')
    page = page_of(folder)
    assert "last line of metrics.jsonl is cut short" in page
    assert "could not be read" not in page
    assert "Steps 2 2 logged" in text_of(page)


def test_whole_last_line_without_newline_counts(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [train_line(1)], tail=json.dumps(train_line(2)))
    page = page_of(folder)
    assert "cut short" not in page
    assert "Steps 2 2 logged" in text_of(page)


def test_unreadable_lines_in_the_middle_are_counted(tmp_path: Path) -> None:
    broken = ['{"event": "tr{"event": "resume"}', "[1]", "\udcff", "[" * 100_000, "1" * 5000, ""]
    folder = run_folder(tmp_path / "run", [train_line(1)])
    with (folder / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write("\n".join(broken) + "\n" + json.dumps(train_line(2)) + "\n")
    page = page_of(folder)
    assert "5 lines of metrics.jsonl could not be read" in page
    assert "cut short" not in page
    assert "Steps 2 2 logged" in text_of(page)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), None, 1e300])
def test_loss_that_is_not_finite_is_said_and_not_drawn(tmp_path: Path, loss: Any) -> None:
    lines = [train_line(step, loss=loss if step == 3 else 3.0) for step in range(1, 7)]
    page = page_of(run_folder(tmp_path / "run", lines))
    assert "The loss was not finite in 1 logged steps, first at step 3." in page
    assert not re.search(r"\bnan\b|\binf\b", page, re.IGNORECASE)


def test_run_without_steps_still_has_a_page(tmp_path: Path) -> None:
    page = page_of(run_folder(tmp_path / "run", [{"event": "start", "step": 0, "time_s": 0.0}]))
    parsed(page)
    assert "No training step has been logged yet." in page
    assert "<svg" not in page
    assert "pretrain" in page
    empty = page_of(run_folder(tmp_path / "empty", [], config=""))
    assert "No training step has been logged yet." in empty


def test_single_step_and_constant_curves_are_drawn(tmp_path: Path) -> None:
    line = train_line(1, mfu=0.0, grad_norm=0.0, weight_decay=1e-5, batch_rows=4, mask_rate=0.3)
    page = page_of(run_folder(tmp_path / "one", [line]))
    assert '<figure id="loss"' in page
    assert "Mask rate 30% throughout." in page
    assert "Nothing logged for: Evaluation loss, Model FLOPs utilisation." in page


def test_a_single_curve_is_named_unless_the_title_does(tmp_path: Path) -> None:
    views = {"mask_0.3": {"all": {"loss": 2.5, "accuracy": 0.5, "masked_tokens": 10}}}
    lines = [train_line(1), train_line(2), eval_line(1, all=3.0), eval_line(2, all=2.0)]
    lines[2:] = [line | {"views": views} for line in lines[2:]]
    page = page_of(run_folder(tmp_path, lines))
    legends = dict(re.findall(r"<h3>([^<]*)</h3><ul class=\"legend\">(.*?)</ul>", page))
    assert "mask_0.3" in text_of(legends["Evaluation loss at other mask rates and lengths"])
    assert text_of(legends["Throughput"]).split() == ["500.0"]


def test_evaluation_lines_before_any_step_do_not_need_training(tmp_path: Path) -> None:
    lines = [eval_line(0, all=10.5), train_line(1), eval_line(1, all=10.0)]
    assert "10.000 all domains, step 1" in text_of(page_of(run_folder(tmp_path / "a", lines)))
    parsed(page_of(run_folder(tmp_path / "b", lines[:1])))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"domains": 3, "fill_mask": [1, {"predictions": 2}]}']
)
def test_damaged_evaluation_and_recipe_do_not_stop_the_page(tmp_path: Path, text: str) -> None:
    folder = run_folder(tmp_path / "run", [train_line(1)], config="phases: [{")
    (folder / "evaluation.json").write_text(text)
    page = page_of(folder)
    parsed(page)
    assert "config.yaml is not valid YAML" in page
    assert ("evaluation.json could not be read" in page) == (text in ("{", "[]"))


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: it holds no metrics\.jsonl"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_report_can_be_written_again_and_leaves_nothing_else(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [train_line(1)])
    assert page_of(folder) == page_of(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
    ]


def test_phases_without_numbers_are_tolerated() -> None:
    phases = [{"name": 3, "slots": "many", "mixture": {"a": 0, "b": "x"}}, "odd", {}]
    assert [(p.name, p.slots, p.mixture) for p in asked_phases({"phases": phases}, RunLog())] == [
        ("3", None, {}),
        ("", None, {}),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (98304, "98.3K"), (999_950, "1M"), (1.719e12, "1.72T"), (5e10, "50B")],
)
def test_counts_read_as_in_recipes(value: float, text: str) -> None:
    assert charts.si(value) == text


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert charts.nice_ticks(0.0, 0.97) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert charts.tick_labels([99.95, 99.975, 100.0]) == ["99.950", "99.975", "100"]
    assert charts.tick_labels([0.0, 2e-4, 4e-4]) == ["0", "2e-4", "4e-4"]
    assert charts.tick_labels([0.0, 1e6, 2e6]) == ["0", "1M", "2M"]
    for low, high in ((3.0, 3.0), (0.0, 0.0), (-3e8, 5e9), (1e-9, 2e-9), (99.7, 99.9)):
        scale = charts.y_scale([low, high])
        assert scale.low <= low <= high <= scale.high
        assert 2 <= len(scale.ticks) <= 9
    logarithmic = charts.y_scale([0.5, 40.0], log_from=30.0)
    assert logarithmic.log
    assert logarithmic.ticks == [0.5, 1, 2, 5, 10, 20]
    assert charts.y_scale([0.2, 101.0], limits=(0.0, 100.0)).high >= 101.0


def test_report_needs_no_torch() -> None:
    code = "import restomod.tools.report.run, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

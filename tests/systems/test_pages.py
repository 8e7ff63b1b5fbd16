"""The pages in a browser: Debian's Chromium, driven by Playwright."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from restomod.prepare.card import write_card
from restomod.recipe import load_recipe
from restomod.sweep.page import write_sweep_page
from restomod.sweep.study import Trial
from restomod.tools.plan import page as plan_page
from restomod.tools.plan.parts import Target
from restomod.tools.plan.plan import make_plan
from restomod.tools.report.report import report
from tests.conftest import Tiny
from tests.unit.prepare.test_card import MANIFEST
from tests.unit.sweep.test_page import SWEEP, TRIALS, trial
from tests.unit.tools.report.test_run import CONFIG, eval_line, run_folder, train_line

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="needs chromium (Debian's package) on the path"
)

CHECKS = Path(__file__).with_name("page_checks.js")
PAGES = ("run", "runs", "sweep", "plan", "card")
PHONE, DESK = {"width": 390, "height": 800}, {"width": 1280, "height": 900}
OPENS_MS = 3000


def write_run(folder: Path, steps: int, lr: float, resumed: bool = False) -> Path:
    """Write what a run of two phases leaves, with evaluations and samples."""
    noise = random.Random(steps)
    lines: list[dict[str, Any]] = [{"event": "start", "step": 0, "time_s": 0.1, "world_size": 8}]
    for step in range(1, steps + 1):
        if resumed and step == steps // 2:
            lines.append({"event": "resume", "step": step - 1, "time_s": 2.0 * step})
        phase = "pretrain" if step < 0.7 * steps else "decay"
        loss = 3.0 + 6.0 / (1 + lr * 1e3 * step) + noise.gauss(0, 0.1)
        schedules = {"lr": lr, "mask_rate": 0.3 if phase == "pretrain" else 0.15, "batch_rows": 4}
        lines.append(train_line(step, loss=loss, phase=phase, **schedules))
        if step % max(1, steps // 5) == 0:
            lines.append(eval_line(step, code=loss - 0.2, prose=loss + 0.2, all=loss))
            lines.append({"event": "samples", "step": step, "samples": [passage(lr)]})
    config = CONFIG.replace("small-run", folder.name) + f"optimizer: {{lr: {lr}}}\n"
    scores = {"loss": 3.1, "accuracy": 0.5, "unigram_loss": 6.3, "unigram_accuracy": 0.1}
    return run_folder(
        folder, lines, config, {"domains": {"all": scores}, "fill_mask": [passage(lr)]}
    )


def passage(probability: float) -> dict[str, Any]:
    guesses = [
        {"token": " sat", "probability": 10 * probability},
        {"token": "\n", "probability": 0},
    ]
    text = "the cat [MASK] on the mat, and it stayed there for a long time " * 3
    return {"domain": "prose", "text": text, "expected": "sat", "predictions": guesses}


@pytest.fixture(scope="module")
def pages(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    first = write_run(folder / "first", 90, 1e-3, resumed=True)
    second = write_run(folder / "second-run-with-a-name-that-is-rather-long-for-a-table", 60, 3e-3)
    (second / "config.yaml").write_text("optimizer: [")
    recipe = tiny.write(folder / "recipe.yaml")
    plan_page.write_page(make_plan(load_recipe([recipe]), Target(1, 1, "")), folder / "plan.html")
    write_card(MANIFEST, folder / "card.html")
    return {
        "run": report([first], None),
        "runs": report([first, second, folder], folder / "runs.html"),
        "sweep": write_sweep_page(SWEEP, sweep_trials(folder), folder),
        "plan": folder / "plan.html",
        "card": folder / "card.html",
    }


def sweep_trials(folder: Path) -> list[Trial]:
    """Write the runs of more trials than have names in the legends."""
    trials = [*TRIALS, *(trial(n, "done", 4.0 + n, 1e-3, "rmsnorm", 1) for n in range(4, 12))]
    for each in trials:
        write_run(folder / SWEEP.run_name(each.number), 20, 1e-3 * (each.number + 1))
    return trials


@dataclass
class Opened:
    """A page in the browser, and all that it said and asked for."""

    page: Any
    said: list[str]
    asked: list[str]

    def check(self, name: str) -> Any:
        return self.page.evaluate(f"checks.{name}()")


Open = Callable[..., contextlib.AbstractContextManager[Opened]]


@pytest.fixture(scope="module")
def opened() -> Iterator[Open]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)

        @contextlib.contextmanager
        def open_page(path: Path, size: dict[str, int] = DESK, **wishes: str) -> Iterator[Opened]:
            with contextlib.closing(browser.new_context(viewport=size, **wishes)) as context:
                page = context.new_page()
                seen = Opened(page, [], [])
                page.on("console", lambda message: seen.said.append(message.text))
                page.on("pageerror", lambda error: seen.said.append(str(error)))
                page.on("request", lambda request: seen.asked.append(request.url))
                page.goto(path.as_uri())
                page.add_init_script(path=CHECKS)
                page.evaluate(CHECKS.read_text())
                yield seen

        yield open_page
        browser.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_pages_are_readable_silent_and_alone(pages, opened: Open, name, scheme, size) -> None:
    with opened(pages[name], size, color_scheme=scheme) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert seen.check("faintText") == []
        assert seen.check("faintLines") == []
        assert seen.check("wider") == []
        seen.page.mouse.wheel(0, 20_000)
        assert seen.said == []
        assert seen.asked == [pages[name].as_uri()]


@pytest.mark.parametrize("name", PAGES)
def test_pages_have_what_a_screen_reader_needs(pages, opened: Open, name) -> None:
    with opened(pages[name], reduced_motion="reduce") as seen:
        assert seen.page.evaluate("document.documentElement.lang") == "en"
        assert seen.check("headings") == []
        assert seen.check("chartsWithoutText") == 0
        assert seen.page.locator("svg.plot").count() > 0
        tables = seen.page.locator("figure[data-unit]").count()
        assert seen.page.locator("figure[data-unit] details table").count() >= tables * (
            name in ("run", "runs", "sweep")
        )
        scrolling = "getComputedStyle(document.documentElement).scrollBehavior"
        assert seen.page.evaluate(scrolling) == "auto"


@pytest.mark.parametrize("name", PAGES)
def test_every_control_is_reached_by_tab_and_shows_it(pages, opened: Open, name) -> None:
    with opened(pages[name], reduced_motion="reduce") as seen:
        controls = seen.check("mark")
        reached = []
        for _ in range(controls):
            seen.page.keyboard.press("Tab")
            focus = seen.check("focused")
            assert focus["visible"], focus["name"]
            assert focus["inView"], focus["name"]
            reached.append(focus["control"])
        assert reached == list(range(controls))


def test_keys_move_the_cursor_change_the_axis_and_open_tables(pages, opened: Open) -> None:
    with opened(pages["runs"], reduced_motion="reduce") as seen:
        page, key = seen.page, seen.page.keyboard.press
        figure = page.locator("#loss")
        at, values = figure.locator("[data-at]"), figure.locator("[data-value]")
        latest = values.all_inner_texts()
        figure.locator(".by-tokens svg.plot").focus()
        key("Home")
        assert at.inner_text() == "at 0 slots"
        assert values.all_inner_texts() != latest
        key("End")
        assert at.inner_text() == "at 90.00K slots"
        first, second = values.all_inner_texts()
        assert float(first) == pytest.approx(float(latest[0]), abs=0.01)
        assert second == "\u2013"  # that run had ended
        key("PageDown")
        assert at.inner_text() == "at 81.00K slots"
        key("Escape")
        assert at.inner_text() == "latest"
        assert values.all_inner_texts() == latest

        page.locator("#x-tokens").focus()
        key("ArrowRight")
        assert figure.locator(".by-time").is_visible()
        assert not figure.locator(".by-tokens").is_visible()
        figure.locator("summary").focus()
        key("Enter")
        assert figure.locator("table").is_visible()
        page.locator("nav a", has_text="Samples").focus()
        key("Enter")
        page.wait_for_url("**#samples")
        top = "document.querySelector('#samples').getBoundingClientRect().top"
        assert -1 <= page.evaluate(top) < 200


def test_a_row_of_the_trials_lights_up_its_curves(pages, opened: Open) -> None:
    stroke = "e => getComputedStyle(e).strokeWidth"
    with opened(pages["sweep"]) as seen:
        curve = seen.page.locator("#loss-tokens-t ~ svg .trial-2").first
        assert curve.evaluate(stroke) == "1.8px"
        seen.page.locator("#row-2").hover()
        assert curve.evaluate(stroke) == "4px"


def shown_after_ms(seen: Opened) -> float:
    """Return when the browser had first shown something, or had loaded everything if later."""
    seen.page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)))")
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    load = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    return max(seen.page.evaluate(paint), seen.page.evaluate(load))


def test_a_run_of_ten_steps_opens_quickly(tmp_path, opened: Open) -> None:
    page = report([write_run(tmp_path / "short", 10, 1e-3)], None)
    with opened(page) as seen:
        assert shown_after_ms(seen) < OPENS_MS


@pytest.mark.slow
def test_a_run_of_a_million_steps_opens_as_quickly(tmp_path, opened: Open) -> None:
    folder = write_run(tmp_path / "long", 10, 1e-3)
    line = json.dumps(train_line(-1, loss=-2.5, tokens=-3))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 1_000_001):
            loss = f"{2 + 8 / step + step % 7 / 100:.4f}"
            text = line.replace('"step": -1', f'"step": {step}').replace("-2.5", loss)
            file.write(text.replace('"tokens": -3', f'"tokens": {step * 1000}') + "\n")
    page = report([folder], None)
    assert page.stat().st_size < 1_000_000
    with opened(page) as seen:
        assert "1,000,000 logged" in seen.page.inner_text("header")
        assert shown_after_ms(seen) < OPENS_MS

import re
from dataclasses import replace
from html.parser import HTMLParser

from restomod.recipe import load_recipe
from restomod.tools.pages.frame import render
from restomod.tools.plan.page import page
from restomod.tools.plan.parts import Target
from restomod.tools.plan.plan import make_plan


class Elements(HTMLParser):
    """Counts elements, and complains where tags do not match."""

    VOID = ("meta", "input", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_has_schedules_tables_and_warnings_and_no_address(tiny, tmp_path):
    recipe = load_recipe([tiny.write(tmp_path / "recipe.yaml")])
    recipe.phases.append(replace(recipe.phases[0], name="<b>decay", rope_base_global=160_000.0))
    plan = make_plan(recipe, Target(2, 2, "h100"))
    text = render(page(plan))
    elements = Elements()
    elements.feed(text)
    assert elements.open == []
    assert elements.seen.count("figure") == 2  # of five schedules; the others never change
    assert "Mask rate 30.0% throughout." in text
    assert elements.seen.count("table") == sum(s.table is not None for s in plan.sections) == 5
    names = {name for name, _ in elements.attributes}
    assert not names & {"src", "srcset", "action", "data"}
    assert all(value.startswith("#") for name, value in elements.attributes if name == "href")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<b>decay" not in text
    assert "&lt;b&gt;decay" in text
    for section in plan.sections:
        for warning in section.warnings:
            assert warning.split("<")[0] in text
    paths = dict(re.findall(r'data-label="([^"]+)" d="([^"]+)"', text))
    points = re.findall(r"[\d.]+,([\d.]+)", paths["RoPE base of global layers"])
    assert float(points[0]) > 900  # 10,000, of an axis that ends above 160,000 at 0
    assert float(points[-1]) < 250

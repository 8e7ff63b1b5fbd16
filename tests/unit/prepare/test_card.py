"""The card says what the manifest holds, whatever is missing, and lets none of it out as HTML."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from restomod.errors import UserError
from restomod.prepare.card import write_card

NONE = "\u2013"
VOID = {"meta", "br", "line", "rect"}
NASTY = "<script>alert('x')</script> & \"quoted\" \ud800"

MANIFEST = {
    "name": "demo corpus",
    "description": "For tests.",
    "created": "2026-01-02 03:04 UTC",
    "seconds": 3723,
    "sources": [
        {
            "name": "peps",
            "domain": "prose",
            "licence": "CC0-1.0",
            "url": "https://peps.python.org/?a=1&b=2",
            "description": "Proposals.",
            "documents": 600,
            "text_bytes": 9_000_000,
            "tokens": 2_000_000,
            "length_histogram": {"1024": 400, "4096": 200},
            "splits": {"train": {"documents": 570}, "heldout": {"documents": 30}},
        },
        {
            "name": "wiki",
            "domain": "prose",
            "licence": "CC-BY-SA-4.0",
            "url": "javascript:alert(1)",
            "documents": 400,
            "text_bytes": 1_000_000,
            "tokens": 1_000_000,
            "length_histogram": {"64": 100, "1024": 300},
        },
        {
            "name": "stdlib",
            "domain": "code",
            "documents": 100,
            "text_bytes": 4_000_000,
            "tokens": 1_000_000,
            "length_histogram": {"8192": 100},
        },
    ],
    "stages": [
        {
            "name": "read",
            "documents_in": 2000,
            "documents_out": 1900,
            "text_bytes_out": 2e7,
            "dropped": {"empty_document": 60, "not_json": 40},
            "altered": {"lone_surrogates_replaced": 7},
            "seconds": 12,
        },
        {
            "name": "near duplicates",
            "documents_in": 1900,
            "documents_out": 1100,
            "dropped": {"near_duplicate": 800},
        },
    ],
    "rejects": [
        {
            "stage": "near duplicates",
            "reason": "near_duplicate",
            "source": "wiki",
            "origin": "wiki.jsonl:12",
            "detail": "repeats wiki.jsonl:3",
            "text": "Once upon a time " * 200,
        }
    ],
    "tokenizer": {
        "path": "tok",
        "fingerprint": "ab" * 32,
        "vocab_size": 50368,
        "fertility": {
            "prose": {
                "own": {
                    "words": 1000,
                    "tokens_per_word": 1.234,
                    "bytes_per_token": 4.5,
                    "unknown_share": 0.0,
                    "piece_share": 0.015,
                }
            }
        },
    },
    "versions": {"python": "3.11.9", "datatrove": "0.9.0"},
}


class Page(HTMLParser):
    """Checks that tags are balanced; collects tables, sections, links, and text."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.sections, self.links, self.tags = [], [], [], set()
        self.tables, self.notices, self.text, self.ids = [], [], "", []
        self.feed(html)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.ids += [values["id"]] if "id" in values else []
        if tag not in VOID or (tag == "rect" and not self.closes_itself):
            self.open.append((tag, values))
        if tag == "section":
            self.sections.append(values["id"])
        if tag == "a" and not values["href"].startswith("#"):
            self.links.append(values["href"])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "li" and any(v.get("class") == "notices" for _, v in self.open):
            self.notices.append("")

    closes_itself = False

    def handle_startendtag(self, tag, attributes):
        self.closes_itself = True
        self.handle_starttag(tag, attributes)
        self.closes_itself = False

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        inside = [tag for tag, _ in self.open]
        if "style" not in inside:
            self.text += data
        if "td" in inside or "th" in inside:
            self.tables[-1][-1][-1] += data
        elif "li" in inside and self.notices:
            self.notices[-1] += data

    def table(self, first_heading):
        return next(table for table in self.tables if table[0][0] == first_heading)


def card(tmp_path, manifest):
    path = tmp_path / "out" / "card.html"
    write_card(manifest, path)
    assert [p.name for p in path.parent.iterdir()] == ["card.html"]
    html = path.read_text(encoding="utf-8")
    return Page(html), html


def test_it_shows_every_part_of_a_full_manifest(tmp_path):
    page, _ = card(tmp_path, MANIFEST)
    assert page.sections == [
        "domains", "sources", "stages", "lengths", "tokenizer", "rejects", "versions",
    ]  # fmt: skip
    assert "4M tokens in 1.1K documents, 14 MB of text, from 3 sources." in page.text
    domains = page.table("domain")
    assert domains[1] == ["prose", "2", "1,000", "3,000,000", "10 MB", "75.0%", "3,000", "3.33"]
    assert domains[2][:2] == ["code", "1"]
    assert domains[3][:4] == ["all", "3", "1,100", "4,000,000"]
    sizes, origins = (table for table in page.tables if table[0][0] == "source")
    assert sizes[1] == ["peps", "prose", "600", "2,000,000", "9 MB", "50.0%", "30"]
    assert origins[1] == ["peps", "CC0-1.0", "https://peps.python.org/?a=1&b=2", "Proposals."]
    stages, reasons = (table for table in page.tables if table[0][0] == "stage")
    assert stages[1] == ["read", "2,000", "100", "1,900", "95.0%", "20 MB", "12 s"]
    assert stages[2] == ["near duplicates", "1,900", "800", "1,100", "55.0%", NONE, NONE]
    assert reasons[1] == ["read", "dropped", "empty_document", "60", "3.0%"]
    assert ["read", "altered", "lone_surrogates_replaced", "7", "0.4%"] in reasons
    fertility = page.tables[-2]
    assert fertility[1] == ["prose", "own", "1,000", "1.234", "4.500", "0.0%", "1.5%"]
    assert page.tables[-1][1:] == [["python", "3.11.9"], ["datatrove", "0.9.0"]]
    for said in (
        "ab" * 32,
        "50,368 tokens",
        "repeats wiki.jsonl:3",
        "Prepared 2026-01-02",
        "1 h 02 min",
    ):
        assert said in page.text
    assert page.notices == ["No licence is named for: stdlib."]


def test_histograms_have_a_column_for_every_power_of_two_between_the_ends(tmp_path):
    _, html = card(tmp_path, MANIFEST)
    figures = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
    titles = [re.search(r"<h3>(.*?)</h3>", figure)[1] for figure in figures]
    assert titles == ["all domains", "prose", "code"]
    assert [figure.count("<rect") for figure in figures] == [8, 8, 8]
    columns = re.findall(r"<rect[^>]* height=\"([\d.]+)%\"><title>(.*?)</title>", figures[1])
    assert columns[0][1] == "64 to 127: 100 documents"
    assert columns[4][1] == "1,024 to 2,047: 700 documents"
    heights = [float(height) for height, _ in columns]
    assert heights[4] == pytest.approx(7 * heights[0], abs=0.05)
    assert heights[1] == heights[2] == heights[3] == heights[5] == heights[7] == 0


def test_it_loads_nothing_and_runs_nothing(tmp_path):
    page, html = card(tmp_path, MANIFEST)
    assert page.links == ["https://peps.python.org/?a=1&b=2"]
    assert not page.tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not re.search(r"\b(src|on\w+|xlink:href)=|@import|url\(", html)
    assert "default-src 'none'" in html


def poisoned(value):
    if isinstance(value, dict):
        return {f"{key}": poisoned(content) for key, content in value.items()}
    if isinstance(value, list):
        return [poisoned(content) for content in value]
    return NASTY if isinstance(value, str) else value


def test_every_text_of_the_manifest_is_escaped(tmp_path):
    manifest = poisoned(copy.deepcopy(MANIFEST))
    manifest["notes"] = [NASTY]
    for stage in manifest["stages"]:
        stage["dropped"] = {NASTY: 1}
    manifest["versions"] = {NASTY: NASTY}
    manifest["tokenizer"]["fertility"] = {NASTY: {NASTY: {"words": 1}}}
    manifest["sources"][0]["url"] = "https://example.org/" + NASTY
    page, html = card(tmp_path, manifest)
    assert "script" not in page.tags
    assert "<script" not in html
    assert page.text.count("<script>alert('x')</script>") > 20
    assert page.links == ["https://example.org/" + NASTY.replace("\ud800", "?")]


@pytest.mark.parametrize("part", [*MANIFEST, None])
def test_any_part_may_be_missing_or_of_another_type(tmp_path, part):
    if part is None:
        page, _ = card(tmp_path, {})
        assert page.sections == []
        assert "names no source" in page.text
        return
    without = {key: value for key, value in MANIFEST.items() if key != part}
    page, _ = card(tmp_path, without)
    assert part not in page.sections
    for other in (None, 3, "text", [], {}, [None, 3, "x", {}], {"a": [1]}, float("nan")):
        card(tmp_path, {**MANIFEST, part: other})


def test_any_field_of_a_record_may_be_missing_or_of_another_type(tmp_path):
    for list_ in ("sources", "stages", "rejects"):
        for field in MANIFEST[list_][0]:
            for other in (
                None,
                "text",
                [1],
                {"x": None},
                {"5": -1, "0": 2, "9" * 5000: 1, "6": 0.2},
                float("inf"),
                -5,
            ):
                manifest = copy.deepcopy(MANIFEST)
                manifest[list_][0][field] = other
                card(tmp_path, manifest)


def test_what_does_not_add_up_is_said(tmp_path):
    manifest = copy.deepcopy(MANIFEST)
    manifest["notes"] = ["Sampled by hand."]
    manifest["stages"][0]["dropped"]["not_json"] = 39
    manifest["stages"][1]["documents_in"] = 1899
    page, _ = card(tmp_path, manifest)
    assert page.notices == [
        "Sampled by hand.",
        "No licence is named for: stdlib.",
        "Stage read lost 100 documents and gives reasons for 99.",
        "Stage near duplicates took in 1,899 documents, and the one before it let out 1,900.",
        "Stage near duplicates lost 799 documents and gives reasons for 800.",
    ]


def test_shares_are_of_bytes_where_tokens_are_not_known(tmp_path):
    manifest = copy.deepcopy(MANIFEST)
    for source in manifest["sources"]:
        del source["tokens"]
    page, _ = card(tmp_path, manifest)
    domains = page.table("domain")
    assert domains[0][5] == "share of text"
    assert domains[1][5] == "71.4%"
    assert domains[1][3] == NONE


def test_it_takes_a_manifest_read_from_json_and_many_domains_and_rejects(tmp_path):
    manifest = json.loads(json.dumps(MANIFEST))
    manifest["sources"] = [
        {**MANIFEST["sources"][0], "domain": f"d{n}", "tokens": n + 1} for n in range(30)
    ]
    manifest["rejects"] = MANIFEST["rejects"] * 100
    page, html = card(tmp_path, manifest)
    assert html.count("<figure") == 13
    assert html.count("<article") == 60
    assert "The 12 largest of 30 domains." in page.text
    assert "The first 60 of 100." in page.text
    assert len(page.table("domain")) == 32


def test_what_cannot_be_written_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_card(MANIFEST, tmp_path / "file" / "card.html")
    with pytest.raises(UserError, match="not a list"):
        write_card([], tmp_path / "card.html")

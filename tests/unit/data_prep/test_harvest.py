"""The demo's corpus: no text twice, nothing held out in training, the same on every machine."""

import json
import shutil

import harvest
import pytest

from restomod.harvest import heldout, installed, python_text
from tests.installed import install

LONG = "A sentence about {0} that goes on for a while, number {1} of its kind.\n"


def long_text(about, lines=6):
    return "".join("    " + LONG.format(about, n) for n in range(lines))


def module(name, functions=12):
    code = f'"""\n{long_text(name + " module")}"""\nimport os\n'
    for n in range(functions):
        code += (
            f"\n\ndef compute_{name}_{n}(first_{n}, second_{n}):\n"
            f'    """\n{long_text(f"{name} function {n}")}    """\n'
            f"    result_of_{name} = first_{n} * {n} + second_{n}\n"
            f"    return os.path.join(str(result_of_{name}), 'the_file_of_{name}_{n}')\n"
        )
    return code


NAMES = [f"pack_{letter}" for letter in "abcdefgh"]


@pytest.fixture
def site(tmp_path):
    site = tmp_path / "site-packages"
    for name in NAMES:
        # The import name is not the distribution's: what counts is which RECORD names a file.
        files = {f"import_{name}/{n}.py": module(f"{name}_{n}") for n in range(3)}
        files[f"import_{name}/guide.rst"] = long_text(f"the guide of {name}", 20)
        install(site, name, files, long_text(f"the description of {name}", 20))
    for name in ("numpy", "sympy", "networkx", "mpmath"):
        install(site, name, {f"{name}/{n}.py": module(f"{name}_{n}") for n in range(3)})
    install(site, "restomod", {"restomod/a.py": module("own")})
    return site


def run(site, out, *options):
    arguments = ["--site-packages", str(site), "--no-stdlib", "--workers", "1", "--out", str(out)]
    return harvest.main([*arguments, *options])


def documents(out, split, domains=harvest.DOMAINS):
    return [
        json.loads(line)
        for domain in domains
        for line in (out / domain / f"{split}.jsonl").read_text().splitlines()
    ]


def files_of(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*.jsonl"))}


def test_no_distribution_is_on_both_sides_whatever_its_import_name(site, tmp_path):
    assert run(site, tmp_path / "out") == 0
    sides = {
        split: {d["origin"]["distribution"] for d in documents(tmp_path / "out", split)}
        for split in harvest.SPLITS
    }
    assert sides["heldout"]
    assert not sides["train"] & sides["heldout"]
    assert sides["train"] | sides["heldout"] == {installed.canonical(n) for n in NAMES} | {
        "numpy",
        "sympy",
        "networkx",
        "mpmath",
    }
    for domain in harvest.DOMAINS:
        assert documents(tmp_path / "out", "heldout", [domain])
        assert documents(tmp_path / "out", "train", [domain])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["result"]["heldout_distributions"]) == sides["heldout"]


def test_domains_hold_what_they_say_and_docstrings_are_not_in_the_code(site, tmp_path):
    run(site, tmp_path / "out")
    both = [d for split in harvest.SPLITS for d in documents(tmp_path / "out", split)]
    code = "".join(d["text"] for d in both if d["domain"] == "code")
    assert code.count("\ndef compute_pack_") > 200
    assert "A sentence about" not in code
    science = [d for d in both if d["domain"] == "science"]
    assert {d["origin"]["distribution"] for d in science} <= installed.SCIENCE
    prose = [d for d in both if d["domain"] == "prose"]
    assert not {d["origin"]["distribution"] for d in prose} & installed.SCIENCE
    names = {(d["origin"]["file"], d["origin"]["name"]) for d in prose}
    assert {("METADATA", "description"), ("import_pack_b/guide.rst", "")} <= names
    assert ("import_pack_b/1.py", "compute_pack_b_1_3") in names
    assert str(tmp_path) not in (tmp_path / "out" / "code" / "train.jsonl").read_text()


def test_order_and_sample_do_not_depend_on_the_file_system_or_the_workers(
    site, tmp_path, monkeypatch
):
    # Room for about two of a distribution's three modules.
    monkeypatch.setattr(installed, "DISTRIBUTION_MB", {"prose": 0.022, "science": 0.022})
    options = ("--code-mb", "0.03", "--prose-mb", "0.05", "--science-mb", "0.04")
    run(site, tmp_path / "one", *options)
    other = tmp_path / "other"
    for path in sorted(site.rglob("*"), reverse=True):
        if path.is_file():
            target = other / path.relative_to(site)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    for record in other.rglob("RECORD"):
        record.write_text("\n".join(reversed(record.read_text().splitlines())) + "\n")
    run(other, tmp_path / "two", "--workers", "2", *options)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["result"]["skipped_files"]["over_distribution_share"] > 5


def test_a_cap_keeps_a_part_of_what_a_larger_one_gives(site, tmp_path):
    run(site, tmp_path / "large")
    run(site, tmp_path / "small", "--prose-mb", "0.03")
    texts = [
        {d["text"] for split in harvest.SPLITS for d in documents(tmp_path / out, split, ["prose"])}
        for out in ("large", "small")
    ]
    assert texts[1] < texts[0]
    size = sum(len(text.encode()) for text in texts[1])
    assert size < 0.03e6 + 30_000


def test_exact_and_near_duplicates_are_dropped_and_counted(site, tmp_path):
    run(site, tmp_path / "out")
    held = json.loads((tmp_path / "out" / "manifest.json").read_text())["result"]
    victim = held["heldout_distributions"][0]
    kept = next(
        name for name in NAMES if installed.canonical(name) not in held["heldout_distributions"]
    )
    original = next(
        d
        for d in documents(tmp_path / "out", "heldout", ["prose", "science"])
        if d["origin"]["distribution"] == victim
    )["text"]
    near = original + "\n" + LONG.format("something else", 1)
    source = site / f"import_{kept}"
    (source / "near.md").write_text(near)
    (source / "again.md").write_text(near.replace("\n", "  \n"))
    info = site / f"{kept}-1.0.dist-info" / "RECORD"
    sizes = [f"import_{kept}/{n},,{(source / n).stat().st_size}\n" for n in ("near.md", "again.md")]
    info.write_text(info.read_text() + "".join(sizes))
    run(site, tmp_path / "new")
    result = json.loads((tmp_path / "new" / "manifest.json").read_text())["result"]
    assert result["dropped"]["exact_duplicate"] == 1
    near_dropped = [n for reason, n in result["dropped"].items() if "near_duplicate" in reason]
    assert sum(near_dropped) == 1
    assert result["documents_read"] == result["documents_kept"] + sum(result["dropped"].values())
    trained = {d["text"] for d in documents(tmp_path / "new", "train")}
    held_out = {d["text"] for d in documents(tmp_path / "new", "heldout")}
    assert len({original, near, near.replace("\n", "  \n")} & (trained | held_out)) == 1
    assert not trained & held_out


def test_files_that_are_no_good_are_passed_over_and_counted(tmp_path):
    site = tmp_path / "site"
    good = {f"p/{n}.py": module(f"good{n}") for n in range(2)}
    bad = {
        "p/tests/test_x.py": module("a"),
        "p/_vendor/x.py": module("b"),
        "p/x_pb2.py": module("c"),
        "p/made.py": "# Automatically generated, do not edit\n" + module("d"),
        "p/min.py": "x = 1;" * 1000,
        "p/table.py": "T = [\n" + "    0x10, 0x20, 0x30,\n" * 200 + "]\n",
        "p/broken.py": module("e") + "\ndef (:\n",
        "p/tiny.py": "x = 1\n",
        "p/LICENSE.txt": long_text("law"),
        "p/words.txt": "word\n" * 100,
        "p/huge.py": module("f") + "# a comment that fills the file\n" * 50_000,
        "p/gone.py": module("g"),
    }
    install(site, "p", {**good, **bad})
    install(site, "q", {"q/a.py": module("other")})
    (site / "p/gone.py").unlink()
    (site / "p/not_in_any_record.py").write_text(module("stray"))
    assert run(site, tmp_path / "out") == 0
    found = {d["origin"]["file"] for s in harvest.SPLITS for d in documents(tmp_path / "out", s)}
    assert found == {"p/0.py", "p/1.py", "q/a.py"}
    skipped = json.loads((tmp_path / "out" / "manifest.json").read_text())["result"]
    assert skipped["skipped_files"] == {
        "tests": 1,
        "vendored": 1,
        "generated": 2,
        "minified": 1,
        "table": 1,
        "does_not_parse": 1,
        "too_small": 1,
        "licence_or_list": 1,
        "list": 1,
        "too_large": 1,
        "unreadable": 1,
    }


def test_held_out_shares_are_near_the_goal_in_every_domain():
    sizes = {f"d{n}": {"code": 1000 + 37 * n, "prose": 500 + (n * 91) % 700} for n in range(60)}
    sizes |= {f"s{n}": {"code": 3000, "science": 1000 * (n + 1)} for n in range(5)}
    chosen = heldout.choose_heldout(sizes)
    assert chosen == heldout.choose_heldout(dict(reversed(sizes.items())))
    for domain in harvest.DOMAINS:
        total = sum(of_domain.get(domain, 0) for of_domain in sizes.values())
        held = sum(sizes[name].get(domain, 0) for name in chosen)
        assert 0.05 <= held / total <= 0.08
    assert len(chosen) > 3
    assert len(heldout.choose_heldout({"only": {"code": 10}})) <= 1


def test_held_out_documents_above_their_share_are_dropped(tmp_path):
    site = tmp_path / "site"
    for name in ("p", "q"):
        files = {f"{name}/{n}.py": module(f"{name}{n}", functions=4) for n in range(20)}
        install(site, name, files)
    run(site, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "manifest.json").read_text())["result"]
    assert result["dropped"]["heldout_surplus"] > 0
    for of_split in result["domains"].values():
        sizes = [of_split[split]["text_bytes"] for split in harvest.SPLITS]
        assert sizes[1] <= 0.2 * sizes[0]


def test_the_time_cap_is_recorded(site, tmp_path, capsys):
    assert run(site, tmp_path / "out", "--max-seconds", "0") == 0
    assert "stopped after" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "manifest.json").read_text())["result"]
    assert result["time_cap_hit"] is True


def test_a_rerun_is_skipped_until_a_package_changes(site, tmp_path, capsys):
    run(site, tmp_path / "out")
    capsys.readouterr()
    assert run(site, tmp_path / "out") == 0
    assert "up to date" in capsys.readouterr().err
    install(site, "newcomer", {"newcomer/a.py": module("newcomer")})
    assert run(site, tmp_path / "out") == 2
    assert "changed inputs newcomer" in capsys.readouterr().err
    assert run(site, tmp_path / "out", "--refresh") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--code-mb", "0"), "--code-mb 0.0: must be"), (("--site-packages", "nowhere"), "nowhere")],
)
def test_impossible_options_are_refused(site, tmp_path, capsys, options, said):
    assert run(site, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_standard_library_is_one_distribution(tmp_path):
    stdlib = tmp_path / "lib"
    (stdlib / "site-packages").mkdir(parents=True)
    (stdlib / "site-packages" / "x.py").write_text(module("x"))
    (stdlib / "email").mkdir()
    (stdlib / "email" / "a.py").write_text(module("email"))
    (stdlib / "pydoc_data").mkdir()
    topics = {"assert": long_text("assert"), "if": long_text("if")}
    (stdlib / "pydoc_data" / "topics.py").write_text(f"# Autogenerated\ntopics = {topics!r}\n")
    sources = installed.find_sources([], stdlib)
    assert [source.name for source in sources] == [installed.STDLIB]
    result = harvest.harvest(sources, dict.fromkeys(harvest.DOMAINS, 1.0), 60, workers=1)
    names = {(d.file, d.name) for d in result.documents}
    assert {("pydoc_data/topics.py", "assert"), ("pydoc_data/topics.py", "if")} < names
    assert {file for file, _ in names} == {"pydoc_data/topics.py", "email/a.py"}


def test_python_is_taken_apart_without_loss():
    text = "word " * 60
    source = (
        f"# Copyright somebody\n# All lines of it\n\n'''{text}'''\nimport os  # kept\n\n"
        f"class A:\n    '''short one'''\n\n    def only(self):\n        r'''{text}'''\n\n"
        f"    if os.name:\n        async def inner(self):\n            '''é {text}'''  # gone\n"
        f"            return 'é'\n\n    def one_line(self): '{text}'\n"
    )
    split = python_text.split_python(source.encode())
    assert [name for name, _ in split.docstrings] == ["", "A.only", "A.inner"]
    assert split.code == (
        "import os  # kept\n\nclass A:\n    '''short one'''\n\n    def only(self):\n        ...\n\n"
        "    if os.name:\n        async def inner(self):\n            return 'é'\n\n"
        f"    def one_line(self): '{text}'\n"
    )
    compile(split.code, "code", "exec")
    assert python_text.may_hold_docstrings(source.encode())
    assert not python_text.may_hold_docstrings(b"'''short'''\n" + b"x = 1\n" * 100)

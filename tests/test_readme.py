"""What README, CONTRIBUTING and docs/ say is what files, results and programs have."""

import re
from pathlib import Path

import pytest
from documents import PATHS, TEXTS, blocks, commands
from running import ROOT, SCRIPTS
from test_documents import GATE

from docs import draw_networks
from tools import compare
from tools.shared import histories
from tools.shared.common import EXPERIMENTS
from tools.shared.comparison import estimate, metrics, units

README = TEXTS["README.md"]
WORDS = {"seg_iou": "seg IoU", "bbox_iou": "box IoU", "bin_accuracy": "accuracy"}
MIOU = {"seg_miou": "mIoU"}
RESULTS = {  # rows of the README's table: folder in results/ and NAME
    "`MTL_baseline`": ("128", "baseline"),
    "box head alone": ("128", "bbox_only"),
    "class head alone": ("128", "bin_only"),
    "`MTL_main`": ("128", "main"),
    "`MTL_OEQ`": ("128", "OEQ"),
    "`MTL_baseline` after 30,000 drawn pets": ("128_drawn30k", "baseline"),
    "`MTL_main` after 30,000 drawn pets": ("128_drawn30k", "main"),
    "`MTL_OEQ` after 30,000 drawn pets": ("128_drawn30k", "OEQ"),
    "the same, 240 epochs": ("128_drawn30k_240", "OEQ"),
    "`MTL_baseline`, folds 0 to 2": ("256", "baseline"),
    "`MTL_main`, folds 0 to 2": ("256", "main"),
    "`MTL_OEQ`, folds 0 to 2": ("256", "OEQ"),
    "`MTL_OEQ` from that of 240 epochs, folds 0 to 2": ("256_after_128", "OEQ"),
}


def test_the_gate_does_what_the_documents_leave_to_it():
    gate = (ROOT / ".ci" / "run").read_text()
    for text in TEXTS.values():
        for _, block in blocks(text, "sh"):
            for line in (" ".join(words) for words in commands(block)):
                if line.startswith(GATE) and "requirements.txt" not in line:
                    assert line.removeprefix("pip install") in gate
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text()


def links(name):
    """The files that a document links to or shows, as paths."""
    found = re.findall(r"\]\((?!http)([^)#]+)\)", TEXTS[name])
    return [(ROOT / name).parent / link for link in found]


@pytest.mark.parametrize("document", TEXTS)
def test_every_link_leads_to_a_file(document):
    missing = {path.relative_to(ROOT).as_posix() for path in links(document) if not path.exists()}
    assert not missing


def figures(folder, name, words=WORDS):
    """{word: text} of some metrics of a script's runs in results/, pooled over the folds."""
    runs = [run for _, run in histories.find([str(ROOT / "results" / folder)])]
    runs = [run for run in runs if run["name"] == name]
    wanted = [m for m in metrics({"": runs}, "test", everything=True) if m.name in words]
    return {words[m.name]: f"{estimate(units(runs, m, 'test'))[0]:.3f}" for m in wanted}


@pytest.mark.parametrize("label", RESULTS)
def test_the_table_of_the_readme_is_that_of_the_results(label):
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {label} |")]
    _, _, _, seg, miou, bbox, accuracy = (cell.strip() for cell in row.strip("|").split("|"))
    found = {"seg IoU": seg, "mIoU": miou, "box IoU": bbox, "accuracy": accuracy}
    found = {name: f"0{value}" for name, value in found.items() if value}
    assert found == figures(*RESULTS[label], WORDS | MIOU)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_figures_in_a_scripts_header_are_those_of_the_results(name):
    header = (ROOT / f"MTL_{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert dict(re.findall(r"(seg IoU|box IoU|accuracy) (0\.\d+)", header)) == figures("128", name)


def test_the_tables_of_the_comparisons_are_what_their_commands_print(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    document, compared = TEXTS["docs/results.md"], 0
    for _, block in blocks(document, "sh"):
        for words in commands(block):
            if words[1] == "tools/compare.py" and "results/" in words[2]:
                assert compare.main(words[2:]) == 0
                table = capsys.readouterr().out.split("\n\n")[0]
                assert table.strip() in document, " ".join(words)
                compared += 1
    assert compared


def test_every_page_and_script_is_named_in_the_readme():
    assert all(f"`{script}.py`" in README for script in SCRIPTS)
    linked = {path.resolve() for path in links("README.md")}
    assert set(PATHS) - {ROOT / "README.md"} <= linked


def test_every_paper_that_the_code_names_is_among_the_sources():
    folders = (
        "",
        "parts/",
        "engine/",
        "tools/",
        "tools/shared/",
        "examples/",
        "docs/",
        "benchmarks/",
    )
    code = [path for folder in folders for path in ROOT.glob(f"{folder}*.py")]
    named = r"arXiv:[\d.]+\d|https?://[^\s)\"',]+"
    papers = {paper for path in code for paper in re.findall(named, path.read_text("utf-8"))}
    papers = {paper.rstrip("/.") for paper in papers if not re.search("hdfgroup|w3.org", paper)}
    sources = TEXTS["docs/sources.md"]
    assert papers and not {paper for paper in papers if paper not in sources}


def test_the_drawing_of_the_networks_is_that_of_its_script():
    drawn = (ROOT / "docs" / "networks.svg").read_text(encoding="utf-8")
    assert drawn == draw_networks.picture()


def test_the_documents_are_short_and_the_licence_is_mit():
    assert README.count("\n") <= 150
    assert TEXTS["CONTRIBUTING.md"].count("\n") <= 50
    assert Path(ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the")


def test_the_release_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## (\S+) \((\S+)\)$", changes, re.MULTILINE).groups()
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {version}\n" in citation and f"date-released: {date}\n" in citation

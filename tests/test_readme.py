"""What README, CONTRIBUTING and docs/ say is what files, results and programs have."""

import difflib
import re
from pathlib import Path
from statistics import fmean

import pytest
from documents import PATHS, TEXTS, blocks, commands
from running import ROOT, SCRIPTS
from test_documents import GATE

from docs import draw_networks
from tools import compare
from tools.shared import histories
from tools.shared.common import EXPERIMENTS
from tools.shared.comparison import metrics, pooled

README = TEXTS["README.md"]
WORDS = {"seg_iou": "mask IoU", "bbox_iou": "box IoU", "bin_accuracy": "accuracy"}
SEEDS = ("128", "128_seeds")  # seed 0, seeds 1 and 2
LOW = ("128_low", "128_low_seeds")
RESULTS = {  # rows of the README's table: NAME and series in results/
    "`MTL_baseline`": ("baseline", *SEEDS),
    "`MTL_main`": ("main", *SEEDS),
    "`MTL_OEQ`": ("OEQ", *SEEDS),
    "`MTL_OEQ`, pre-trained on 30,000 synthetic pets, low learning rate": ("OEQ", *LOW),
    "`MTL_OEQ`, the same pre-training, default learning rate, 240 epochs": (
        "OEQ",
        "128_drawn30k_240",
    ),
    "three tasks on MobileNetV2 from ImageNet, 25 epochs": ("three", "128_pretrained"),
}
SUMMARY = {  # rows of the summary of results.md: metric, network, and RUNS of tools/compare.py
    "three tasks instead of one: mask": ("seg_iou", "main", *SEEDS, "baseline"),
    "three tasks instead of one: box": ("bbox_iou", "main", *SEEDS, "bbox_only"),
    "three tasks instead of one: cat or dog": ("bin_accuracy", "main", *SEEDS, "bin_only"),
    "boxes and labels for the mask of `MTL_OEQ`, all masks":
        ("seg_iou", "with OEQ", "with=128", "alone=128_mask_only", "alone"),
    "the same, half of the masks":
        ("seg_iou", "with OEQ", "with=128_m0.5", "alone=128_m0.5_mask_only", "alone"),
    "the same, a tenth of the masks":
        ("seg_iou", "with OEQ", "with=128_m0.1", "alone=128_m0.1_mask_only", "alone"),
    "the same, a twentieth of the masks":
        ("seg_iou", "with OEQ", "with=128_m0.05", "alone=128_m0.05_mask_only", "alone"),
    "pre-training on synthetic pets: mask of `MTL_baseline`":
        ("seg_iou", "with baseline", "with=128_drawn30k", "128", "baseline"),
    "pre-training on synthetic pets: mask of `MTL_OEQ`":
        ("seg_iou", "with OEQ", "with=128_drawn30k", "128", "OEQ"),
    "pre-training, then a low learning rate: mask of `MTL_OEQ`":
        ("seg_iou", "low", *(f"low={series}" for series in LOW), *SEEDS, "OEQ"),
    "from ImageNet, three tasks instead of one: mask":
        ("seg_iou", "three", "128_pretrained", "mask"),
    "from ImageNet, a tenth of the masks: mask": (
        *("seg_iou", "three", "128_m0.1_pretrained", "mask"),
    ),
    "`MTL_OEQ` instead of `MTL_main`: mask": ("seg_iou", "OEQ", *SEEDS, "main"),
    "PCGrad instead of fixed weights: mask": ("seg_iou", "pcgrad", "128_weighting", "main"),
}  # fmt: skip


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


def figures(name, *series, words=WORDS):
    """{word: text} of some metrics of a script's runs in results/, pooled over the folds."""
    runs = histories.find([str(ROOT / "results" / f"{each}.jsonl") for each in series])
    runs = [run for _, run in runs if run["name"] == name]
    wanted = [m for m in metrics({"": runs}, "test", everything=True) if m.name in words]
    return {words[m.name]: f"{pooled(runs, m, 'test')[0]:.3f}" for m in wanted}


def test_the_diff_of_the_readme_is_part_of_that_of_the_scripts():
    names = "MTL_main.py", "MTL_ablation_bbox.py"
    files = [(ROOT / name).read_text(encoding="utf-8").splitlines() for name in names]
    found = [line for line in difflib.unified_diff(*files, n=0) if line[0] in "+-"]
    ((_, shown),) = blocks(README, "diff")
    lines = iter(found)
    assert all(line in lines for line in shown.splitlines())  # in this order


@pytest.mark.parametrize("label", RESULTS)
def test_the_table_of_the_readme_is_that_of_the_results(label):
    (row,) = [line for line in README.splitlines() if line.startswith(f"| {label} |")]
    _, seg, bbox, accuracy = (cell.strip() for cell in row.strip("|").split("|"))
    found = {"mask IoU": seg, "box IoU": bbox, "accuracy": accuracy}
    found = {name: f"0{value}" for name, value in found.items() if value}
    assert found == figures(*RESULTS[label])


def points(text):
    """'-0.8 to +0.6' of '[-0.0075, +0.0059]'."""
    low, high = (float(number) * 100 for number in text.strip("[]").split(", "))
    return f"{low:+.1f} to {high:+.1f}"


@pytest.mark.parametrize("label", SUMMARY)
def test_the_summary_of_the_results_is_what_compare_prints(label, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    metric, network, *runs = SUMMARY[label]
    *runs, baseline = runs if len(runs) > 1 else [*runs, None]
    places = [
        f"{run.replace('=', '=results/') if '=' in run else f'results/{run}'}.jsonl" for run in runs
    ]
    assert compare.main([*places, *(["--baseline", baseline] if baseline else [])]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if f"| {network} |" in line]
    (line,) = [line for line in lines if line.startswith(f"| {metric} ")]
    _, _, _, difference, images, over_runs, count, statement = line.strip("| ").split(" | ")
    (row,) = [r for r in TEXTS["docs/results.md"].splitlines() if r.startswith(f"| [{label}](#")]
    _, said, *intervals, number = row.strip("| ").split(" | ")
    assert intervals == [points(images), points(over_runs)] and number == count
    if statement.startswith("no measurable"):
        assert f"within {re.search('within about ([0-9.]+)', statement)[1]}" in said
    else:
        assert f"{float(difference) * 100:+.1f}" in said


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_figures_in_a_scripts_header_are_those_of_the_results(name):
    header = (ROOT / f"MTL_{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert dict(re.findall(r"(mask IoU|box IoU|accuracy) (0\.\d+)", header)) == figures(
        name, *SEEDS
    )


ROW = re.compile(
    r"^\|.*\| `([\w.]+)`( \+ `[\w.]+`)? \| (\w+) \| (\d)-(\d) \| (.*) \|$", re.MULTILINE
)


@pytest.mark.parametrize("row", ROW.findall(TEXTS["docs/notebook.md"]), ids=" ".join)
def test_the_tables_of_the_notebook_are_those_of_the_results(row):
    """File, network, folds and "validation / test" of each metric; seed 0, or all of two files."""
    place, more, name, first, last, cells = row
    places = [ROOT / "results" / f"{each}.jsonl" for each in (place, *more[4:-1].split())]
    runs = [run for _, run in histories.find([*map(str, places)]) if run["name"] == name]
    runs = [run for run in runs if more or run["seed"] == 0]
    runs = [run for run in runs if int(first) <= run["fold"] <= int(last)]
    folds, seeds = (len({run[key] for run in runs}) for key in ("fold", "seed"))
    assert folds == int(last) - int(first) + 1 and len(runs) == folds * seeds
    known, expected = {m.name: m for m in metrics({"": runs}, "test", everything=True)}, []
    for metric in WORDS:
        values = [run["best"].get(metric) for run in runs]
        tested = metric in known and pooled(runs, known[metric], "test")[0]
        expected.append(f"{fmean(values):.3f} / {tested:.3f}" if tested else "")
    assert [cell.strip() for cell in cells.split("|")] == expected


def test_every_page_and_script_is_named_in_the_readme():
    assert all(f"`{script}.py`" in README for script in SCRIPTS)
    linked = {path.resolve() for path in links("README.md")}
    assert set(PATHS) - {ROOT / "README.md"} <= linked


def test_every_paper_that_the_code_names_is_among_the_sources():
    places = "*.py parts/*.py engine/*.py tools/**/*.py examples/*.py docs/*.py benchmarks/*.py"
    code = [path for place in places.split() for path in ROOT.glob(place)]
    named = r"arXiv:[\d.]+\d|https?://[^\s)\"',]+"
    papers = {paper for path in code for paper in re.findall(named, path.read_text("utf-8"))}
    papers = {paper.rstrip("/.") for paper in papers if not re.search("hdfgroup|w3.org", paper)}
    sources = TEXTS["docs/sources.md"]
    assert papers and not {paper for paper in papers if paper not in sources}


def test_the_drawing_of_the_networks_is_that_of_its_script():
    drawn = (ROOT / "docs" / "networks.svg").read_text(encoding="utf-8")
    assert drawn == draw_networks.picture()


def test_the_documents_are_short_and_the_licence_is_mit():
    assert README.count("\n") <= 110
    assert TEXTS["docs/results.md"].count("\n") <= 200
    assert TEXTS["CONTRIBUTING.md"].count("\n") <= 50
    assert Path(ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the")


def test_the_release_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.search(r"^## (\S+) \((\S+)\)$", changes, re.MULTILINE).groups()
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {version}\n" in citation and f"date-released: {date}\n" in citation

"""The comparison of runs: numbers by hand, statements, columns, refusals, the picture."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from comparing import (
    TASKS,
    compared,
    make_history,
    printed,
    save,
    save_stopped,
    saved,
    shifted,
    single,
    tables,
)
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy import stats

from docs import draw_results
from tools.shared import comparison, forest, histories, intervals
from tools.shared.comparison import Difference, statement

NONE = "no measurable difference"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs"))


def test_a_task_counts_several_metrics_each_in_its_own_direction(tmp_path, capsys):
    outline = TASKS["outline"] | {"counted": ["overlap", "exact"], "lower_is_better": ["exact"]}
    for name, overlap, exact in (
        ("alone", [(1, 2)] * 6, [(1, 4)] * 6),
        ("joint", [(3, 4)] * 6, [(1, 2)] * 6),
    ):
        history = make_history(name, overlap=overlap, exact=exact, depth=None)
        save(history | {"tasks": {"outline": outline}}, tmp_path / name)
    text = printed(capsys, tmp_path, "--all")
    assert "over single-task networks: outline alone." in text
    values, differences = tables(text)
    assert "outline_exact (lower is better)" in values["joint"]
    # .5 -> .75 is +50 %, and .25 -> .5, where lower is better, is -100 %
    assert differences["delta MTL", "joint"]["difference"] == "-25.00 %"
    assert differences["outline_exact", "joint"]["difference"] == "-0.2500"


def test_delta_mtl_is_a_mean_over_tasks_whatever_the_number_of_their_metrics(tmp_path, capsys):
    """Two metrics of one task, one of the other, two seeds; then the reference of one lacks one."""
    counted = {"counted": ["overlap", "exact"], "lower_is_better": ["exact"]}
    tasks = TASKS | {"outline": TASKS["outline"] | counted}
    given = [("alone", seed, (1, 2), (1, 4), None) for seed in (0, 1)]
    given += [("deep", seed, None, None, (3.0, 1)) for seed in (0, 1)]
    given += [("joint", 0, (3, 4), (1, 2), (2.4, 1)), ("joint", 1, (4, 4), (1, 2), (2.4, 1))]
    for name, seed, *each in given:
        rows = [[pair] * 6 if pair else None for pair in each]
        history = make_history(name, seed, 0, *rows)
        history["tasks"] = {task: tasks[task] for task in history["tasks"]}
        save(history, tmp_path / f"{name}{seed}")
    _, found = compared(capsys, tmp_path, "--all")
    # overlap + 50 and + 100 %, exact - 100 %, depth + 20 %: (- 25 + 20) / 2 and (0 + 20) / 2, whose
    # standard error is 6.25 %, times 12.706
    delta = found["delta MTL", "joint"]
    assert delta["difference"] == "+3.75 %" and delta["over test images"] == "[+3.75, +3.75]"
    assert delta["over runs"] == "[-75.66, +83.16]" and delta["pairs of runs"] == "2"
    assert found["outline_exact", "joint"]["statement"] == "-0.2"  # lower is better: no points
    (tmp_path / "deep1" / "deep_history.pt").unlink()
    delta = compared(capsys, tmp_path)[1]["delta MTL", "joint"]
    assert delta["pairs of runs"] == "1"


def test_the_tables_by_hand(runs, capsys):
    text = printed(capsys, runs)
    values, differences = tables(text)
    assert [*values] == ["alone", "deep", "joint"] and text.isascii()
    error = "head_depth_mean_error (lower is better)"
    found = {k: cell.split(" ")[0] for k, cell in values["joint"].items() if k != "network"}
    assert found == {
        "seeds": "0,", "test images": "6", "outline_overlap": "0.7787", error: "2.4000",
        "minutes": "1.7", "images/s": "13",  # 4 epochs of 10 batches of 32 in 100 s
        "parameters": "1,234,567", "GFLOP per image": "0.50", "best epoch": "3",
    }  # fmt: skip
    assert values["alone"]["outline_overlap"].startswith("0.6667 [")  # 100 / 150
    assert values["alone"][error] == "-" and values["deep"][error].startswith("3.0000 [")
    overlap, depth, delta = ([*line.values()][2:] for line in differences.values())
    # the same images are drawn for both networks, so the difference is .112 in every resample; runs
    # have .1 and .124: sd .016971, error .012, times 12.706, t of one degree of freedom
    said = f"{NONE} (within about 26.4 points)"
    pair = ["[+0.1120, +0.1120]", "[-0.0405, +0.2645]", "2"]
    assert overlap == ["alone", "+0.1120", *pair, said]
    pair = ["[+0.6000, +0.6000]", "[+0.6000, +0.6000]", "2"]
    assert depth == ["deep", "+0.6000", *pair, "+0.6"]  # of the metric's unit, not points
    # (.112 / .6667 + .6 / 3) / 2 = 18.4 %; the runs have 17.5 and 19.3 %, p = .031, Holm's .062
    assert delta[1] == "+18.40 %" and delta[3] == "[+6.96, +29.84]"
    assert (
        delta[-1] == "+18.4 % (not after correction for 3)"
        and "3 differences are compared here" in text
    )
    assert "over single-task networks: outline alone, head_depth deep" in text


def test_students_t_is_that_of_scipy():
    random = np.random.default_rng(0)
    for count in (2, 3, 4, 5, 6, 15, 30, 101):
        sample = random.normal(0.5, 1, count)
        expected = stats.ttest_1samp(sample, 0)
        assert intervals.over_runs(sample) == pytest.approx(expected.confidence_interval())
        certain = np.array([1.0, *[1.0, 1.0001] * 99])  # over images
        assert intervals.p_value(certain, sample) == pytest.approx(expected.pvalue)
    assert intervals.quantile(4) == pytest.approx(2.776, abs=5e-4)  # any printed table
    assert all(map(math.isnan, intervals.over_runs([0.1])))
    assert intervals.p_value(certain, [0.1]) == 1
    # over images: 1.96 standard errors
    assert intervals.p_value(np.array([1.96, 1, -1]), [1, 1]) == pytest.approx(0.05, abs=1e-4)
    # without any spread, 0 may well be chance and anything else is not
    assert intervals.p_value(np.zeros(3), [0.0, 0.0]) == 1
    assert intervals.p_value(np.ones(3), [1.0, 1.0]) == 0
    assert intervals.p_value(np.array([1.0, math.nan, math.nan]), [1.0, 1.0]) == 1


def test_holm_by_hand():
    """.01 x 4 and .016 x 3 are below .05, .03 x 2 is not, and so nothing after it."""
    assert intervals.holm([0.03, 0.01, 0.03, 0.016]) == [False, True, False, True]
    assert intervals.holm([0.05]) == [True] and intervals.holm([]) == []


def test_what_has_no_direction_counts_but_helps_no_other(monkeypatch):
    """p = .01 without a direction and .04 with one: Holm's factor for .04 is still 2, since the
    first does not hold. One without intervals is not counted."""
    clear = Difference("m", "c", "a", "points", 0.01, (0.002, 0.03), (0.004, 0.02), 5, 0.04)
    vague = clear._replace(label="b", images=(-0.001, 0.02), p_value=0.01)
    unknown = clear._replace(label="b", runs=intervals.NONE, p_value=1.0)
    runs = [(name, histories.summarise(single(name))) for name in "abc"]
    alone = clear._replace(p_value=0.2)
    cases = (vague, clear, [False, False]), (unknown, alone, [False, True])
    for other, tested, expected in cases:
        found = {("outline_overlap", each.label): each for each in (other, tested)}
        monkeypatch.setattr(comparison, "_difference", lambda m, k, *_, f=found: f.get((m, k)))
        kept = comparison.differences(comparison.group(runs), "test", "a")
        assert [each.holds for each in kept] == expected


@pytest.mark.parametrize(
    ("images", "runs", "said"),
    [
        ((0.002, 0.03), (0.004, 0.02), "+1.0 points"),
        ((-0.03, -0.002), (-0.02, -0.004), "-1.0 points"),
        ((0.002, 0.03), (-0.004, 0.024), f"{NONE} (within about 3.0 points)"),
        ((-0.0004, 0.0001), (-0.0003, 0.0001), f"{NONE} (within about 0.04 points)"),
        ((0.002, 0.03), (math.nan, math.nan), ""),
    ],
)
def test_a_statement_needs_both_intervals(images, runs, said):
    value = -0.01 if images[1] < 0 else 0.01
    found = Difference("m", "a", "b", "points", value, images, runs, 5, 0.01, True)
    assert statement(found, 9) == said


def test_all_metrics_and_means_over_the_parts_that_are_defined(runs, tmp_path, capsys):
    values, differences = compared(capsys, runs, "--all")
    titles = [title.split(" ")[0] for title in values["joint"] if "_" in title]
    assert " ".join(titles) == "outline_overlap head_depth_mean_error outline_exact outline_both"
    assert values["alone"]["outline_exact"].startswith("0.6000 [")  # 3 of 5
    assert values["alone"]["outline_both"].startswith("0.6333 [")  # the mean of .6667 and .6
    assert differences["outline_both", "joint"]["difference"] == "+0.0560"
    parts = {"means": {"both": ["overlap", "never", "exact"]}}
    for seed, value in ((0, 0.5), (1, 0.7)):
        history = single("alone", seed=seed)
        history["tasks"] = {"outline": TASKS["outline"] | parts}
        history["tasks"]["outline"]["metrics"] = ["overlap", "both", "other"]
        history["test_rows"]["outline_never"] = torch.zeros(6, 2).double()
        history["test"]["outline_other"] = value  # no rows are known
        save(history, tmp_path / str(seed))
    values, _ = compared(capsys, tmp_path, "--all")
    assert values["alone"]["outline_both"].startswith("0.6667 [")
    assert values["alone"]["outline_other"] == "0.6000"


def test_the_interval_is_that_of_the_binomial(tmp_path, capsys):
    """Of 16 images 8 are right: a resample has 0-16 right, with the chances of a fair coin.

    P(X <= 3) = 697 / 65536 < 2.5 % < P(X <= 4) = 2517 / 65536 < 5 %: the limits are 4 and 12 of 16.
    Of 5 images 2 are right: P(X = 0) = 7.8 %, P(X >= 4) = 8.7 %, P(X = 5) = 1 %. Of 4 an interval
    would mean nothing.
    """
    expected = {16: "0.5000 [0.2500, 0.7500]", 5: "0.4000 [0.0000, 0.8000]", 4: "0.5000"}
    for count, shown in expected.items():
        save(single("alone", [(i % 2, 1) for i in range(count)]), tmp_path / str(count))
        values, _ = compared(capsys, tmp_path / str(count))
        assert values["alone"]["outline_overlap"] == shown


def test_folds_are_pooled_by_their_sums_and_seeds_are_averaged(tmp_path, capsys):
    """Fold 0 was run with two seeds, 9 and 7 of 13; fold 1 with one, 10 of 90: 18 of 103."""
    for seed, right in ((0, 4), (1, 2)):
        overlap = [(1, 2), (3, 4), (0, 1), (1, 2), (right, 4)]
        save(single("alone", overlap, seed), tmp_path / str(seed))
    save(single("alone", [(10, 90)], 0, 1), tmp_path / "fold")
    alone = compared(capsys, tmp_path)[0]["alone"]
    assert (alone["seeds"], alone["folds"], alone["test images"]) == ("0, 1", "2", "6")
    assert alone["outline_overlap"].startswith("0.1748 [")


def test_only_runs_of_the_same_images_and_seed_are_paired(tmp_path, capsys):
    """alone has folds 0 and 1, joint fold 1 alone, where it is .1 better, and another seed."""
    for fold in (0, 1):
        overlap = shifted([(i, 10) for i in range(6)], 0.5 * fold)  # fold 0 is harder by .5
        save(single("alone", overlap, 0, fold), tmp_path / f"a{fold}")
    for seed, better in ((0, 0.1), (1, 0.9)):
        save(single("joint", shifted(overlap, better), seed, 1), tmp_path / f"j{seed}")
    text = printed(capsys, tmp_path)
    found = tables(text)[1]["outline_overlap", "joint"]
    assert found["difference"] == "+0.1000" and found["over test images"] == "[+0.1000, +0.1000]"
    assert (found["over runs"], found["pairs of runs"], found["statement"]) == ("-", "1", "-")
    ending = ": differences are between the 1 with the same test images and seed."
    assert f"joint has 2 runs, alone has 2{ending}" in text
    assert not compared(capsys, tmp_path / "a1", tmp_path / "j1")[1]


def test_runs_of_one_seed_are_paired_fold_by_fold(tmp_path, capsys):
    """.1 and .3 better: .2, with a standard error of .1 over the runs, times 12.706."""
    for fold, better in ((0, 0.1), (1, 0.3)):
        overlap = [(i + 2 * fold, 10) for i in range(6)]
        save(single("alone", overlap, 0, fold), tmp_path / f"a{fold}")
        save(single("joint", shifted(overlap, better), 0, fold), tmp_path / f"j{1 - fold}")
    found = compared(capsys, tmp_path)[1]["outline_overlap", "joint"]
    assert found["difference"] == "+0.2000" and found["pairs of runs"] == "2"
    assert found["over runs"] == "[-1.0706, +1.4706]"


def test_a_stopped_run_costs_and_scores_nothing_yet(tmp_path, capsys):
    save(single("alone"), tmp_path / "finished")
    save_stopped(single("alone", seed=1) | {"seconds": [6000.0] * 4}, tmp_path / "stopped")
    text = printed(capsys, tmp_path)
    assert "alone, seed 1: unfinished, epoch 3 of 4, validation values only." in text
    alone = tables(text)[0]["alone"]
    names = ("seeds", "test images", "minutes", "images/s", "best epoch")
    assert [alone[name] for name in names] == ["0, 1", "6", "1.7", "13", "3"]
    assert alone["outline_overlap"].startswith("0.6667 [")


def test_a_stopped_run_takes_no_part_in_a_difference(tmp_path, capsys):
    """joint is .1 better on fold 0; on fold 1, which is easier by .5, only alone has finished."""
    for fold in (0, 1):
        overlap = shifted([(i, 10) for i in range(6)], 0.5 * fold)
        save(single("alone", overlap, 0, fold), tmp_path / f"a{fold}")
    save(single("joint", shifted([(i, 10) for i in range(6)], 0.1)), tmp_path / "j0")
    save_stopped(single("joint", overlap, 0, 1), tmp_path / "j1")
    text = printed(capsys, tmp_path)
    found = tables(text)[1]["outline_overlap", "joint"]
    assert found["difference"] == "+0.1000" and found["pairs of runs"] == "1"
    assert "joint, seed 0: unfinished, epoch 3 of 4, validation values only." in text


def test_columns_and_baselines_may_be_chosen(runs, capsys):
    _, found = compared(capsys, runs, "--baseline", "joint")
    assert found["outline_overlap", "alone"]["difference"] == "-0.1120"
    assert found["head_depth_mean_error", "deep"]["difference"] == "-0.6000"  # 3.0 instead of 2.4
    values, found = compared(capsys, runs, "--only", "joint", "alone", "--baseline", "alone")
    assert [*values] == ["joint", "alone"]
    assert [*found] == [("outline_overlap", "joint")]  # delta MTL needs every reference
    _, found = compared(capsys, runs / "joint0", runs / "alone0")  # not with the first one
    assert [*found] == [("outline_overlap", "joint")]
    for flag in ("--baseline", "--only"):
        message = printed(capsys, runs, flag, "jiont", code=2)
        assert f"{flag}: expected one of alone, deep, joint, found jiont" in message


def test_nothing_is_relative_to_zero(tmp_path, capsys):
    save(single("alone", [(0, 10)] * 6), tmp_path / "a")
    save(single("joint"), tmp_path / "j")
    assert [*compared(capsys, tmp_path)[1]] == [("outline_overlap", "joint")]


def test_the_validation_split_is_that_of_the_best_epoch(runs, tmp_path, capsys):
    text = printed(capsys, runs, "--split", "val")
    values, differences = tables(text)
    assert values["alone"]["outline_overlap"] == "0.5667"  # .6667 - .1
    found = differences["outline_overlap", "joint"]
    assert found["over test images"] == "-" and found["over runs"] == "[-0.0405, +0.2645]"
    assert "Validation split at the best epoch" in text and "Test split" not in text
    start = {"best_epoch": 0, "start": {"outline_overlap": 0.9}}  # that of the weights
    save(single("joint") | start, tmp_path)
    values, _ = compared(capsys, tmp_path, "--split", "val")
    assert values["joint"]["outline_overlap"] == "0.9000" and values["joint"]["best epoch"] == "0"


def test_what_else_differs_is_told(tmp_path, capsys):
    for name, decay, more in (("alone", 0.2, {}), ("joint", 0.05, {"DROPOUT": 0.3})):
        config = {"WEIGHT_DECAY": decay, "LOSS_WEIGHTS": {"a": 1.0} | more, **more}
        save(make_history(name, **config), tmp_path / name)
    text = printed(capsys, tmp_path)
    told = "The networks are not the only difference: {}\n".format
    assert told("WEIGHT_DECAY = 0.2 in alone; 0.05 in joint.") in text
    assert text.count(told("")[:-1]) == 1  # the others are not shared, or the same
    other = make_history("joint", 1, LOSS_WEIGHTS={"a": 2.0, "b": 1.0})
    save(other | {"weights_from": "x.pt"}, tmp_path / "other")
    text = printed(capsys, tmp_path / "alone", tmp_path / "other")
    assert told("LOSS_WEIGHTS a = 1.0 in alone; 2.0 in joint.") in text
    assert told("starting weights = none in alone; x.pt in joint.") in text


def test_out_writes_tables_and_picture(runs, tmp_path, capsys):
    with matplotlib.rc_context({"text.usetex": True}):  # a user's matplotlibrc
        table = printed(capsys, runs, f"$\\frac$={runs / 'joint0'}", "--out", tmp_path / "new")
    assert (tmp_path / "new/compare.md").read_text() == table
    picture = imread(tmp_path / "new/compare.png")
    assert picture.shape[1] > 800 and picture.std() > 0.05
    printed(capsys, runs / "deep0", "--out", tmp_path / "one")  # has nothing to be compared with
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["compare.md"]


def test_the_figures_of_the_documents_can_be_drawn(tmp_path):
    assert draw_results.main([str(tmp_path)]) == 0
    for picture in (*draw_results.FORESTS, "masks.png", "front.png"):
        assert imread(tmp_path / picture).std() > 0.05


def test_the_forest_shows_both_intervals_in_points():
    axis = Figure().subplots()
    some = Difference("m", "b", "a", "points", 0.01, (0.005, 0.02), (0.001, 0.03), 5, 0.01)
    none = some._replace(label="c", images=(-0.01, 0.02))
    forest.draw_forest(axis, [some, none], ["b", "c"])
    found = [[*line.get_xdata()] for line in axis.lines[1:]]
    bars = [[0.5, 2], [0.1, 3], [1], [-1, 2], [0.1, 3], [1]]
    assert [pytest.approx(each) for each in bars] == found
    colours = [line.get_color() for line in axis.lines[1:]]
    assert colours == [forest.STATED] * 3 + [forest.OPEN] * 3
    assert axis.lines[3].get_markerfacecolor() == "white"  # it does not hold among all


TESTED = ", ".join(f"data with source line {line} = x, not test 0" for line in range(3))
TASK = {"outline": TASKS["outline"] | {"primary": "exact"}}


@pytest.mark.parametrize(
    ("change", "how", "strict"),
    [
        ({"config": {"EPOCHS": 5}}, "EPOCHS = 5, not 4", False),
        ({"config": {"processes": 2}}, "processes = 2, not 1", True),
        ({"side": (96, 64)}, "side = [96, 64], not [64, 96]", True),
        ({"data": {"train": 331}}, "train samples = 331, not 330", False),
        ({"data_fingerprint": {"train": {"images": "x"}}}, "train images = x, not train 0", False),
        ({"data_fingerprint": {"test": {"images": "x"}}}, TESTED, True),
        ({"tasks": TASK}, f"task outline = {['exact', True, 'alone']}, not", True),
    ],
)
def test_other_data_or_budgets_are_refused(tmp_path, capsys, change, how, strict):
    first, second = (save(make_history(name), tmp_path / name) for name in ("alone", "joint"))
    other = make_history("joint", 1)
    for key, value in change.items():
        other[key] = other[key] | value if isinstance(value, dict) else value
    third = save(other, tmp_path / "other")
    message = printed(capsys, first, second, third, code=2)
    assert message.startswith(f"compare.py: {third}: cannot be compared with {first}: it has {how}")
    if strict:
        assert printed(capsys, tmp_path, "--train-may-differ", code=2)


def test_only_files_that_both_runs_have_read_must_be_equal(tmp_path, capsys):
    both = {split: {"images": f"{split} i", "masks": "m"} for split in ("train", "val", "test")}
    more = {split: {**files, "depths": "d"} for split, files in both.items()}
    other = both | {"val": {"images": "val i", "masks": "x"}}
    for name, prints in (("alone", both), ("deep", more), ("joint", other)):
        save(make_history(name) | {"data_fingerprint": prints}, tmp_path / name)
    text = printed(capsys, tmp_path / "alone", tmp_path / "deep")
    assert tables(text)[1]["outline_overlap", "deep"]["pairs of runs"] == "1"
    message = printed(capsys, tmp_path, code=2)
    assert message.endswith("it has val masks = x, not m\n")


def test_other_test_images_are_refused_where_no_source_lines_are_known(tmp_path, capsys):
    for name, fold in (("alone", 0), ("joint", 1)):
        save(make_history(name, 0, fold) | {"test_lines": None}, tmp_path / name)
    message = printed(capsys, tmp_path, code=2)
    expected = "joint: cannot be compared with alone: it has test data = test 1, not test 0\n"
    assert message == f"compare.py: {expected}"


def test_training_data_may_differ_but_not_the_steps(tmp_path, capsys):
    save(make_history("alone"), tmp_path / "alone")
    other = make_history("joint", EPOCHS=8)  # of 5 steps, the other has 4 of 10
    other["data"]["train"], other["data_fingerprint"]["train"] = 170, {"images": "b"}
    save(other, tmp_path / "joint")
    table = printed(capsys, tmp_path, "--train-may-differ")
    assert "4-8 epochs, batches of 32, 170-330 train, 5 val, 6 test" in table
    other["config"]["EPOCHS"] = 9
    save(other, tmp_path / "joint")
    message = printed(capsys, tmp_path, "--train-may-differ", code=2)
    assert message.endswith("it has training steps = 45, not 40\n")

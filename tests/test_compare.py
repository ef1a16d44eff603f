"""The comparison of finished runs: numbers by hand, both forms of a history, refusals."""

import json
import math

import matplotlib.pyplot as plt
import pytest
import torch
from running import history

from tools import compare, curves, histories
from tools.comparison import interval, mean_gain, relative_gains

SCORES = {  # name -> task -> main test metric of seeds 0, 1, 2
    "baseline": {"seg": (0.80, 0.82, 0.84)},
    "main": {"seg": (0.81, 0.84, 0.84), "bbox": (0.66, 0.66, 0.66), "bin": (0.9, 0.9, 0.9)},
    "ablation_bbox": {"seg": (0.80, 0.82, 0.84), "bbox": (0.60, 0.60, 0.60)},
    "ablation_bin": {"seg": (0.80, 0.82, 0.84), "bin": (1.0, 1.0, 1.0)},
}
METRICS = {"seg": "seg_iou", "bbox": "bbox_iou", "bin": "bin_accuracy"}


def make_history(name, seed, **config):
    """What engine/run.py leaves after 4 epochs, with the test values of SCORES."""
    tasks = SCORES[name]
    test = {METRICS[task]: scores[seed] for task, scores in tasks.items()}
    val = {metric: [0.1, 0.2, value - 0.1, 0.3] for metric, value in test.items()}
    return {
        "name": name,
        "config": {
            "H5_SAVE_PATH": "secret/data", "FILE_SAVE_PATH": "secret/out", "EPOCHS": 4,
            "BATCH_SIZE": 32, "SEED": seed, "WIDTHS": (8, 16), "demo": False, "processes": 1,
        } | config,
        "train": {f"{task}_loss": [4.0, 3.0, 2.0, 1.0] for task in tasks},
        "val": val | {f"{task}_loss": [2.0, 2.0, 1.0, 2.0] for task in tasks},
        "best_epoch": 3,
        "seconds": [20.0, 20.0, 10.0, 50.0],
        "data": {"train": 330, "val": 5, "test": 7},
        "side": (64, 96),
        "parameters": 1234567,
        "versions": {"torch": "2"},
        "test": test | {"seg_loss": 0.5},
    }  # fmt: skip


def save(history, folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{history['name']}_history.pt"
    torch.save(history, path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of four scripts x three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for name in SCORES:
        for seed in range(3):
            save(make_history(name, seed), folder / f"{name}_seed{seed}")
    return folder


def rows(table):
    """{first cell: the others} of a Markdown table; gains by the metric above them."""
    found, last = {}, ""
    for line in table.splitlines():
        if line.startswith("|"):
            first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            last = last if first.startswith("gain") else first
            found[last if first == last else f"{last} gain"] = cells
    return found


def printed(capsys, *arguments, code=0):
    assert compare.main([str(argument) for argument in arguments]) == code
    out = capsys.readouterr()
    assert code == 0 or out.err.count("\n") == 1
    return out.out if code == 0 else out.err


def test_the_table_by_hand(runs, capsys):
    table = rows(printed(capsys, runs))
    assert table[""] == ["baseline", "main", "ablation_bbox", "ablation_bin"]
    assert table["seeds"] == ["0, 1, 2"] * 4
    assert table["seg_iou"][:2] == ["0.8200 ± 0.0200", "0.8300 ± 0.0173"]
    # gains .01, .02, .00: mean .01, sd .01, half width 4.303 * .01 / sqrt(3) = .0248
    assert table["seg_iou gain"][:3] == [
        "-", "+0.0100 [-0.0148, +0.0348]", "+0.0000 [+0.0000, +0.0000]"
    ]  # fmt: skip
    assert table["bbox_iou"] == ["-", "0.6600 ± 0.0000", "0.6000 ± 0.0000", "-"]
    assert "bbox_iou gain" not in table and "seg_loss" not in table
    assert table["relative gain in bbox_iou, %"] == ["-", "+10.00 [+10.00, +10.00]", "-", "-"]
    assert table["relative gain in bin_accuracy, %"][1] == "-10.00 [-10.00, -10.00]"
    # 1.25 + 10 - 10, 2.44 + 10 - 10 and 0 + 10 - 10, each over 3: mean 0.41
    assert table["Δ MTL, %"][1].startswith("+0.41 [")
    assert table["Δ MTL, %"][0] == table["Δ MTL, %"][2] == "-"
    assert table["minutes"] == ["1.7"] * 4
    assert table["images/s"] == ["13"] * 4  # 4 epochs of 10 batches of 32 in 100 s
    assert table["parameters"] == ["1,234,567"] * 4
    assert table["GFLOP per image"] == ["-"] * 4
    assert table["best epoch"] == ["3"] * 4


def test_the_validation_split_is_that_of_the_best_epoch(runs, capsys):
    text = printed(capsys, runs, "--split", "val")
    assert rows(text)["seg_iou"][0] == "0.7200 ± 0.0200"
    assert "Validation split at the best epoch" in text


def test_another_baseline(runs, capsys):
    table = rows(printed(capsys, runs, "--baseline", "main"))
    assert table["bbox_iou gain"][:3] == ["-", "-", "-0.0600 [-0.0600, -0.0600]"]
    message = printed(capsys, runs, "--baseline", "mian", code=2)
    assert "--baseline: expected one of baseline, main" in message and "found mian" in message


def test_gains_are_paired_by_seed(tmp_path, capsys):
    for name, seed in (("baseline", 0), ("baseline", 1), ("main", 1), ("main", 2)):
        save(make_history(name, seed), tmp_path / f"{name}{seed}")
    table = rows(printed(capsys, tmp_path))
    assert table["seg_iou gain"] == ["-", "+0.0200"]  # one pair: no interval
    assert "Δ MTL, %" not in table  # no reference for box and class


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (31, 2.042)])
def test_the_interval_is_students(count, quantile):
    """An oracle for the quantile: 97.5 % of the density of t lies below it."""
    degrees = count - 1
    t = torch.linspace(-quantile, quantile, 200_001, dtype=torch.float64)
    density = torch.distributions.StudentT(float(degrees)).log_prob(t).exp()
    assert torch.trapezoid(density, t).item() == pytest.approx(0.95, abs=1e-4)
    differences = torch.arange(count, dtype=torch.float64)
    mean, half = interval(differences)
    assert mean == differences.mean()
    assert half == pytest.approx(quantile * differences.std().item() / math.sqrt(count))


def test_relative_gain_needs_every_task():
    tasks = {"seg": {0: 1.0, 1: 2.0}, "bbox": {0: 4.0, 1: 5.0}, "bin": {1: -1.0}}
    assert mean_gain(tasks) == {1: 2.0}
    assert mean_gain({"seg": {0: 1.0}}) == {}


def test_nothing_is_relative_to_zero():
    """A network that has only seen background has IoU 0."""
    columns = {
        name: {0: {"test": {"seg_iou": iou}}} for name, iou in (("baseline", 0.0), ("main", 0.5))
    }
    assert not any(relative_gains(columns, "test")["main"].values())


def test_relative_gains_by_hand(runs):
    columns = compare.group(histories.find([str(runs)]))
    gains = relative_gains(columns, "test")
    assert gains["baseline"] == {}
    assert gains["main"]["seg"] == pytest.approx({0: 1.25, 1: 100 * 0.02 / 0.82, 2: 0})


def test_the_text_form_gives_the_same_table(runs, tmp_path, capsys):
    written = printed(capsys, "--export", tmp_path / "results", runs).split()
    assert len(written) == 12 and written[-1].endswith("/main_seed2.json")
    for split in ("test", "val"):
        flags = ["--split", split]
        assert printed(capsys, tmp_path / "results", *flags) == printed(capsys, runs, *flags)
    text = (tmp_path / "results/main_seed0.json").read_text()
    assert "secret" not in text
    assert json.loads(text) == histories.read(runs / "main_seed0/main_history.pt")
    assert printed(capsys, "--export", tmp_path / "results", runs).split() == written


def test_a_long_run_stays_small(tmp_path):
    history = make_history("main", 0)
    for part in ("train", "val"):
        history[part] = {k: [0.123456789] * 200 for k in history[part]}
        history[part] |= {f"seg_more{i}": [0.123456789] * 200 for i in range(9)}
    history["val"]["bbox_iou"][1] = math.nan
    history["test"]["bbox_iou"] = math.nan
    text = histories.to_json(histories.summarise(history))
    assert len(text) < 12_000
    assert json.loads(text, parse_constant=pytest.fail)["test"]["bbox_iou"] is None


def test_export_overwrites_no_other_run(runs, tmp_path, capsys):
    printed(capsys, "--export", tmp_path, runs / "main_seed0")
    before = (tmp_path / "main_seed0.json").read_bytes()
    other = save(make_history("main", 0, WIDTHS=(1, 2)), tmp_path / "other")
    message = printed(capsys, "--export", tmp_path, other, code=2)
    assert "main_seed0.json: holds another run than" in message
    message = printed(capsys, "--export", tmp_path / "new", other, runs, code=2)
    assert "expected one run of main with seed 0, found another" in message
    assert (tmp_path / "main_seed0.json").read_bytes() == before


def test_out_writes_table_and_picture(runs, tmp_path, capsys):
    table = printed(capsys, runs, "--out", tmp_path / "new")
    assert (tmp_path / "new/compare.md").read_text() == table
    picture = plt.imread(tmp_path / "new/compare.png")
    assert picture.shape[1] > 800 and picture.std() > 0.05


def test_a_network_that_does_not_segment_is_in_the_legend_all_the_same():
    columns = {
        name: {0: {"curves": {"val": val}}}
        for name, val in (("main", {"seg_iou": [0.1, 0.3]}), ("boxes", {"bbox_iou": [0.2, 0.4]}))
    }
    axis = plt.figure().subplots()
    curves.draw_curves(axis, columns)
    assert axis.get_legend_handles_labels()[1] == ["main", "boxes"]
    assert [len(line.get_xdata()) for line in axis.lines] == [2, 0]
    plt.close()


DIFFERENCES = {
    "epochs": (lambda h: h["config"].update(EPOCHS=5), "EPOCHS = 5, not 4"),
    "batch": (lambda h: h["config"].update(BATCH_SIZE=8), "BATCH_SIZE = 8, not 32"),
    "demo": (lambda h: h["config"].update(demo=True), "demo = True, not False"),
    "processes": (lambda h: h["config"].update(processes=2), "processes = 2, not 1"),
    "side": (lambda h: h.update(side=(96, 64)), "side = [96, 64], not [64, 96]"),
    "data": (lambda h: h["data"].update(train=331), "train samples = 331, not 330"),
    "fingerprint": (lambda h: h["data_fingerprint"].update(test="b"), "test data = b, not a"),
}


def three_runs(folder, change):
    """Paths of three runs, the last of which is changed; the first tells no fingerprint."""
    paths = []
    for place, (name, seed) in enumerate([("baseline", 0), ("main", 0), ("main", 1)]):
        history = make_history(name, seed)
        if place != 0:
            history["data_fingerprint"] = {"train": "a", "val": "a", "test": "a"}
        if place == 2:
            change(history)
        paths.append(save(history, folder / str(place)))
    return paths


@pytest.mark.parametrize("case", DIFFERENCES)
def test_other_data_or_budgets_are_refused(tmp_path, capsys, case):
    change, how = DIFFERENCES[case]
    paths = three_runs(tmp_path, change)
    assert printed(capsys, *paths[:2])
    message = printed(capsys, *paths, code=2)
    assert message.startswith(f"compare.py: {paths[2]}: cannot be compared with ")
    assert message.endswith(f"it has {how}\n")
    if case not in ("data", "epochs", "batch"):  # the last two say it of the steps
        assert printed(capsys, *paths, "--train-may-differ", code=2) == message


def test_training_data_may_be_compared(tmp_path, capsys):
    def change(history):
        history["data"]["train"], history["data_fingerprint"]["train"] = 170, "b"
        history["config"]["EPOCHS"] = 8  # of 5 steps, the other's are 4 of 10

    table = printed(capsys, *three_runs(tmp_path, change), "--train-may-differ")
    assert "4 or 8 epochs, batches of 32, 330 or 170 train, 5 val, 7 test" in table


def test_training_data_may_differ_but_not_the_steps(tmp_path, capsys):
    paths = three_runs(tmp_path, lambda history: history["config"].update(EPOCHS=5))
    message = printed(capsys, *paths, "--train-may-differ", code=2)
    assert message.endswith("it has training steps = 50, not 40\n")


def test_variants_of_a_script_are_told_apart(runs, tmp_path, capsys):
    save(make_history("main", 0, WIDTHS=(1, 2)), tmp_path / "a")
    table = rows(printed(capsys, runs / "main_seed0", tmp_path / "a"))
    assert table[""] == ["main (WIDTHS [8, 16])", "main (WIDTHS [1, 2])"]
    same = save(make_history("main", 0), tmp_path / "b")
    message = printed(capsys, runs / "main_seed0", same, code=2)
    assert "expected one run of main with seed 0, found another in" in message
    table = rows(printed(capsys, runs / "main_seed0", f"new={same}", "--baseline", "new"))
    assert table[""] == ["main", "new"]
    assert table["seg_iou gain"] == ["+0.0000", "-"]


def test_mistakes_end_in_one_line(tmp_path, capsys):
    message = printed(capsys, tmp_path / "nowhere", code=2)
    assert "nowhere: expected a file or folder with *_history.pt" in message
    assert "found no such path" in message
    assert "found none" in printed(capsys, tmp_path, code=2)
    for name, content in (("a_history.pt", b"x"), ("a_seed0.json", b"{"), ("b_seed0.json", b"[]")):
        (tmp_path / name).write_bytes(content)
        message = printed(capsys, tmp_path / name, code=2)
        assert f"{name}: expected" in message and "found" in message
    history = make_history("main", 0)
    text = histories.to_json(histories.summarise(history) | {"test": None, "curves": 3})
    (tmp_path / "c_seed0.json").write_text(text)
    message = printed(capsys, tmp_path / "c_seed0.json", code=2)
    assert message.endswith("found no test, curves in it\n")
    summary = histories.summarise(history)
    del summary["config"]["EPOCHS"]
    (tmp_path / "d_seed0.json").write_text(histories.to_json(summary))
    for flags in ((), ("--train-may-differ",)):
        message = printed(capsys, tmp_path / "d_seed0.json", *flags, code=2)
        assert message.endswith("found no EPOCHS in it\n")
    del history["test"]
    assert "found no test in it" in printed(capsys, save(history, tmp_path / "part"), code=2)
    for change in ({"best_epoch": 9}, {"seconds": []}, {"config": {"EPOCHS": 1, "BATCH_SIZE": 0}}):
        path = save(make_history("main", 0) | change, tmp_path / "part")
        assert "found a damaged file (" in printed(capsys, path, code=2)
    (tmp_path / "file").write_text("in the way")
    path = save(make_history("main", 0), tmp_path / "good")
    for flag in ("--out", "--export"):
        message = printed(capsys, path, flag, tmp_path / "file" / "out", code=2)
        assert f"{flag}: cannot make the folder" in message


def test_histories_of_real_runs(finished, tmp_path, capsys):
    """What the engine writes is what the tool reads, in both forms."""
    folders = list(finished.values())
    table = printed(capsys, *folders)
    assert sorted(rows(table)[""]) == sorted(name.removeprefix("MTL_") for name in finished)
    assert printed(capsys, "--export", tmp_path, *folders)
    assert printed(capsys, tmp_path) == table
    record = history(finished["MTL_main"])
    assert f"{record['test']['seg_iou']:.4f}" in table

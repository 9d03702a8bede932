"""The benchmark's arithmetic: what its rounds come to, and how the README shows it. Nothing here measures time."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
import readme_results  # noqa: E402

from benchmarks.scripts import article_cifar, article_mnist  # noqa: E402
from benchmarks.speed import __main__ as bench  # noqa: E402
from benchmarks.speed import figure, jobs, numbers, prepare, rounds  # noqa: E402


def row(kind="epochs", ours=False, **more):
    """The facts of a row as bench.json keeps them."""
    nothing = {"commands": None, "gflop": None, **more}
    return jobs.Row(kind=kind, ours=ours, **nothing).facts()


def told(*seconds, memory=100_000_000, peak=200.0, **more):
    lines = [{"epoch": i, "seconds": s, **more} for i, s in enumerate(seconds, 1)]
    return {"lines": lines, "wall": sum(seconds), "max_rss": memory, "peak": {"fp32": peak, "bf16": 2 * peak}}


def one_round(number, rows, peaks=(200.0, 200.0)):
    floors = [{"fp32": peak, "bf16": 2 * peak} for peak in peaks]
    return {"round": number, "peaks": list(peaks), "floors": floors, "rows": rows}


@pytest.fixture
def record():
    """Four rounds, of which the third was disturbed, and a row that is not there."""
    return {
        "unit": "s/epoch",
        "rows": {
            "diabolo": row(ours=True, gflop=300.0),
            "diabolo-bf16": row(ours=True, precision="bf16", gflop=300.0),
            "script": row(),
        },
        "missing": {"diabolo-bf16": "this version has no train.precision"},
        "checks": [{"rows": ["diabolo", "script"], "of": "loss", "within": 0.7, "what": "-ELBO after 10 epochs"}],
        "targets": [
            {"kind": "ratio", "rows": ["script", "diabolo"], "bound": 2.5},
            {"kind": "share", "rows": ["diabolo"], "bound": 0.8},
            {"kind": "ratio", "rows": ["script", "diabolo-bf16"], "bound": 3.3},
        ],
        "rounds": [
            one_round(1, {"diabolo": told(9.0, 2.0, 2.0), "script": told(5.0, 5.0, 7.0)}),
            one_round(2, {"diabolo": told(3.0, 2.0, 2.2), "script": told(5.0, 8.4, 8.4)}, (200.0, 209.0)),
            one_round(3, {"diabolo": told(3.0, 9.0, 9.0), "script": told(1.0, 1.0, 1.0)}, (200.0, 212.0)),
            one_round(4, {"diabolo": told(3.0, 3.0, 3.0), "script": told(7.5, 7.5, 7.5)}),
        ],
    }


# ------------------------------------------------------------------------------------------------ rounds
def test_a_round_whose_peaks_differ_by_more_than_five_per_cent_of_the_larger_is_dropped():
    assert not numbers.differ([95.0, 100.0]) and not numbers.differ([100.0, 95.0])
    assert numbers.differ([94.9, 100.0]) and numbers.differ([100.0, 94.9])


def test_medians_spread_and_ratios_are_of_the_rounds_that_count(record):
    found = numbers.summary(record)
    assert found["rounds"] == {"kept": 3, "dropped": 1}
    diabolo, script = (found["rows"][name]["seconds"] for name in ("diabolo", "script"))
    assert diabolo == pytest.approx({"median": 2.1, "min": 2.0, "max": 3.0, "n": 3}), "the first epoch stands apart"
    assert script == pytest.approx({"median": 7.5, "min": 6.0, "max": 8.4, "n": 3})
    assert found["rows"]["diabolo"]["first"] == {"median": 3.0, "min": 3.0, "max": 9.0, "n": 3}
    [ratio] = found["ratios"]
    assert ratio["of_medians"] == pytest.approx(7.5 / 2.1)
    assert ratio["in_round"] == pytest.approx({"median": 3.0, "min": 2.5, "max": 4.0, "n": 3}), (
        "6 / 2, 8.4 / 2.1, 7.5 / 3"
    )


def test_the_share_of_the_peak_is_of_the_peak_around_the_row(record):
    record["rounds"][3]["rows"]["diabolo"]["peak"]["fp32"] = 100.0
    shares = numbers.summary(record)["rows"]["diabolo"]["share"]
    assert shares == pytest.approx({"median": 0.75, "min": 300 / 2.1 / 200, "max": 1.0, "n": 3})


def test_the_floor_is_the_arithmetic_at_the_highest_peak_of_each_round(record):
    record["rounds"][3]["floors"][0] = {"fp32": 250.0, "bf16": 600.0}
    floor = numbers.summary(record)["floor"]
    assert floor["fp32"] == pytest.approx({"median": 300 / 209, "min": 300 / 250, "max": 1.5, "n": 3})
    assert floor["bf16"] is None, "no row in it has a number"
    record["rounds"][0]["rows"]["diabolo-bf16"] = told(1.0, 1.0)
    assert numbers.summary(record)["floor"]["bf16"]["min"] == pytest.approx(0.5)


def test_a_row_that_is_not_there_has_no_number_and_its_target_is_not_measured(record):
    found = numbers.summary(record)
    missing = found["rows"]["diabolo-bf16"]
    assert missing["seconds"] is None and missing["missing"] == "this version has no train.precision"
    assert [target["met"] for target in found["targets"]] == [True, False, None]
    assert [target["found"] for target in found["targets"]] == pytest.approx([3.0, 300 / 2.1 / 200, None])


def test_without_a_round_that_counts_nothing_is_said(record):
    for one in record["rounds"]:
        one["peaks"] = [100.0, 200.0]
    found = numbers.summary(record)
    assert found["rounds"] == {"kept": 0, "dropped": 4} and found["peak"]["fp32"] is None
    assert all(shown["seconds"] is None for shown in found["rows"].values())
    assert not found["ratios"] and {target["met"] for target in found["targets"]} == {None}


def test_time_to_a_loss_is_up_to_the_first_epoch_that_reaches_it():
    lines = [{"epoch": i, "seconds": 2.0, "loss": loss} for i, loss in enumerate((120.0, 104.6, 105.0, 104.0), 1)]
    assert numbers.value(row("target", target=104.675), lines, 9.0) == 4.0
    assert numbers.value(row("target", target=100.0), lines, 9.0) is None


def test_a_total_is_for_a_unit_and_a_start_the_median_of_its_processes():
    assert numbers.value(row("total", units=50), [{"seconds": 2.0}, {"seconds": 3.0}], 9.0) == 0.1
    assert numbers.value(row("wall"), [{"wall": 0.3}, {"wall": 0.2}, {"wall": 0.9}], 9.0) == 0.3


def test_the_check_compares_the_losses_after_ten_epochs_of_all_rounds(record):
    for one, (mine, theirs) in zip(record["rounds"], [(104.0, 104.2)] * 3 + [(105.0, 107.0)]):
        one["rows"] = {"diabolo": told(*[1.0] * 10, loss=mine), "script": told(*[1.0] * 10, loss=theirs)}
    [check] = numbers.summary(record)["checks"]
    assert check["apart"] == pytest.approx(0.65) and check["passed"]


def test_disturbed_rounds_are_made_up_for_by_two_more_at_most(tmp_path, monkeypatch):
    class Floor:
        heights = iter([100.0, 100.0, *[100.0, 50.0] * 9])

        def measure(self):
            return {"fp32": next(self.heights), "bf16": 1.0}

    told_of = rounds.Done([{"epoch": 1, "seconds": 1.0}], 1.0, 1000, None)
    monkeypatch.setattr(rounds, "carry_out", lambda command, env: told_of)
    job = jobs.Job("a", "s", {"script": jobs.Row(lambda seed, out: [["x"]], "epochs")})
    work = rounds.Rounds(job, Floor(), 1, tmp_path, "")
    work.run(3)
    assert [numbers.differ(one["peaks"]) for one in work.done] == [False, True, True, True, True]


def test_a_row_that_fails_is_left_out_with_its_last_words(tmp_path, capsys):
    code = "import sys; sys.exit('no such thing')"
    job = jobs.Job("a", "s", {"bad": jobs.Row(lambda seed, out: [[sys.executable, "-c", code]], "epochs")})

    class Floor:
        def measure(self):
            return {"fp32": 1.0, "bf16": 1.0}

    work = rounds.Rounds(job, Floor(), 1, tmp_path, "")
    work.run(1)
    assert work.missing == {"bad": "failed: exit code 1: no such thing"} and not work.done[0]["rows"]
    assert "left out" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ jobs
def test_every_job_has_a_letter_and_its_targets_and_checks_name_rows_of_it(tmp_path):
    flops = dict.fromkeys(("model1", "model2", "model3", "cifar10", "draw"), 1.0)
    assert [name for names in jobs.LETTERS.values() for name in names] == list(jobs.JOBS)
    for name, build in jobs.JOBS.items():
        job = build(tmp_path, jobs.REAL, flops, True)
        assert name in jobs.LETTERS[job.letter]
        for wanted in (*job.checks, *job.targets):
            assert set(wanted["rows"]) <= set(job.rows)
        assert set(job.rows) <= {"diabolo", "pythae"} | set(figure.LABELS)
        for shown in job.rows.values():
            assert all(command[0] == sys.executable for command in shown.commands(0, tmp_path))


def test_jobs_are_chosen_by_letter_or_name():
    assert bench.names("c,a") == ["model1", "three-models", "log_p"]
    assert bench.names("startup") == ["startup"]
    with pytest.raises(ValueError, match="no job 'z'; one of a, b"):
        bench.names("a,z")


def test_a_job_takes_the_place_of_its_former_self_and_leaves_the_others(tmp_path):
    out = tmp_path / "deep" / "bench.json"
    for name, value in (("log_p", 1), ("model1", 2), ("log_p", 3)):
        bench.put(out, name, {"value": value})
    assert json.loads(out.read_text(encoding="utf-8")) == {
        "schema": 1,
        "jobs": {"model1": {"value": 2}, "log_p": {"value": 3}},
    }


def test_the_arithmetic_of_the_networks():
    """By hand: 2 FLOP for a weight and an example forward, 4 backward, 2 for the first layer, whose input needs no gradient."""
    first, others = 784 * 400, 400 * 400 + 400 * 40 + 20 * 400 + 400 * 400 + 400 * 784
    counted = prepare.training_flops(article_mnist.VAE(), article_mnist.loss_function, (784,))
    assert counted == 4 * first + 6 * others
    assert prepare.decoding_flops(article_mnist.VAE().decoder, 20) == 2 * (20 * 400 + 400 * 400 + 400 * 784)
    assert sum(p.numel() for p in article_mnist.VAE().parameters()) == 973_624
    assert sum(p.numel() for p in article_cifar.ConvVAE().parameters()) == 1_565_955


# ------------------------------------------------------------------------------------------------ what is shown
@pytest.fixture
def content(record):
    machine = {
        "processor": "A Processor",
        "cores": 2,
        "memory": "16 GB",
        "torch": "2.13.0",
        "python": "3.12.0",
        "numpy": "2.4",
    }
    about = {
        "date": "2030-01-02T03:04:05+00:00", "commit": "abc1234", "quick": False, "threads": 2, "pythae": "0.1.2",
        "machine": machine, "sizes": asdict(jobs.REAL), "minutes": 5.0, "command": "python -m benchmarks.speed",
    }  # fmt: skip
    return {
        "schema": 1,
        "jobs": {"model1": {**record, "letter": "a", "about": about, "summary": numbers.summary(record)}},
    }


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_block_of_the_readme_shows_medians_spread_and_ratios(content, language):
    block = readme_results.speed(content, language)
    lines = block.splitlines()
    [diabolo] = [line for line in lines if line.startswith("|") and "2.10 (2.00" in line]
    [script] = [line for line in lines if "7.50 (6.00" in line]
    assert "71 %" in diabolo and "100 MB" in diabolo
    assert "3.00 (2.50" in script, "the median of the in-round ratios"
    assert "A Processor" in block and "abc1234" in block and "0.1.2" in block
    assert [line for line in lines if "GEMM" in line and "1.50 (1.44" in line]
    assert not [line for line in lines if "bf16" in line and line.startswith("|")], (
        "a row without a number is not shown"
    )


def test_numbers_of_a_quick_run_do_not_reach_the_readme(content):
    content["jobs"]["model1"]["about"]["quick"] = True
    with pytest.raises(ValueError, match="--quick"):
        readme_results.speed(content, "en")


def test_the_figure_has_a_bar_for_each_row_with_a_number(content):
    assert figure.drawn({}) is None
    drawn = figure.drawn(content["jobs"])
    [axes] = drawn.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "GEMM floor, fp32",
        "diabolo",
        "article-style script",
    ]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1.5, 2.1, 7.5])


def test_what_is_printed_names_what_is_missing(content, capsys):
    bench.show("model1", content["jobs"]["model1"])
    printed = capsys.readouterr().out
    assert "3 rounds count, 1 dropped" in printed and "this version has no train.precision" in printed
    assert "target ratio script / diabolo 2.5: met (3.00)" in printed

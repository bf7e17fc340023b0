"""The command line as a user meets it: output, exit codes, one clear error for each mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from trickbag import errors
from trickbag.cli.main import main

FAST = ["--set", "epochs=2", "--set", "batch_size=16", "--set", "image_size=8"]
FAST += ["--set", "warmup.epochs=1", "--threads", "1"]


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Call the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["trickbag", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trickbag import load_recipe, train

    recipe = load_recipe("digits_bag", set_=["epochs=2", "batch_size=16", "image_size=8", "warmup.epochs=1"])
    return train(recipe, shapes, runs=tmp_path_factory.mktemp("runs"), threads=1).path


def test_exit_codes_are_distinct() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TrickbagError)
    ]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes) == 8


def test_train_evaluate_predict(cli: Any, shapes: Path) -> None:
    done = cli("train", "digits_bag", shapes, *FAST, "--json")
    assert done.code == 0, done.err
    result = done.json
    assert result["status"] == "finished"
    assert 0 <= result["metrics"]["test"]["ema"]["accuracy"] <= 1
    again = cli("train", "digits_bag", shapes, *FAST, "--json")
    assert again.json == result

    measured = cli("evaluate", result["path"], "--json")
    assert measured.json["ema"] == result["metrics"]["test"]["ema"]
    flipped = cli("evaluate", result["path"], "--with", "tta_flip", "--split", "selection", "--json")
    assert set(flipped.json) == {"raw", "ema", "raw+tta_flip", "ema+tta_flip"}

    answer = cli("predict", result["path"], shapes / "circle", shapes / "cross" / "000.png", "--top", "2")
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert len(rows) == 25
    assert {row["class_1"] for row in rows} <= {"circle", "cross", "square", "stripes"}
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in rows)


def test_predictions_agree_with_the_evaluation(cli: Any, trained: Path, shapes: Path) -> None:
    """The test images, given as files, are classified as they were when the run was measured."""
    from trickbag import data

    about = json.loads((trained / "run.json").read_text())
    split = data.load(data.DataSpec(**about["data"])).splits["test"]
    files = [str(shapes / name) for name in split.names]
    found = cli("predict", trained, *files, "--json").json["predictions"]
    classes = about["facts"]["classes"]
    right = [p["classes"][0] == classes[label] for p, label in zip(found, split.labels, strict=True)]
    result = json.loads((trained / "result.json").read_text())
    assert sum(right) / len(right) == pytest.approx(result["metrics"]["test"]["ema"]["accuracy"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "digits_bagg", "digits"], 3, ["digits_bagg", "did you mean digits_bag?"]),
        (["train", "digits_bag", "nowhere"], 4, ["nowhere"]),
        (["train", "digits_bag", "digits", "--set", "data.trian_size=5"], 4, ["trian_size", "train_size"]),
        (["train", "digits_bag", "digits", "--set", "epochs"], 3, ["key=value"]),
        (["train", "digits_bag", "digits", "--with", "mixupp"], 3, ["did you mean mixup?"]),
        (["train", "digits_bag", "digits", "--without", "cutmix"], 3, ["cutmix", "not in the recipe"]),
        (["train", "digits_bag", "digits", "--with", "pca_noise"], 5, ["pca_noise", "--without pca_noise"]),
        (["train", "digits_bag", "digits", "--set", "model.name=resnt50"], 5, ["resnt50", "resnet50"]),
        (["train", "digits_bag", "digits", "--set", "batch_size=100000"], 5, ["100000", "--set batch_size="]),
        (["train", "digits_bag", "digits", "--device", "tpu"], 2, ["tpu", "cpu or cuda"]),
        (["evaluate", "nowhere"], 6, ["nowhere", "not a run directory"]),
        (["predict", "nowhere", "image.png"], 2, ["image.png"]),
        (["tricks", "mixupp"], 2, ["did you mean mixup?"]),
        (["diff", "digits_bag", "digits_bagg"], 3, ["did you mean digits_bag?"]),
        (["study", "plan", "digits"], 2, ["two recipes"]),
        (
            ["study", "plan", "digits", "--baseline", "digits_bag", "--without", "mixup", "--seeds", "x"],
            2,
            ["--seeds"],
        ),
        (
            ["study", "run", "digits", "--baseline", "digits_bag", "--candidate", "digits_bag"],
            8,
            ["same recipe"],
        ),
        (
            ["study", "plan", "digits", "--baseline", "digits_bag", "--without", "ema", "--design", "leave"],
            2,
            ["leave-one-out"],
        ),
        (["study", "resume", "nowhere"], 8, ["nowhere", "not a study"]),
        (["study", "status", "nowhere"], 8, ["nowhere", "not a study"]),
        (["train", "digits_bag", ""], 4, ["there is no data"]),
        (["train", "digits_bag", "~nobody-at-all/images"], 4, ["~nobody-at-all"]),
        (["train", "digits_bag", "digits", "--set", "data.=1"], 4, ["--set data.=1"]),
        (["train", "digits_bag", "digits", "--set", "data.train_size=-1"], 4, ["--set data.train_size=-1"]),
        (["train", "digits_bag", "digits", "--set", "data.pattern=''"], 4, ["--set data.pattern"]),
        (["recipes", "x" * 5000], 9, ["File name too long"]),
        (
            ["study", "plan", "digits", "--baseline", "digits_bag", "--without", "ema", "--seeds", "9" * 30],
            2,
            ["--seeds"],
        ),
        (
            ["study", "plan", "digits", "--baseline", "digits_bag", "--without", "ema", "--order", "ema"],
            2,
            ["ladder"],
        ),
        (["train"], 2, []),
        (["trian"], 2, []),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else str(value),
)
def test_a_mistake_gets_one_clear_error(cli: Any, arguments: list[str], code: int, said: list[str]) -> None:
    outcome = cli(*arguments)
    assert outcome.code == code, outcome.err
    for text in said:
        assert text in outcome.err
    assert not list(Path().iterdir())


def test_of_several_processes_the_first_one_speaks(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli("train", "digits_bag", "digits", "--plan").out == ""


def test_several_conflicts_are_one_report(cli: Any) -> None:
    outcome = cli(
        "train",
        "digits_bag",
        "digits",
        "--with",
        "pca_noise",
        "--with",
        "color_jitter",
        "--set",
        "batch_size=9999",
    )
    assert outcome.code == 5
    assert outcome.err.count("error:") == 3


def test_divergence_has_its_own_exit_code(cli: Any, shapes: Path) -> None:
    outcome = cli("train", "digits_bag", shapes, *FAST, "--set", "sgd.lr=1e30")
    assert outcome.code == 7
    assert "learning rate" in outcome.err
    assert "gradient norm" in outcome.err


def test_a_change_that_needs_training_is_refused(cli: Any, trained: Path) -> None:
    outcome = cli("evaluate", trained, "--with", "label_smoothing:epsilon=0.3")
    assert outcome.code == 6
    assert "needed training" in outcome.err


def test_other_classes_are_refused(cli: Any, trained: Path) -> None:
    outcome = cli("evaluate", trained, "digits")
    assert outcome.code == 4
    assert "circle" in outcome.err


def test_an_unreadable_image_is_named_and_the_rest_predicted(cli: Any, trained: Path, shapes: Path) -> None:
    Path("broken.png").write_bytes(b"\x89PNG no")
    outcome = cli("predict", trained, "broken.png", shapes / "circle" / "000.png")
    assert outcome.code == 0
    assert "broken.png" in outcome.err
    assert len(outcome.out.splitlines()) == 2
    assert cli("predict", trained, "broken.png").code == 4


def test_the_plan_is_shown_without_training(cli: Any) -> None:
    outcome = cli("train", "digits_bag", "digits", "--plan", "--json")
    assert outcome.code == 0
    curve = outcome.json["learning_rate"]
    assert len(curve) == outcome.json["steps"]
    assert curve[0] > curve[-1]
    assert not list(Path().iterdir())


def test_tricks_are_found_by_their_other_names(cli: Any) -> None:
    assert "mixup" in cli("tricks", "mix-up").out
    assert cli("tricks", "exponential moving average", "--json").json["kind"] == "ema"
    assert len(cli("tricks", "--json").json) >= 24


def test_study_from_the_command_line(cli: Any, shapes: Path) -> None:
    arguments = [shapes, "--candidate", "digits_bag", "--without", "ema", "--without", "label_smoothing"]
    arguments += ["--set", "epochs=1", "--set", "batch_size=16", "--set", "image_size=8", "--seeds", "2"]
    arguments += ["--set", "warmup.epochs=0.5"]
    planned = cli("study", "plan", *arguments, "--json").json
    assert [factor["key"] for factor in planned["factors"]] == ["label_smoothing", "ema"]
    done = cli("study", "run", *arguments, "--out", "study", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert {e["factor"] for e in done.json["analysis"]["effects"]} == {"label_smoothing", "ema"}
    page = Path("study/report.html").read_text()
    assert "label_smoothing" in page
    assert "| " in Path("study/report.md").read_text()
    status = cli("study", "status", "study", "--json").json
    assert status["counts"]["finished"] == planned["runs"]
    assert cli("study", "report", "study").code == 0
    assert cli("study", "report", "study", "--markdown").out == Path("study/report.md").read_text()
    assert "effect" in cli("study", "resume", "study").out


@pytest.mark.timeout(200)
def test_control_c_drains_says_how_to_go_on_and_resumes_to_the_same_bits(cli: Any, shapes: Path) -> None:
    def arguments(runs: str) -> list[str]:
        settings = [
            "--set",
            "epochs=600",
            "--set",
            "batch_size=16",
            "--set",
            "image_size=8",
            "--threads",
            "1",
        ]
        return ["train", "digits_bag", str(shapes), *settings, "--runs", runs]

    process = subprocess.Popen(
        [sys.executable, "-m", "trickbag.cli.main", *arguments("broken")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    deadline = time.monotonic() + 120
    while not [p for p in Path().glob("broken/*/metrics.jsonl") if p.stat().st_size > 2000]:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Run the same command again" in out
    assert "Traceback" not in err
    (run,) = Path("broken").iterdir()
    assert not (run / "result.json").exists()
    assert cli(*arguments("broken")).code == 0
    assert cli(*arguments("whole")).code == 0
    (other,) = Path("whole").iterdir()
    found, wanted = (sorted(path.glob("checkpoint/*/*.safetensors")) for path in (run, other))
    assert [path.name for path in found] == [path.name for path in wanted]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(found, wanted, strict=True))


def test_predictions_never_replace_a_file_with_nothing(cli: Any, trained: Path, shapes: Path) -> None:
    assert cli("predict", trained, shapes / "circle", "--top", "99", "--out", "found.csv", "--json").json
    before = Path("found.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(before)))
    assert len(rows) == 24
    assert "class_4" in rows[0]
    assert "class_5" not in rows[0]
    Path("broken.png").write_bytes(b"no image")
    assert cli("predict", trained, "broken.png", "--out", "found.csv").code == 4
    assert Path("found.csv").read_text() == before
    for place in ("nowhere/found.csv", "."):
        outcome = cli("predict", trained, shapes / "circle", "--out", place)
        assert outcome.code == 2
        assert "--out" in outcome.err


def test_names_that_are_no_text_are_predicted_and_hidden_files_are_not(
    cli: Any, trained: Path, shapes: Path
) -> None:
    folder = Path("odd")
    (folder / "looks_like.png").mkdir(parents=True)
    (folder / "._hidden.png").write_bytes(b"no image")
    image = (shapes / "circle" / "000.png").read_bytes()
    try:
        Path(os.fsdecode(b"odd/\xff.png")).write_bytes(image)
    except OSError:
        pytest.skip("this file system wants names in UTF-8")
    outcome = cli("predict", trained, folder, "--out", "found.csv")
    assert (outcome.code, outcome.err) == (0, "")
    assert b"odd/\xff.png" in Path("found.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", b"{}", "run.json is damaged"),
        ("run.json", b"[]", "run.json is damaged"),
        ("run.json", b"\xff\xfe", "run.json is damaged"),
        ("recipe.yaml", None, "recipe.yaml is missing"),
        ("result.json", None, "is not finished"),
    ],
)
def test_a_damaged_or_unfinished_run_is_refused(
    cli: Any, trained: Path, shapes: Path, name: str, content: bytes | None, said: str
) -> None:
    shutil.copytree(trained, "run")
    (Path("run") / name).unlink()
    if content is not None:
        (Path("run") / name).write_bytes(content)
    for command in (["evaluate", "run"], ["predict", "run", shapes / "circle"]):
        outcome = cli(*command)
        assert outcome.code == 6
        assert said in outcome.err


def test_a_folder_that_cannot_be_written_is_named(cli: Any, shapes: Path) -> None:
    Path("taken").write_text("a file")
    outcome = cli("train", "digits_bag", shapes, *FAST, "--runs", "taken")
    assert outcome.code == 9
    assert "taken" in outcome.err


def test_numbers_stay_whole_in_a_narrow_terminal(
    cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    found = cli("evaluate", trained, "--json").json
    text = cli("evaluate", trained).out
    assert all(f"{value:.4f}" in text for metrics in found.values() for value in metrics.values())
    assert max(map(len, text.splitlines())) <= 60
    listed = cli("recipes").out
    assert "digits_baseline" in listed


def test_data_settings_that_nothing_would_read_are_refused(cli: Any, trained: Path, shapes: Path) -> None:
    setting = ["--set", "data.train_size=20"]
    for command in (["evaluate", trained], ["predict", trained, shapes / "circle"]):
        outcome = cli(*command, *setting)
        assert outcome.code == 2
        assert "--set data.train_size=20" in outcome.err
    assert cli("evaluate", trained, shapes, *setting, "--json").code == 0

"""What the verbs tell trackers: train, a training that goes on, evaluate, report."""

import json

from blossomrec.cli import main
from blossomrec.run.description import read_run_config
from small_options import small_flags


def test_train_evaluate_and_report_tell_one_run(tiny_log, tmp_path, cli, noted):
    run, page = tmp_path / "run", tmp_path / "page.html"
    flags = [*small_flags(epochs=1), "--training.tracker", "noted"]
    cli("train", tiny_log.folder, run, *flags)
    ((parameters,),) = noted.taken("parameters")
    assert parameters["training.epochs"] == 1 and parameters["model.hidden_size"] == 16
    assert parameters["data.validation cases"] > 0
    cli("train", tiny_log.folder, run, "--resume", "auto", "--training.epochs", 2)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = {step: values for step, values in noted.taken("metrics") if step is not None}
    assert list(told) == [line["step"] for line in lines]
    for line, values in zip(lines, told.values(), strict=True):
        assert (values["loss"], values["lr"]) == (line["loss"], line["lr"])
        assert values["validation/ndcg@10"] == line["validation"]["ndcg@10"]
    cli("evaluate", run)
    ((step, values),) = noted.taken("metrics")
    metrics = json.loads((run / "metrics.json").read_text())["test-full"]
    assert step is None
    assert values == {f"test-full/{name}": value for name, value in metrics.items()}
    cli("report", run, "--out", page)
    assert noted.taken("artifact")[-1] == ("page.html",)
    assert [identity for identity, _ in noted.taken("start")] == [None, "1", "1", "1"]


def test_a_tracker_that_fails_costs_a_training_and_an_evaluation_nothing(
    tiny_log, tmp_path, cli, noted, capsys
):
    run = tmp_path / "run"
    flags = [*small_flags(), "--training.tracker", "noted"]
    cli("train", tiny_log.folder, run, *flags)
    noted.fails["start"] = 1_000
    warning = "blossomrec: warning: tracker noted failed, all else goes on: no answer to start"
    for verb in (["train", tiny_log.folder, run.with_name("other"), *flags], ["evaluate", run]):
        assert main(list(map(str, verb))) == 0
        assert capsys.readouterr().err.count(warning) == 1
    assert (run.with_name("other") / "model.safetensors").exists()


def test_a_run_whose_tracker_is_not_installed_here_is_read(tiny_log, tmp_path, cli, noted):
    from blossomrec.tracking import TRACKERS

    cli("train", tiny_log.folder, tmp_path, *small_flags(), "--training.tracker", "noted")
    del TRACKERS._registered["noted"]
    assert read_run_config(tmp_path).config.training.trackers == ("noted",)


def test_a_run_of_before_says_which_tracker_it_had(tiny_log, tmp_path, cli):
    cli("train", tiny_log.folder, tmp_path, *small_flags())
    path = tmp_path / "config.json"
    known = json.loads(path.read_text())
    training = known["config"]["training"]
    del training["tracker"], training["track_model"]
    training["tensorboard"] = True
    path.write_text(json.dumps(known))
    assert read_run_config(tmp_path).config.training.tracker == "tensorboard"

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from small_training import CrashError, crash, logged, outcome, small_config, small_train

from blossomrec.config import EvaluationConfig
from blossomrec.data.split import Split, make_split
from blossomrec.errors import ConfigError, DataError, TrainingError
from blossomrec.evaluation import RankingOptions, evaluate
from blossomrec.models import build_model
from blossomrec.run.weights import load_model
from blossomrec.training import TrainingResult, train
from blossomrec.training.objective import Losses, Objective
from blossomrec.training.setup import LearningRate
from blossomrec.training.trainer import Trainer


def test_training_learns(tiny_log, tmp_path):
    # The next item is the neighbour on a ring: chance has a loss of log(80) = 4.4.
    config = small_config(epochs=12, learning_rate=2e-2, hidden_size=32)
    result = small_train(tiny_log, config, tmp_path / "run")
    losses = [line["loss"] for line in logged(tmp_path / "run")]
    assert losses[-1] < 1.0 < losses[0] < math.log(80) + 0.5
    assert result.validation["ndcg@10"] > 0.5


def test_result_and_log_tell_the_same(tiny_log, split, tmp_path):
    result = small_train(tiny_log, small_config(epochs=3), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert (result.epochs, result.steps) == (3, lines[-1]["step"])
    best = max(lines, key=lambda line: line["validation"]["ndcg@10"])
    assert result.best_epoch == best["epoch"]
    assert result.validation == best["validation"]
    assert result.stopped == "epochs"
    assert result.seconds_per_epoch == sorted(line["seconds"] for line in lines)[1]
    assert sum(line["seconds"] for line in lines) < result.seconds
    assert result.peak_mib == lines[-1]["peak_mib"] > 50
    events = int((split.train_end - 1).clip(0).sum())
    for line in lines:
        assert line["lr"] == 5e-3
        assert line["selector_loss"] > 0
        assert line["events_per_second"] == pytest.approx(events / line["seconds"])


def test_who_is_told_of_each_epoch_may_end_the_training(tiny_log, tmp_path):
    told = []

    def after_epoch(record):
        told.append(record)
        return record["epoch"] == 2

    config, run = small_config(epochs=4), tmp_path / "run"
    result = small_train(tiny_log, config, run, after_epoch=after_epoch)
    assert (result.stopped, result.epochs) == ("told", 2)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert told == lines and len(lines) == 2
    # What was ended so goes on as any other that was stopped.
    assert small_train(tiny_log, config, run).epochs == 4
    small_train(tiny_log, config, tmp_path / "whole")
    assert outcome(run) == outcome(tmp_path / "whole")


def test_the_logged_loss_is_the_mean_over_targets(tiny_log, tmp_path):
    config = small_config(epochs=1, learning_rate=0.0, dropout=0.0)
    small_train(tiny_log, config, tmp_path / "many")
    big = small_config(epochs=1, learning_rate=0.0, dropout=0.0, tokens_per_batch=100_000)
    small_train(tiny_log, big, tmp_path / "one")
    many, one = logged(tmp_path / "many")[0], logged(tmp_path / "one")[0]
    assert many["step"] > 5
    assert one["step"] == 1
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_one_seed_gives_one_outcome_and_another_seed_another(tiny_log, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        small_train(tiny_log, small_config(epochs=2, seed=seed), tmp_path / name)
    a, b, c = (outcome(tmp_path / name) for name in "abc")
    assert a == b
    assert a[0] != c[0]


def test_validation_does_not_touch_training(tiny_log, tmp_path):
    for every in (1, 3):
        config = small_config(epochs=3, validate_every=every)
        small_train(tiny_log, config, tmp_path / str(every))
    often, seldom = outcome(tmp_path / "1"), outcome(tmp_path / "3")
    assert often[1] == seldom[1]
    assert [line["validation"] is None for line in seldom[2]] == [True, True, False]
    assert often[2][-1]["validation"] == seldom[2][-1]["validation"]


def test_the_last_epoch_is_always_validated(tiny_log, tmp_path):
    result = small_train(tiny_log, small_config(epochs=3, validate_every=2), tmp_path / "run")
    validated = [line["validation"] is not None for line in logged(tmp_path / "run")]
    assert validated == [False, True, True]
    assert result.best_epoch in (2, 3)


def test_training_stops_early_and_keeps_the_best(tiny_log, tmp_path):
    # Nothing is learned: the first validation stays the best.
    config = small_config(epochs=9, learning_rate=0.0, patience=2)
    result = small_train(tiny_log, config, tmp_path / "run")
    assert (result.stopped, result.epochs, result.best_epoch) == ("early", 3, 1)
    assert [line["best"] for line in logged(tmp_path / "run")] == [True, False, False]


def test_best_weights_are_kept_not_the_last(tiny_log, split, tmp_path, at_step):
    config = small_config(epochs=3)
    torch.manual_seed(0)
    model = build_model(config.model, tiny_log.num_items)
    # Before the last step what was learned is lost, and no single step finds it again.
    at_step(33, lambda: torch.nn.init.normal_(model.item_embeddings.weight, std=10.0))
    result = train(model, tiny_log, split, config, tmp_path / "run", progress=False)
    assert result.steps == 33 and result.best_epoch < result.epochs
    loaded = load_model(tmp_path / "run")
    again = evaluate(loaded, tiny_log, split.valid, RankingOptions(filter_seen=True))
    assert again.metrics == pytest.approx(result.validation, rel=1e-6)
    assert not model.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_validation_is_on_a_fixed_sample(tiny_log, split, tmp_path):
    config = small_config(epochs=1, validation_users=7, seed=2)
    result = small_train(tiny_log, config, tmp_path / "run")
    cases = split.valid.sample(7, 2)
    model = load_model(tmp_path / "run")
    expected = evaluate(model, tiny_log, cases, RankingOptions(ks=(10,), filter_seen=True))
    assert result.validation["ndcg@10"] == pytest.approx(expected.metrics["ndcg@10"])
    # Of users outside of the sample, held-out events make no item popular either.
    expected = evaluate(
        model, tiny_log, cases, RankingOptions(filter_seen=True), train_end=split.train_end
    )
    assert result.validation["popularity@10"] == expected.metrics["popularity@10"]


def test_logs_with_repeats_keep_seen_items_in_validation(repeat_log, tmp_path):
    split = make_split(repeat_log, EvaluationConfig())
    result = small_train(repeat_log, small_config(epochs=1), tmp_path / "run")
    model = load_model(tmp_path / "run")
    found = {
        seen: evaluate(model, repeat_log, split.valid, RankingOptions(filter_seen=seen)).metrics[
            "ndcg@10"
        ]
        for seen in (True, False)
    }
    assert result.validation["ndcg@10"] == pytest.approx(found[False])
    assert found[True] != found[False]


def test_without_validation_cases_the_last_weights_are_kept(tiny_log, split, tmp_path):
    config = small_config(epochs=2, patience=1)
    bare = Split(split.train_end, split.valid.__class__(*[split.valid.users[:0]] * 3), split.test)
    model = build_model(config.model, tiny_log.num_items)
    result = train(model, tiny_log, bare, config, tmp_path / "run", progress=False)
    assert (result.epochs, result.best_epoch, result.validation) == (2, 2, {})
    last = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    tensors = load_file(last / "tensors.safetensors")
    for name, value in load_model(tmp_path / "run").state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], value)


def lose_at(monkeypatch, step, part):
    """Make a part of the losses NaN at a step."""
    original, seen = Objective.forward, [0]

    def forward(self, *arguments):
        losses = original(self, *arguments)
        seen[0] += 1
        if seen[0] < step:
            return losses
        return Losses(losses.total * math.nan, *(
            value * math.nan if name == part else value
            for name, value in (("loss", losses.loss), ("selector", losses.selector))
        ))  # fmt: skip

    monkeypatch.setattr(Objective, "forward", forward)


@pytest.mark.parametrize("part", ["loss", "selector", "none"])
@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
def test_a_loss_that_is_not_finite_stops_training(tiny_log, tmp_path, monkeypatch, part, clip_norm):
    monkeypatch.setattr("blossomrec.training.checkpoint.Pace.due", lambda self: True)
    lose_at(monkeypatch, 15, part)
    name = {"loss": "loss", "selector": "gradient norm", "none": "gradient norm"}[part]
    place = rf"{name} is nan at epoch 2, step 15.*learning rate 0\.005.*step-0000000014"
    with pytest.raises(TrainingError, match=place):
        small_train(tiny_log, small_config(clip_norm=clip_norm), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.glob("step-*"))[-1] == "step-0000000014"
    for path in tmp_path.rglob("*.safetensors"):
        assert all(t.isfinite().all() for t in load_file(path).values() if t.is_floating_point())
    assert len(logged(tmp_path / "run")) == 1


def test_training_that_really_diverges_stops(tiny_log, tmp_path):
    config = small_config(learning_rate=1e30, warmup_steps=0, clip_norm=0.0)
    with pytest.raises(TrainingError, match="no checkpoint was saved yet"):
        small_train(tiny_log, config, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("due", [True, False])
def test_weights_that_are_not_finite_are_never_saved(tiny_log, tmp_path, monkeypatch, at_step, due):
    monkeypatch.setattr("blossomrec.training.checkpoint.Pace.due", lambda self: due)
    models = []
    original = Objective.__init__

    def remember(self, model, *arguments, **options):
        models.append(model)
        original(self, model, *arguments, **options)

    monkeypatch.setattr(Objective, "__init__", remember)

    # A weight that no loss depends on: losses stay finite.
    def spoil():
        models[0].embedding_norm = torch.nn.LayerNorm(1)
        models[0].embedding_norm.weight.data.fill_(math.inf)
        models[0].embedding_norm.forward = lambda x: x

    at_step(3, spoil)
    with pytest.raises(TrainingError, match=r"embedding_norm\.weight is not finite after epoch 1"):
        small_train(tiny_log, small_config(), tmp_path / "run")
    for path in tmp_path.rglob("*.safetensors"):
        assert all(t.isfinite().all() for t in load_file(path).values() if t.is_floating_point())


def test_the_learning_rate_is_that_of_the_step(tiny_log, tmp_path, monkeypatch):
    config, asked = small_config(epochs=1), []

    def hardly_any(self, step):
        asked.append(step)
        return 1e-9

    monkeypatch.setattr(LearningRate, "__call__", hardly_any)
    small_train(tiny_log, config, tmp_path / "run")
    (line,) = logged(tmp_path / "run")
    assert asked[: line["step"]] == list(range(line["step"]))
    assert line["lr"] == 1e-9
    torch.manual_seed(config.training.seed)
    start = build_model(config.model, tiny_log.num_items).state_dict()
    for name, value in load_model(tmp_path / "run").state_dict().items():
        assert torch.allclose(value, start[name], atol=1e-6, rtol=0), name


def test_clipping_bounds_the_gradient_and_zero_leaves_it(tiny_log, tmp_path):
    outcomes = {}
    for clip_norm in (0.0, 1e9, 1e-3):
        run = tmp_path / str(clip_norm)
        small_train(tiny_log, small_config(epochs=1, clip_norm=clip_norm), run)
        outcomes[clip_norm] = outcome(run)[0]
    assert outcomes[0.0] == outcomes[1e9] != outcomes[1e-3]


def test_options_are_checked_before_anything_is_written(tiny_log, split, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="tokens_per_batch is 0"):
        small_train(tiny_log, small_config(tokens_per_batch=0), run)
    model = build_model(small_config().model, tiny_log.num_items)
    nothing = Split(split.train_end * 0, split.valid, split.test)
    with pytest.raises(DataError, match="nothing to learn from"):
        train(model, tiny_log, nothing, small_config(), run, progress=False)
    assert not run.exists()


def test_progress_is_a_line_an_epoch_and_silence_when_not_wanted(tiny_log, tmp_path, capsys):
    small_train(tiny_log, small_config(epochs=2), tmp_path / "a", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    begun = ["log: 60 u", "model: sa", "device: c", "training:", "run: " + str(tmp_path)[:4]]
    begun += ["warning: "]
    assert [line[:9] for line in shown.err.splitlines()] == [*begun, "epoch 1/2", "epoch 2/2"]
    small_train(tiny_log, small_config(epochs=2), tmp_path / "b", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "gbce"},
        {"norm": "post", "schedule": "cosine"},
        {"selector_weight": 0.0},
        {"fusion": "union"},
        {"fusion": "union", "backbone": "bert4rec"},
        {"attention": "full", "loss": "sampled_softmax", "precision": "bf16-mixed"},
        {"attention": "linrec", "precision": "bf16-mixed"},
        {"attention": "window"},
        {"backbone": "mamba4rec", "precision": "bf16-mixed"},
        {"backbone": "hstu", "precision": "bf16-mixed"},
        {"residual": "gated", "feed_forward": "swiglu", "loss": "sampled_softmax"},
    ],
)
def test_every_choice_trains(tiny_log, tmp_path, options):
    result = small_train(tiny_log, small_config(epochs=1, **options), tmp_path / "run")
    assert isinstance(result, TrainingResult)
    (line,) = logged(tmp_path / "run")
    assert math.isfinite(line["loss"])
    loaded = load_model(tmp_path / "run").config
    blossom = loaded.attention == "blossom" and loaded.selector_weight > 0
    assert (line["selector_loss"] is not None) == blossom
    # A backbone of its own attention says so.
    assert loaded == build_model(small_config(**options).model, tiny_log.num_items).config


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graph", ["off", "auto"])
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec", "mamba4rec", "hstu"])
def test_a_gpu_trains_and_resumes(tiny_log, tmp_path, at_step, backbone, graph):
    options = {"device": "cuda", "backbone": backbone, "learning_rate": 2e-2, "graph": graph}
    config = small_config(**options)
    small_train(tiny_log, config, tmp_path / "whole")
    # In the second epoch.
    at_step(17, crash)
    with pytest.raises(CrashError):
        small_train(tiny_log, config, tmp_path / "run")
    result = small_train(tiny_log, config, tmp_path / "run")
    assert 0 < result.peak_mib < 2000
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert load_model(tmp_path / "run").item_embeddings.weight.device.type == "cpu"


def test_time_that_runs_out_between_epochs_leaves_validated_weights(
    tiny_log, tmp_path, monkeypatch
):
    finish = Trainer._finish_epoch

    def slow(trainer):
        finish(trainer)
        if trainer.state.epoch == 2:
            trainer.state.seconds += 3_600

    monkeypatch.setattr(Trainer, "_finish_epoch", slow)
    config = small_config(epochs=50, minutes=30.0, validate_every=50)
    result = small_train(tiny_log, config, tmp_path / "run")
    assert (result.stopped, result.epochs, result.best_epoch) == ("minutes", 3, 3)
    # It ends with the first step that it takes after that.
    first, second, last = (line["step"] for line in logged(tmp_path / "run"))
    assert second == 2 * first and last == second + 1
    assert load_model(tmp_path / "run").num_items == tiny_log.num_items

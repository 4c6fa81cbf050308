import dataclasses

import pytest
import torch

from benchmarks.speed import bench_attention, bench_encoder, bench_incremental, bench_training
from benchmarks.speed.bench_options import BenchOptions
from blossomrec.attention import PagedStates
from blossomrec.errors import ConfigError
from implementations import CPU_MISSING


def options(device="cpu", dtype=torch.float32, lengths=(64,), tokens=128, **others):
    return BenchOptions(device, dtype, lengths, tokens, **others)


def rows(cases):
    return {(case.impl, case.compress, *case.layout) for case in cases}


def test_peers_of_the_attention_on_a_gpu():
    found = rows(bench_attention.cases(options("cuda", torch.bfloat16, (1_024,))))
    published = {
        ("cuda", "mean"),
        ("cuda", "mlp"),
        ("triton", "mean"),
        ("triton", "mlp"),
        ("cuda-union", "mean"),
        ("cuda-union", "mlp"),
        ("triton-union", "mean"),
        ("triton-union", "mlp"),
        ("cudnn", "none"),
        ("flash", "none"),
        ("naive", "none"),
        ("cuda-short", "none"),
        ("triton-short", "none"),
        ("flex-short", "none"),
        ("floor", "none"),
    }
    assert {row[:2] for row in found if row[2:] == (8, 2, 16)} == published
    short = {("cuda-short", "none"), ("triton-short", "none"), ("flex-short", "none")}
    assert {row[:2] for row in found if row[2:] == (4, 2, 64)} == published - short
    gated = {(impl, way) for impl in ("cuda", "triton") for way in ("mean", "mlp")}
    assert {row[:2] for row in found if row[2:] == (8, 8, 16)} == published - short - gated
    assert {row[0] for row in found if row[2:] == (2, 2, 64)} == {"cudnn", "flash"}
    single = {case.impl for case in bench_attention.cases(options("cuda", torch.float32, (1_024,)))}
    assert "dense" in single and not single & {"cudnn", "flash", "cuda"}
    uneven = {
        case.impl for case in bench_attention.cases(options("cuda", torch.bfloat16, (1_000,)))
    }
    assert "flash" in uneven and not uneven & {"cudnn", "flex-short"}


@pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING)
def test_the_operator_stands_beside_pytorch_on_a_cpu_in_float32():
    found = {case.impl for case in bench_attention.cases(options())}
    assert found == {"cpu", "cpu-union", "torch", "torch-union", "dense", "naive", "floor"}
    for others in (options(dtype=torch.bfloat16), options("cuda")):
        for bench in (bench_attention, bench_encoder, bench_incremental):
            assert "cpu" not in {case.impl for case in bench.cases(others)}


def test_ragged_batches_stand_beside_equal_ones_of_their_mean_length(tiny_log):
    given = options(lengths=(64,), tokens=600, log=tiny_log.folder, impls=("torch", "dense"))
    cases = bench_attention.cases(given)
    ragged = bench_attention.measure(cases[0], given)
    assert ragged["length"] == 0 and ragged["tokens"] == 600
    assert ragged["fusion"] == "gated"
    found = ragged["ragged"]
    assert found["log"] == tiny_log.folder.name and found["longest"] <= 60
    assert found["mean"] == pytest.approx(600 / found["histories"], abs=0.05)
    lengths = list(dict.fromkeys(case.length for case in cases))
    assert lengths == [0, round(600 / found["histories"]), 64]
    dense = next(case for case in cases if case.impl == "dense" and not case.length)
    assert bench_attention.measure(dense, given)["forward_backward_ms"] > 0


def test_naive_attention_is_left_out_where_it_would_not_fit(monkeypatch):
    given = options(impls=("naive",))
    (case, *_) = bench_attention.cases(given)
    assert bench_attention.measure(case, given)["peak_mib"] >= 0
    (inner,) = bench_encoder.cases(given)
    for bench in (bench_attention, bench_encoder):
        monkeypatch.setattr(bench, "free_bytes", lambda device: 1 << 17)
    assert bench_attention.measure(case, given) is None
    assert bench_encoder.measure(inner, given) is None


def test_the_encoder_is_measured_with_and_without_distillation():
    given = options()
    cases = bench_encoder.cases(given)
    assert [(case.impl, case.architecture.compress, case.distils) for case in cases] == [
        *(
            (impl, compress, distils)
            for impl in given.blossom
            for compress in ("mean", "mlp")
            for distils in (False, True)
        ),
        *((f"{impl}-union", "mlp", distils) for impl in given.blossom for distils in (False, True)),
        ("dense", "none", False),
        ("dense", "none", False),
        ("dense", "none", False),
        ("linrec", "none", False),
        ("mamba", "none", False),
        ("naive", "none", False),
    ]
    line = bench_encoder.measure(cases[3], given)
    assert line["lessons"] and line["tokens"] == 128 and line["compress"] == "mlp"
    for name in ("forward_ms", "forward_backward_ms", "peak_mib", "inference_peak_mib"):
        assert line[name] >= 0
    naive = bench_encoder.measure(cases[-1], options(dtype=torch.bfloat16))
    assert (naive["dtype"], naive["kv_heads"]) == ("float32", 8)
    assert not [check for check in bench_encoder.checks(given) if check.red]


def test_a_step_of_the_encoder_reaches_every_parameter():
    (case, *_) = (
        case for case in bench_encoder.cases(options()) if case.architecture.compress == "mlp"
    )
    built = bench_encoder.build(case.architecture, 64, (64, 64), "cpu", torch.float32)
    names = ["x", *(name for name, _ in built.layers.named_parameters())]

    def touched(distils):
        found = zip(names, built.step(distils), strict=True)
        return {name for name, gradient in found if gradient is not None}

    assert touched(True) == set(names)
    assert {name for name in names if "compress" in name} == touched(True) - touched(False)


def test_a_wrong_encoder_is_red(monkeypatch):
    original = bench_encoder.SASRec

    def wrong(config, items):
        model = original(config, items)
        if config.attention_impl != "reference":
            for layer in model.layers:
                attention = layer.attention
                attention.spec = dataclasses.replace(attention.spec, top_n=1)
        return model

    monkeypatch.setattr(bench_encoder, "SASRec", wrong)
    found = list(bench_encoder.checks(options(impls=("torch",))))
    assert len(found) == 2 and all(check.red for check in found)


def test_training_goes_through_the_epoch_once(tiny_log):
    given = options(lengths=(20,), tokens=256, log=tiny_log.folder)
    cases = bench_training.cases(given)
    unions = (f"{impl}-union" for impl in given.blossom)
    assert {case.impl for case in cases} == {*given.blossom, *unions, "dense"}
    assert not [check for check in bench_training.checks(given) if check.red]
    whole = bench_training.measure(cases[0], given)
    trainer, _ = bench_training._trainer(cases[0], given)
    assert whole["steps"] == trainer.parts.batches.steps(0) > 3
    trainer.go_through(0, None)
    assert trainer.events == trainer.parts.batches.num_events
    assert trainer.state.step == whole["steps"]
    seconds = trainer.events / whole["tokens_per_second"]
    assert whole["epoch_seconds"] == pytest.approx(seconds, abs=2e-3)
    part = bench_training.measure(cases[0], options(**{**vars(given), "steps": 2}))
    assert part["steps"] == 2 and part["log"] == tiny_log.folder.name
    assert part["epoch_seconds"] == pytest.approx(
        part["forward_backward_ms"] * whole["steps"] / 1e3, abs=2e-3
    )


def test_what_training_needs(tiny_log):
    with pytest.raises(ConfigError, match="--log is needed"):
        bench_training.cases(options())
    with pytest.raises(ConfigError, match="float16"):
        bench_training.cases(options(dtype=torch.float16, log=tiny_log.folder))


def test_one_more_event_for_one_user_and_for_many():
    given = options(lengths=(1_024,), users=(1, 3))
    cases = bench_incremental.cases(given)
    # Each with both compressions, in pages as well, and dense attention; besides, for one user, the
    # whole history.
    kept = 2 * (len(given.blossom) + 1) + 1
    assert [case.users for case in cases] == [1] * (kept + 2) + [3] * kept
    assert not [check for check in bench_incremental.checks(given) if check.red]
    lines = [bench_incremental.measure(case, given) for case in cases]
    assert all(line["forward_ms"] > 0 for line in lines)
    assert {line["tokens"] for line in lines} == {1, 3}
    kept = {line["users"]: line["peak_mib"] for line in lines if line["impl"] == "dense-cache"}
    # Keys and values, those of the first new event included.
    assert kept[1] == pytest.approx(1_025 * 2 * 2 * 16 * 4 / 2**20, abs=0.06)
    assert kept[3] == pytest.approx(3 * 1_025 * 2 * 2 * 16 * 4 / 2**20, abs=0.06)


def test_the_state_grows_by_one_event_of_each_user_a_call():
    given = options(lengths=(64,), users=(3,))
    case = bench_incremental.cases(given)[1]
    run, states = bench_incremental.next_event(case, given)
    assert [state.length for state in states] == [64] * 3
    assert not torch.equal(states[0].keys, states[1].keys)
    for _ in range(16):
        run()
    assert [state.length for state in states] == [80] * 3
    assert [state.num_blocks for state in states] == [5] * 3


def test_pages_have_room_for_all_calls():
    given = options(lengths=(64,), users=(3,), impls=("paged",))
    case = bench_incremental.cases(given)[0]
    run, states = bench_incremental.next_event(case, given)
    pages, generation = states[0].states, states[0].states.generation
    for _ in range(350):
        run()
    assert [state.length for state in states] == [64 + 350] * 3
    assert (pages, pages.generation) == (states[2].states, generation)


def test_wrong_pages_are_red(monkeypatch):
    original = PagedStates.step

    def wrong(self, states, counts=None, **options):
        if options:
            states = [state.trim(200) for state in states]
        return original(self, states, counts, **options)

    monkeypatch.setattr(PagedStates, "step", wrong)
    red = {check.name for check in bench_incremental.checks(options()) if check.red}
    assert red == {"pages, mean", "pages, mlp"}


def test_a_wrong_state_is_red(monkeypatch):
    original = bench_incremental.BlossomAttention.extend_batch

    def wrong(self, x, counts, states):
        output, after = original(self, x, counts, states)
        return output, states if len(x) == 2 else after

    monkeypatch.setattr(bench_incremental.BlossomAttention, "extend_batch", wrong)
    red = {check.name for check in bench_incremental.checks(options()) if check.red}
    names = options().blossom
    assert red == {f"kept state, {name} {way}" for name in names for way in ("mean", "mlp")}

"""The tables beside the paper's claims, from lines whose answers are known."""

from markdown_cells import cells

from benchmarks.tables import claims, reproduced_tables, speed_tables


def accuracy_line(model, ndcg, seed=0, max_len=50, **others):
    names = {"dataset": "gowalla", "max_len": max_len, "model": model, "seed": seed}
    return {**names, "ranking": "full", "metrics": {"ndcg@10": ndcg}} | others


def test_changes_of_accuracy_are_between_means_over_seeds_each_in_its_last_line(monkeypatch):
    lines = [
        accuracy_line("SASRec", 0.9),
        accuracy_line("SASRec", 0.2),
        accuracy_line("SASRec", 0.4, seed=1),
        accuracy_line("SASRec", 0.8, ranking="uni100"),
        accuracy_line("SASRec", 0.8, dataset="unix-commands"),
        accuracy_line("BlossomRec", 0.34),
        accuracy_line("BlossomRec", 0.32, seed=3),
        accuracy_line("BlossomRec", 0.9, dataset="unix-commands"),
        accuracy_line("BERT4Rec", 0.1, dataset="ml-1m"),
        accuracy_line("BERT4Rec-Blossom", 0.09, dataset="ml-1m"),
        accuracy_line("BERT4Rec", 0.1),
    ]
    monkeypatch.setattr(reproduced_tables, "read", lambda name: lines)
    rows = {name: values for name, *values in cells(claims.accuracy())}
    # Standard error: the square root of (0.02 + 0.0002) / 2, of a mean of 0.3.
    assert rows["BlossomRec to SASRec"] == ["", "+10.0 ± 33.5 %", "", ""]
    assert rows["BERT4Rec-Blossom to BERT4Rec"] == ["-10.0 %", "", "", ""]
    assert set(rows["Mamba4Rec to SASRec"]) == {""}


def speed_line(impl, compress="none", length=1_024, layout=(8, 2, 16), **others):
    sizes = dict(zip(("heads", "kv_heads", "head_dim"), layout, strict=True))
    costs = {"forward_ms": 1.0, "peak_mib": 1.0, "inference_peak_mib": 1.0}
    named = {"impl": impl, "compress": compress, "length": length, "lessons": False}
    return {**named, **sizes, **costs, "forward_backward_ms": 1.0, "graph": False} | others


def test_cost_is_that_of_distilled_layers_replayed_where_they_can_be(monkeypatch):
    lines = [
        speed_line("naive", layout=(8, 8, 16), peak_mib=1_200.0),
        speed_line("flash", peak_mib=30.0),
        speed_line("flash", peak_mib=24.0, graph=True),
        speed_line("flash", peak_mib=99.0, graph=True, layout=(2, 2, 64)),
        speed_line("cuda", "mlp", peak_mib=10.0, graph=True),
        speed_line("cuda", "mlp", peak_mib=12.0, graph=True, lessons=True),
        speed_line("cuda", "mlp", peak_mib=13.0, lessons=True),
        speed_line("cuda", "mean", peak_mib=9.0, graph=True, lessons=True),
        speed_line("cuda", "mlp", length=4_096, lessons=True),
        *(speed_line(impl, length=256, layout=(8, 8, 16)) for impl in ("naive", "flash")),
        speed_line("flash", length=256),
        speed_line("cuda", "mlp", length=256, lessons=True),
        speed_line("cuda-union", "mlp", length=256, layout=(8, 8, 16), lessons=True, peak_mib=3.0),
    ]
    monkeypatch.setattr(speed_tables, "lines", lambda bench, gpu: lines if gpu else [])
    rows = cells(claims.cost())
    assert rows[0] == ["GPU, 256, training, MiB", *["1.0"] * 5, "3.0"]
    assert rows[4] == ["GPU, 1,024, training, MiB", "1,200", "24.0", "12.0", "100.0", "2.0", ""]
    assert len(rows) == 8


def test_growth_is_a_power_of_the_length(monkeypatch):
    lines = [
        speed_line(impl, compress, length, forward_backward_ms=length**power)
        for impl, compress, power in (
            ("cudnn", "none", 1.0),
            ("cuda", "mean", 0.0),
            ("cuda", "mlp", 0.5),
        )
        for length in (1_024, 4_096)
    ]
    monkeypatch.setattr(speed_tables, "beside_cudnn", lambda: lines)
    assert cells(claims.growth()) == [["1,024 to 4,096", "1.00", "1.50", "2.00"]]

"""Tables of time and memory, from lines whose answers are known."""

from markdown_cells import cells

from benchmarks.tables import speed_tables


def ranked(impl, seconds, users=10_000, k: int | None = 10, filters=False, **more):
    line = {"bench": "ranking", "impl": impl, "users": users, "items": 1_000_000, "hidden": 128}
    line |= {"dtype": "float32", "k": k, "filters": filters, "seconds": seconds, "peak_mib": 600.4}
    line |= {"users_per_second": round(users / seconds), "hardware": "NVIDIA H200", "commit": "b"}
    return line | more


def quantised(users, seconds, **more):
    line = {"bench": "ranking-quantised", "items": 100_000, "hidden": 64, "vectors": "even"}
    line |= {"users": users, "k": 10, "filters": False, "seconds": seconds, "float32_seconds": 0.03}
    return line | {"hardware": "some processor", "commit": "b"} | more


def test_vectors_in_8_bits_stand_beside_all_scores(monkeypatch):
    lines = [
        quantised(1, 9.0, commit="a"),
        quantised(1_024, 0.02),
        quantised(1, 0.01),
        quantised(1, 0.005, filters=True),
        quantised(1, 0.001, hardware="NVIDIA H200"),
    ]
    monkeypatch.setattr(speed_tables, "read", lambda name: lines)
    start = ["100,000", "64", "even", "10"]
    assert cells(speed_tables.ranking_quantised()) == [
        [*start, "", "10.0 (3.0)", "20.0 (1.5)"],
        [*start, "half, 200 seen", "5.0 (6.0)", ""],
    ]


def test_ranking_stands_beside_the_product_and_topk(monkeypatch):
    lines = [
        ranked("blossomrec", 9.0, commit="a"),
        ranked("product", 0.05, k=None),
        ranked("blossomrec", 0.0125),
        ranked("topk", 0.05, users=1_000),
        ranked("blossomrec", 0.025, filters=True),
        ranked("topk", 0.1, users=1_000, filters=True),
    ]
    monkeypatch.setattr(speed_tables, "read", lambda name: lines)
    start = ["1,000,000", "128", "float32", "10"]
    assert cells(speed_tables.ranking()) == [
        [*start, "", "12.5", "800,000", "0.25", "40.0", "600"],
        [*start, "half, 200 seen", "25.0", "400,000", "0.50", "40.0", "600"],
    ]


def test_a_union_stands_beside_gates(monkeypatch):
    names = {"bench": "attention", "length": 256, "hardware": "NVIDIA H200", "commit": "b"}
    heads = {"heads": 8, "kv_heads": 2, "head_dim": 16, "compress": "mlp"}
    cost = {"forward_ms": 1.0, "forward_backward_ms": 2.0, "peak_mib": 3.0}
    lines = [{**names, **heads, **cost, "impl": impl} for impl in ("cuda", "cuda-union")]
    monkeypatch.setattr(speed_tables, "read", lambda name: lines)
    assert [row[2] for row in cells(speed_tables.attention(gpu=True))] == [
        "Blossom, mlp",
        "Blossom, mlp, union",
    ]


def test_two_layers_with_each_attention_stand_beside_each_other(monkeypatch):
    def cost(impl, length, commit="b", **more):
        times = {"forward_ms": 1.0, "forward_backward_ms": 2.0}
        memory = {"peak_mib": 3.0, "inference_peak_mib": 4.0}
        heads = {"heads": 8, "kv_heads": 8, "head_dim": 16, "compress": "none"}
        names = {"bench": "encoder", "impl": impl, "length": length, "hardware": "NVIDIA H200"}
        return {**names, **heads, **times, **memory, "commit": commit, "graph": False} | more

    lines = [cost("naive", 1, "a"), cost("mamba", 512, graph=True), cost("linrec", 128)]
    lines += [cost(impl, 128, graph=True) for impl in ("triton", "triton-union")]
    lines += [cost("cpu-union", 256, hardware="AMD EPYC", compress="mlp", lessons=True)]
    monkeypatch.setattr(speed_tables, "read", lambda name: lines)
    assert cells(speed_tables.encoder(gpu=True)) == [
        ["128", "8, 8, 16", "linear, LinRec", "2.0", "3", "1.0", "4"],
        ["512", "8, 8, 16", "state space, Mamba", "2.0 (graph)", "3", "1.0", "4"],
    ]
    assert cells(speed_tables.encoder(gpu=False)) == [
        ["256", "8, 8, 16", "Blossom, mlp, union, distilled", "2", "3", "1", "4"]
    ]
    assert [line["impl"] for line in speed_tables.as_graphs()] == ["mamba"]

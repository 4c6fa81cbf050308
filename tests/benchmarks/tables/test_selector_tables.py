"""The tables on selectors: what was measured again replaces what was measured before."""

from markdown_cells import cells

from benchmarks.tables import selector_tables as tables


def line(candidate="mlp", seed=0, accuracy=0.5, **others):
    return {
        "task": "recall",
        "candidate": candidate,
        "seed": seed,
        "n": 4,
        "block_size": 16,
        "options": {},
        "length": 8_192,
        "distance": "2866-5734",
        "recall_at_n": accuracy,
        "mass_covered": None,
        "mass_best": None,
        "metrics": {"accuracy": accuracy},
        "steps": 100,
        "finished": True,
    } | others


def test_the_last_line_of_a_seed_counts(monkeypatch):
    lines = [
        line(seed=1, accuracy=0.11),
        line(seed=0, accuracy=0.22),
        line(seed=1, accuracy=0.33, finished=False),
        line(seed=0, accuracy=0.44, options={"layers": 1}),
        line(seed=1, accuracy=0.55, task="recall-control"),
    ]
    monkeypatch.setattr(tables, "read", lambda name: lines)
    found = cells(tables.recall("recall", "2866-5734"))
    assert [row[:3] + row[-1:] for row in found] == [
        ["mlp", "8,192", "0.220 0.330", "100 100 (cut)"],
        ["mlp, layers 1", "8,192", "0.440", "100"],
    ]


def test_sizes_stand_beside_each_other(monkeypatch):
    small = {"distance": "716-1432", "length": 2_048}
    wide = {"block_size": 32, "compress_window": 64}
    lines = [
        line(accuracy=0.1, **small),
        line("mean", accuracy=0.2, **small),
        line("mean", accuracy=0.4, **small | {"block_size": 32, "options": wide}),
    ]
    monkeypatch.setattr(tables, "read", lambda name: lines)
    assert cells(tables.sizes()) == [
        ["as it is", "3.1%", "0.10", "0.10", "100", "0.20", "0.20", "100"],
        ["block_size 32", "6.2%", "", "", "", "0.40", "0.40", "100"],
    ]


def test_real_histories_are_compared_with_dense_attention(monkeypatch):
    def measured(candidate, metrics):
        return {"task": "log", "candidate": candidate, "seed": 2, "metrics": metrics}

    long = {"covered": 0.2, "best": 0.4, "random": 0.1, "ratio": [0.5, 0.4, 0.6], "ndcg@10": 0.7}
    shares = {"random": 0.1, "ratio": [0.5, 0.4, 0.6], "ndcg@10": 0.3, "long_histories": long}
    lines = [
        measured("mean", shares) | {"mass_covered": 0.2, "mass_best": 0.4},
        measured("full", {"ndcg@10": 0.2}),
        measured("mean - full", {"ndcg@10": [9, 9, 9]}),
        measured("mean - full", {"ndcg@10": [0.1, 0.05, 0.15]}),
    ]
    monkeypatch.setattr(tables, "read", lambda name: lines)
    ratio = "0.500 (0.400 to 0.600)"
    row = ["log", "mean", "2", "0.200", "0.400", "0.100", ratio]
    assert cells(tables.coverage(long=False)) == [[*row, "0.3000", "+0.1000 (+0.0500 to +0.1500)"]]
    assert cells(tables.coverage(long=True)) == [[*row, "0.7000", ""]]


def test_gradients_are_those_of_the_default(monkeypatch):
    lines = [
        line(gradient_norms={"64": {"gate": 1.0}}),
        line(gradient_norms={"64": {"gate": 0.123}, "128": {"gate": 0.5}}),
        line(gradient_norms={"64": {"gate": 2.0}}, options={"layers": 1}),
    ]
    monkeypatch.setattr(tables, "read", lambda name: lines)
    assert cells(tables.gradients()) == [["`gate`", "0.12", "0.5"]]


def test_ways_to_train_stand_beside_each_other(monkeypatch):
    drift = {"task": "recall-drift", "mass_covered": 0.9, "options": {}}
    course = [[90, 4_096, 0.1, 0.2], [590, 8_192, 0.3, 0.4], [1_000, 8_192, 0.5, 0.6]]
    lines = [
        line(training={"stage_steps": 600}, course=course, **drift),
        line(training={"stage_steps": 600, "learning_rate": 1e-3}, course=course, **drift),
        line("mean", training={"stage_steps": 600}, course=[], **drift | {"length": 4_096}),
        line(training={"stage_steps": 600}, course=course, **drift | {"mass_covered": 0.8}),
    ]
    monkeypatch.setattr(tables, "read", lambda name: lines)
    assert cells(tables.drift()) == [
        ["mlp", "", "0", "0.500", "0.500", "0.800", "0.40 0.60", "100"],
        ["mlp", "learning_rate 0.001", "0", "0.500", "0.500", "0.900", "0.40 0.60", "100"],
    ]


def test_another_way_to_train_replaces_no_training_of_the_default(monkeypatch):
    unsaid = {"last_steps": 6_000, "sample": "twice"}
    monkeypatch.setattr(tables, "UNSAID", {("recall", "abc"): unsaid})
    lines = [
        line(accuracy=0.1, mass_covered=0.9),
        line(accuracy=0.2, training={"stage_steps": 600}, finished=False),
        line(accuracy=0.3, commit="abc"),
        line("full", accuracy=0.4, commit="abc", recall_at_n=None),
    ]
    monkeypatch.setattr(tables, "read", lambda name: lines)
    assert [row[2] for row in cells(tables.recall("recall", "2866-5734"))] == ["0.100"]
    assert cells(tables.drift()) == [
        ["full", "last_steps 6000", "0", "0.400", "", "", "", "100"],
        ["mlp", "", "0", "0.200", "0.200", "", "", "100 (cut)"],
        ["mlp", "last_steps 6000, sample twice", "0", "0.300", "0.300", "", "", "100"],
    ]


def test_a_difference_is_that_of_the_training_beside_it(monkeypatch):
    def measured(candidate, metrics, commit):
        line = {"task": "log", "candidate": candidate, "seed": 0, "metrics": metrics}
        return line | {"commit": commit, "mass_covered": 0.2, "mass_best": 0.4}

    shares = {"random": 0.1, "ratio": [0.5, 0.4, 0.6], "ndcg@10": 0.3}
    lines = [
        measured("mlp", shares, "a"),
        measured("mlp - full", {"ndcg@10": [0.1, 0.05, 0.15]}, "a"),
        measured("mlp - full", {"ndcg@10": [0.2, 0.15, 0.25]}, "b"),
    ]
    monkeypatch.setattr(tables, "read", lambda name: lines)
    assert cells(tables.coverage(long=False))[0][-1] == "+0.1000 (+0.0500 to +0.1500)"

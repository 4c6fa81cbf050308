"""Of a run's weights a rank reads its own rows, a few at a time."""

from __future__ import annotations

import pytest
import torch
from small_training import small_config, small_train

from blossomrec.ranks import Ranks
from blossomrec.run import weights
from blossomrec.run.weights import load_model, read_weights


class Spied:
    """A slice of a stored tensor that knows which rows of it were read."""

    def __init__(self, stored, rows):
        self.stored, self.rows = stored, rows

    def get_shape(self):
        return self.stored.get_shape()

    def __getitem__(self, part):
        self.rows += range(part.start, part.stop)
        return self.stored[part]


@pytest.fixture(scope="module")
def trained_run(one_thread, tiny_log, tmp_path_factory):
    run = tmp_path_factory.mktemp("read") / "run"
    small_train(tiny_log, small_config(backbone="bert4rec", epochs=1), run)
    return run


@pytest.mark.parametrize("piece", [1, 256, 64 << 20])
def test_ranks_read_their_rows_and_all_of_the_rest(trained_run, monkeypatch, piece):
    read, whole = dict[str, list[int]](), read_weights(trained_run / "model.safetensors")
    opened = weights.safe_open

    class Spy:
        def __init__(self, *given):
            self.given = given

        def __enter__(self):
            self.file = opened(*self.given).__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return Spied(self.file.get_slice(name), read.setdefault(name, []))

    monkeypatch.setattr(weights, "safe_open", Spy)
    monkeypatch.setattr(weights, "PIECE_BYTES", piece)
    table, parts = "item_embeddings.weight", []
    for rank in range(3):
        read.clear()
        model = load_model(trained_run, ranks=Ranks(rank, 3))
        assert read[table] == list(model.held)
        for name, weight in model.state_dict().items():
            if name != table:
                assert torch.equal(weight, whole[name])
        parts.append(model.item_embeddings.weight)
    assert torch.equal(torch.cat(parts), whole[table])


def test_the_table_of_a_model_that_is_read_is_not_drawn(trained_run, tiny_log, monkeypatch):
    draw, table = torch.nn.init.normal_, (tiny_log.num_items + 1, 16)

    def drawn(tensor, *given, **options):
        assert tensor.device.type == "meta" or tensor.shape != table
        return draw(tensor, *given, **options)

    monkeypatch.setattr(torch.nn.init, "normal_", drawn)
    model = load_model(trained_run)
    whole = read_weights(trained_run / "model.safetensors")
    assert model.item_embeddings.weight.shape == table
    assert torch.equal(model.item_embeddings.weight, whole["item_embeddings.weight"])

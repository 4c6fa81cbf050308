import json
import threading

import pytest
import torch

from blossomrec.errors import RunError
from blossomrec.training import checkpoint as module
from blossomrec.training.checkpoint import Checkpoints, Pace


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, {"w": torch.full((3, 2), float(step))}, {"step": step})
    checkpoints.finish()


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints")


def test_nothing_saved_is_nothing_to_resume(checkpoints):
    assert not checkpoints.any()
    assert checkpoints.newest() is None


def test_what_was_saved_comes_back(checkpoints):
    tensors = {
        "weight": torch.randn(3, 2),
        "scalar": torch.tensor(3.5),
        "bytes": torch.arange(5).byte(),
    }
    state = {"step": 7, "loss": 0.1 + 0.2, "words": [1, None, "x"]}
    checkpoints.save(7, tensors, state)
    checkpoints.finish()
    found = Checkpoints(checkpoints.folder).newest()
    assert found.state == state
    assert found.best is None
    assert found.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(found.tensors[name], value)


def test_the_newest_two_are_kept_and_steps_sort_as_numbers(checkpoints):
    for step in (8, 9, 10, 11):
        save(checkpoints, step)
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["step-0000000010", "step-0000000011"]
    assert checkpoints.newest().state["step"] == 11


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "state", "cut state", "missing", "no state"]
)
def test_a_damaged_checkpoint_is_passed_over(checkpoints, damage):
    save(checkpoints, 1)
    save(checkpoints, 2)
    folder = checkpoints.folder / "step-0000000002"
    tensors, state = folder / "tensors.safetensors", folder / "state.json"
    content = tensors.read_bytes()
    if damage == "truncate":
        tensors.write_bytes(content[:-1])
    elif damage == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "state":
        state.write_text(state.read_text().replace('"step": 2', '"step": 3'))
    elif damage == "cut state":
        state.write_text(state.read_text()[:-20])
    elif damage == "missing":
        tensors.unlink()
    else:
        state.write_text("[]")
    with pytest.warns(UserWarning, match="step-0000000002 is damaged"):
        found = checkpoints.newest()
    assert found.state["step"] == 1
    assert checkpoints.latest.name == "step-0000000001"


def test_a_good_checkpoint_outlives_a_damaged_newer_one(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 2)
    (checkpoints.folder / "step-0000000002" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="damaged"):
        checkpoints.newest()
    save(checkpoints, 3)
    assert sorted(path.name[-1] for path in checkpoints.folder.glob("step-*")) == ["1", "3"]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(checkpoints):
    save(checkpoints, 1)
    (checkpoints.folder / "step-0000000001" / "state.json").write_text("{}")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(RunError, match=str(checkpoints.folder)),
    ):
        checkpoints.newest()


def test_best_weights_are_published_and_kept_as_long_as_needed(checkpoints):
    run = checkpoints.folder.parent
    checkpoints.save_best(1, {"w": torch.ones(2)})
    checkpoints.finish()
    first = (run / "model.safetensors").read_bytes()
    save(checkpoints, 1)
    checkpoints.save_best(2, {"w": torch.zeros(2)})
    checkpoints.finish()
    save(checkpoints, 2)
    assert len(list(checkpoints.folder.glob("best-*"))) == 2
    again = Checkpoints(checkpoints.folder)
    found = again.newest()
    assert found.best.name == "best-0000000002.safetensors"
    save(again, 3)
    assert [path.name for path in checkpoints.folder.glob("best-*")] == [found.best.name]
    assert (run / "model.safetensors").read_bytes() == found.best.read_bytes() != first


def test_damaged_best_weights_damage_the_checkpoints_that_need_them(checkpoints):
    checkpoints.save_best(1, {"w": torch.ones(2)})
    checkpoints.finish()
    save(checkpoints, 1)
    checkpoints.save_best(2, {"w": torch.zeros(2)})
    checkpoints.finish()
    save(checkpoints, 2)
    best = checkpoints.folder / "best-0000000002.safetensors"
    best.write_bytes(best.read_bytes()[:-2])
    with pytest.warns(UserWarning, match="best-0000000002.safetensors has"):
        assert checkpoints.newest().state["step"] == 1


def test_what_a_killed_process_was_writing_is_swept_away(checkpoints):
    save(checkpoints, 1)
    half = checkpoints.folder / ".step-0000000002.tmp"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    (checkpoints.folder / ".best-0000000002.safetensors.tmp").write_bytes(b"half")
    assert checkpoints.newest().state["step"] == 1
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-0000000001"]


@pytest.mark.parametrize(
    "name", ["step-notes.txt", "step-0000000009", "step-9", ".mine.tmp", "best-of.safetensors"]
)
def test_files_of_others_are_neither_read_nor_removed(checkpoints, name):
    save(checkpoints, 1)
    stray = checkpoints.folder / name
    stray.write_text("mine")
    for step in (2, 3, 4):
        assert Checkpoints(checkpoints.folder).newest().state["step"] == step - 1
        save(checkpoints, step)
    assert stray.read_text() == "mine"
    assert len(list(checkpoints.folder.glob("step-*/state.json"))) == 2


def test_links_are_no_checkpoints(checkpoints, tmp_path):
    save(checkpoints, 1)
    elsewhere = tmp_path / "elsewhere"
    (checkpoints.folder / "step-0000000001").rename(elsewhere)
    (checkpoints.folder / "step-0000000001").symlink_to(elsewhere)
    assert checkpoints.newest() is None
    (checkpoints.folder / ".step-0000000002.tmp").symlink_to(elsewhere)
    checkpoints.newest()
    assert sorted(path.name for path in elsewhere.iterdir()) == [
        "state.json",
        "tensors.safetensors",
    ]


def tamper(checkpoints, part: str, description: dict) -> None:
    """Have the newest checkpoint describe a file as told, with all digests as they must be."""
    path = max(checkpoints.folder.glob("step-*")) / "state.json"
    content = json.loads(path.read_text())["content"] | {part: description}
    text = json.dumps({"sha256": module._content_digest(content), "content": content})
    path.write_text(text)


@pytest.mark.parametrize("part", ["tensors", "best"])
@pytest.mark.parametrize("name", ["../../secret", "/secret", "", None, ["x"], "state.json"])
def test_a_file_elsewhere_is_refused(checkpoints, tmp_path, part, name):
    (tmp_path / "secret").write_text("secret")
    save(checkpoints, 1)
    described = module.described(tmp_path / "secret") | {"name": name}
    if name == "/secret":
        described["name"] = str(tmp_path / "secret")
    tamper(checkpoints, part, described)
    with (
        pytest.warns(UserWarning, match="step-0000000001 is damaged, .* it names the file"),
        pytest.raises(RunError, match=r"every checkpoint .* is damaged"),
    ):
        checkpoints.newest()
    assert not (checkpoints.folder.parent / "model.safetensors").exists()


def test_a_link_to_a_file_elsewhere_is_refused(checkpoints, tmp_path):
    checkpoints.save_best(1, {"w": torch.ones(2)})
    checkpoints.finish()
    save(checkpoints, 1)
    best = checkpoints.folder / "best-0000000001.safetensors"
    best.rename(tmp_path / "elsewhere")
    best.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="is a link"), pytest.raises(RunError):
        checkpoints.newest()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"content": null}', '{"sha256": 1}', "null"])
def test_a_state_of_another_shape_is_damage(checkpoints, text):
    save(checkpoints, 1)
    save(checkpoints, 2)
    (checkpoints.folder / "step-0000000002" / "state.json").write_text(text)
    with pytest.warns(UserWarning, match="step-0000000002 is damaged"):
        assert checkpoints.newest().state["step"] == 1


def test_damage_does_not_stop_the_checkpoints_that_follow(checkpoints):
    save(checkpoints, 1)
    (checkpoints.folder / "step-0000000001" / "state.json").write_text("{")
    save(checkpoints, 2)
    assert checkpoints.newest().state["step"] == 2


def test_an_older_format_is_not_misread(checkpoints, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 99)
    save(checkpoints, 1)
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="format 99"), pytest.raises(RunError):
        checkpoints.newest()


def test_what_is_saved_is_written_beside_the_training_in_order(checkpoints, monkeypatch):
    go_on, order = threading.Event(), []
    write_best, write = Checkpoints._write_best, Checkpoints._write

    def slow_best(self, step, weights):
        assert go_on.wait(60)
        write_best(self, step, weights)
        order.append("best")

    def slow(self, path, tensors, state):
        write(self, path, tensors, state)
        order.append(path.name)

    monkeypatch.setattr(Checkpoints, "_write_best", slow_best)
    monkeypatch.setattr(Checkpoints, "_write", slow)
    checkpoints.save_best(1, {"w": torch.ones(2)})
    checkpoints.save(1, {"w": torch.ones(2)}, {"step": 1})
    assert not checkpoints.any()
    # A third copy would be kept: it waits.
    third = threading.Thread(target=save, args=(checkpoints, 2))
    third.start()
    third.join(0.2)
    assert third.is_alive()
    go_on.set()
    third.join(60)
    assert order == ["best", "step-0000000001", "step-0000000002"]
    assert checkpoints.newest().best.name == "best-0000000001.safetensors"


def test_what_goes_wrong_in_writing_is_told(checkpoints, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    save(checkpoints, 1)
    monkeypatch.setattr(module, "save_file", full)
    checkpoints.save(2, {"w": torch.ones(2)}, {"step": 2})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.finish()
    assert checkpoints.newest().state["step"] == 1


def test_nothing_is_written_that_relies_on_what_could_not_be(checkpoints, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    checkpoints.save_best(1, {"w": torch.ones(2)})
    save(checkpoints, 1)
    monkeypatch.setattr(module, "write_weights", full)
    checkpoints.save_best(2, {"w": torch.zeros(2)})
    checkpoints.save(2, {"w": torch.ones(2)}, {"step": 2})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.finish()
    checkpoints.finish()
    found = Checkpoints(checkpoints.folder).newest()
    assert found.state["step"] == 1 and found.best.name == "best-0000000001.safetensors"


def test_state_is_plain_json(checkpoints):
    save(checkpoints, 1)
    json.loads((checkpoints.folder / "step-0000000001" / "state.json").read_text())


def test_pace_spends_the_given_share_of_time(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    pace = Pace(0.05)
    now[0] += Pace.FIRST / 0.05 + 0.01
    assert pace.due()
    pace.saved(2.0)
    now[0] += 39.9
    assert not pace.due()
    now[0] += 0.2
    assert pace.due()

"""Histories in pages, as on a GPU: the same answers as with states of their own, here on a CPU."""

import gc
import resource
import weakref

import numpy as np
import pytest
import torch
from serving_runs import Server, ask, close, write_run

from blossomrec.attention import PagedStates
from blossomrec.config import ModelConfig
from blossomrec.data.batch import pack
from blossomrec.data.features import FeatureTable, Numbers
from blossomrec.data.fields import ContextField, EventFields, Tables
from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.models import build_model
from blossomrec.serving.version import paged, version
from blossomrec.serving.version.encoder import StateEncoder, build_encoder
from blossomrec.serving.version.histories import HistoryCache, UserHistory
from blossomrec.serving.version.paged import PagedEncoder
from small_options import MODEL
from whole_history import relative_error

ITEMS = 50


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(ModelConfig(**MODEL | {"block_size": 4, "compress_window": 8}), ITEMS)
    with torch.no_grad():
        model.item_embeddings.weight.mul_(10)
    return model.eval()


@pytest.fixture(scope="module")
def timed(model):
    """The same with times and moments, which matter."""
    torch.manual_seed(0)
    inputs = {"time_gap": "on", "request_time": "on", "clock": "on", "time_share": 0.5}
    sizes = MODEL | {"block_size": 4, "compress_window": 8}
    timed = build_model(ModelConfig(**sizes | inputs), ITEMS).eval()
    timed.load_state_dict(model.state_dict(), strict=False)
    for moments in (timed.event_inputs, timed.request_inputs):
        torch.nn.init.normal_(moments.embeddings.weight, std=0.3)
    return timed


@pytest.fixture(scope="module")
def told(model):
    """The same with kinds, context and a table of users besides."""
    torch.manual_seed(0)
    inputs = {
        "time_gap": "on",
        "clock": "on",
        "event_kinds": "on",
        "context": "on",
        "user_table": "on",
    }
    ages = Numbers(np.array([20, 30, np.nan, 50], np.float32))
    columns = ContextField("shop", "category", ("web", "app")), ContextField("price", "number")
    tables = Tables(
        users=FeatureTable({"age": ages}, 4), fields=EventFields(("click", "buy"), columns)
    )
    sizes = MODEL | {"block_size": 4, "compress_window": 8}
    told = build_model(ModelConfig(**sizes | inputs), ITEMS, tables).eval()
    told.load_state_dict(model.state_dict(), strict=False)
    for part in (told.event_inputs, told.user_content):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return told


class Users:
    """Users whose histories a paged encoder keeps, in a cache as the server has it.

    Args:
        pages: room for so many pages; None for plenty.
    """

    def __init__(self, model, max_len=60, step=1, pages=None):
        self.model, self.max_len = model, max_len
        page = model.states().page_bytes
        self.cache = HistoryCache(1 << 24)
        if pages is not None:
            self.cache.budget = pages * page
        self.encoder = PagedEncoder(model, max_len, step, self.cache)
        # The histories' own bytes on the host are not what these tests are about.
        self.cache.budget = 1 << 24
        self.rng, self.histories = np.random.default_rng(0), {}

    def add(self, user, count, number=1):
        inputs = self.model.kept_inputs
        history = self.histories.setdefault(user, UserHistory(number, inputs))
        times, more, draw = None, {}, self.rng.integers
        if "times" in inputs:
            before = history.events.times
            last = before[-1] if len(before) else 1_700_000_000
            times = last + draw(0, 100_000, count).cumsum()
        if "context" in inputs:
            context = np.stack((draw(0, 3, count), self.rng.normal(size=count)), 1)
            context[self.rng.random(context.shape) < 0.2] = np.nan
            row = user if isinstance(user, int) and user < 4 else -1
            more = {"kinds": draw(0, 3, count), "context": context.astype(np.float32)}
            more |= {"users": np.full(count, row)}
        history.add(History(draw(0, ITEMS, count), times, **more), count)

    def ask(self, *users):
        """Bring users up to date, and compare with their whole histories."""
        asked = [self.cache.get(user) or self.histories[user] for user in users]
        while behind := [history for history in asked if self.encoder.missing(history)]:
            assert self.encoder.advance(behind) > 0
        for user in users:
            self.cache.put(user, self.histories[user])
        self.check(*users)

    def check(self, *users):
        for user in users:
            history = self.histories[user]
            whole = pack([history.events[history.start :]], self.model.kept_inputs)
            expected = self.model.open_queries(whole)
            assert relative_error(history.query, expected) < 1e-5

    def forget(self, user):
        self.cache.drop(user)
        del self.histories[user]

    @property
    def free(self):
        assert self.encoder._make_room(0, 0)
        return self.encoder._states.free_pages


@pytest.mark.parametrize("max_len, step", [(200, 1), (20, 1), (20, 7)])
@pytest.mark.parametrize("inputs", ["model", "timed", "told"])
def test_equal_to_encoding_the_whole_history(request, inputs, max_len, step):
    users = Users(request.getfixturevalue(inputs), max_len, step)
    for _ in range(40):
        some = users.rng.choice(6, users.rng.integers(1, 6), replace=False).tolist()
        for user in some:
            users.add(user, int(users.rng.choice([1, 1, 1, 2, 3, 12])))
        users.ask(*some)
        # Who was not asked for has kept what was theirs.
        users.check(*users.cache.users())


def test_new_events_of_many_are_one_step_and_many_of_one_are_encoded_together(model, monkeypatch):
    users, calls = Users(model), []
    monkeypatch.setattr(paged, "STEP_USERS", 4)
    users.encoder._take_together.users = 4
    for name in ("extend_paged", "prefill"):
        original = getattr(type(model), name)

        def counted(self, batch, *others, name=name, original=original):
            calls.append(name)
            return original(self, batch, *others)

        monkeypatch.setattr(type(model), name, counted)
    everybody = list(range(6))
    for user in everybody:
        users.add(user, 10)
    users.ask(*everybody)
    assert calls == ["prefill"]
    calls.clear()
    for user in everybody:
        users.add(user, 1 if user else 3)
    users.ask(*everybody)
    # Six users in steps of four; the one with three events goes on alone.
    assert calls == ["extend_paged"] * 4
    calls.clear()
    users.add(0, paged.FEW_STEPS + 1)
    users.add(1, paged.FEW_STEPS)
    users.ask(0, 1)
    assert sorted(calls) == ["extend_paged"] * paged.FEW_STEPS + ["prefill"]


def test_pages_return(model):
    users = Users(model)
    free = users.free
    for user in range(3):
        users.add(user, 9)
    users.ask(0, 1, 2)
    assert users.free == free - 3 * 3
    assert users.histories[0].state.nbytes == 3 * users.encoder._states.page_bytes
    users.add(0, 4)
    users.ask(0)
    assert users.free == free - 4 - 2 * 3
    users.forget(1)
    assert users.free == free - 4 - 3
    # Another user takes the pages of the one who left, and nobody notices.
    users.add(3, 11)
    users.ask(3)
    users.add(3, 1)
    users.ask(0, 2, 3)
    for user in (0, 2, 3):
        users.forget(user)
    assert users.free == free


def test_what_a_deleted_user_left_is_never_seen(model):
    users = Users(model, pages=6)
    users.add("anna", 24)
    users.ask("anna")
    states = users.encoder._states
    users.forget("anna")
    assert users.free == 6
    for layer in states.layers:
        # Were any of it read, the answers would be no numbers.
        layer.pages[1:], layer.block_keys[1:] = torch.nan, torch.nan
    users.encoder._last[1:] = torch.nan
    users.add("ben", 5)
    users.ask("ben")
    for _ in range(19):
        users.add("ben", 1)
        users.ask("ben")


def test_who_was_asked_for_longest_ago_makes_room(model):
    users = Users(model, pages=10)
    for user in "abc":
        users.add(user, 12)
        users.ask(user)
    users.ask("a")
    users.add("d", 12)
    users.histories.pop("b")
    users.ask("d")
    assert users.cache.users() == ["d", "a", "c"]
    assert [users.cache.new_evictions(), users.cache.new_evictions()] == [1, 0]
    # A step that opens pages drives out as well.
    users.histories.pop("c")
    for user in "ad":
        users.add(user, 8)
    users.ask("a", "d")
    assert users.cache.users() == ["d", "a"]


def test_where_no_pages_are_left_answers_are_right(model):
    users = Users(model, pages=5)
    users.add("long", 40)
    users.add("short", 8)
    users.ask("long", "short")
    assert users.histories["long"].state is None and users.histories["short"].state is not None
    for _ in range(3):
        users.add("long", 1)
        users.add("short", 1)
        users.ask("long", "short")
    # Their next events need more pages than there are: one is encoded again, without any.
    users = Users(model, pages=4)
    for user in "ab":
        users.add(user, 8)
    users.ask("a", "b")
    for user in "ab":
        users.add(user, 2)
    users.ask("a", "b")
    assert [users.histories[user].state is None for user in "ab"] == [False, True]
    nothing = Users(model, pages=0)
    nothing.add("a", 9)
    nothing.ask("a")
    assert nothing.histories["a"].state is None


def test_a_history_that_comes_with_its_request_drives_nobody_out(model):
    users = Users(model, pages=3)
    users.add("kept", 12)
    users.ask("kept")
    given = UserHistory()
    given.add(History(np.arange(12)), 12)
    assert users.encoder.advance([given]) == 12
    assert given.state is None and "kept" in users.cache
    expected = model.queries(pack([given.events]))
    assert relative_error(given.query, expected) < 1e-5


def test_a_history_without_events_has_nothing_to_encode(model):
    users = Users(model)
    assert users.encoder.missing(UserHistory(1)) == 0
    assert users.encoder.advance([UserHistory(1)]) == 0


def test_histories_beyond_the_bound_wait_their_turn(model):
    users = Users(model)
    for user in range(3):
        users.add(user, 10)
    histories = list(users.histories.values())
    assert users.encoder.advance(histories, 20) == 20
    assert [users.encoder.missing(history) for history in histories] == [0, 0, 10]
    assert users.encoder.advance(histories, 5) == 10
    users.check(0, 1, 2)


def test_after_a_step_that_failed_histories_are_encoded_again(model, monkeypatch):
    users = Users(model)
    for user in "ab":
        users.add(user, 9)
    users.ask("a", "b")
    free = users.free
    for user in "ab":
        users.add(user, 2)
    calls, original = [], type(model).extend_paged

    def failing(self, *given):
        calls.append(len(calls))
        if len(calls) == 2:
            raise RuntimeError("the device is lost")
        return original(self, *given)

    monkeypatch.setattr(type(model), "extend_paged", failing)
    with pytest.raises(RuntimeError, match="device is lost"):
        users.encoder.advance(list(users.histories.values()))
    gc.collect()
    assert users.free == free + 6
    users.ask("a", "b")


def test_a_device_without_so_much_memory(model, monkeypatch):
    def full(_, *, pages=0, **__):
        if pages:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PagedStates, "reserve", full)
    with pytest.raises(ConfigError, match="cache_mib is 16: cpu has not so much free"):
        PagedEncoder(model, 20, 1, HistoryCache(16 << 20))


def test_states_on_a_cpu_have_their_room_at_once(model, monkeypatch):
    """So that no history waits while others are copied; nothing is used before it is needed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoder = StateEncoder(model, 60, 1, 1 << 30)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB
    histories = [UserHistory(number) for number in range(1, 9)]
    generations = set()
    for _ in range(3):
        for history in histories:
            history.add(History(np.arange(20)), 20)
        encoder.advance(histories)
        states = histories[0].state.kept.states
        generations.add(states.generation)
    assert len(generations) == 1 and states.nbytes > 2 << 30
    assert all(history.state.kept.states is states for history in histories)
    for history in histories:
        assert relative_error(history.query, model.queries(pack([history.events.items]))) < 1e-5

    def full(_, *, pages, **__):
        if pages:
            raise MemoryError

    monkeypatch.setattr(PagedStates, "reserve", full)
    with pytest.raises(ConfigError, match="cache_mib is 16: there is not so much memory"):
        StateEncoder(model, 60, 1, 16 << 20)


def test_which_encoder_a_device_gets(model, monkeypatch):
    cache = HistoryCache(1 << 20)
    assert isinstance(build_encoder(model, 20, 1, cache), StateEncoder)
    monkeypatch.setattr(type(model), "captures_steps", True)
    assert isinstance(build_encoder(model, 20, 1, cache), PagedEncoder)


@pytest.fixture
def both(run, tmp_path, one_thread, monkeypatch):
    """A server with states of their own, and one with pages, of the same model."""
    with Server(run, tmp_path / "states.sqlite") as plain:
        monkeypatch.setattr(version, "build_encoder", PagedEncoder)
        with Server(run, tmp_path / "pages.sqlite") as server:
            assert isinstance(server.service.version.encoder, PagedEncoder)
            yield plain, server


def same(both, user):
    plain, server = both
    return close(*(one.recommend(user_id=user, filter_viewed=False) for one in (plain, server)))


def append(both, user, items):
    for server in both:
        server.append(user, items)


def test_a_server_answers_the_same(both, item_ids):
    rng = np.random.default_rng(0)
    for _ in range(30):
        user = int(rng.integers(4))
        append(both, user, [item_ids[row] for row in rng.integers(0, 60, rng.integers(1, 5))])
        assert same(both, user)


def test_users_of_one_round_go_together(both, item_ids, monkeypatch):
    server, calls = both[1], []
    for user in range(5):
        append(both, user, item_ids[user : user + 6])
        same(both, user)
        append(both, user, [item_ids[30 + user]])
    model = type(server.service.version.model)
    original = model.extend_paged

    def counted(self, batch, *others):
        calls.append(batch.num_histories)
        return original(self, batch, *others)

    monkeypatch.setattr(model, "extend_paged", counted)
    together = server.service._engine.call(
        lambda: [ask(server, str(user)) for user in (0, 1, 2, 3, 4, 2)]
    ).result(60)
    for future in together:
        future.result(60)
    assert len(calls) == 1
    assert all(same(both, user) for user in range(5))


def test_who_is_deleted_leaves_the_pages(both, item_ids):
    server = both[1]
    append(both, "anna", item_ids[:9])
    append(both, "ben", item_ids[5:12])
    assert same(both, "anna") and same(both, "ben")
    for one in both:
        one.client.delete("/v1/users/anna")
    encoder = server.service.version.encoder
    free = server.service._engine.call(lambda: encoder._make_room(0, 0)).result(60)
    states = encoder._states
    assert free and len(states.table) - 1 - states.free_users == 1
    # Somebody of the same name and with as many events is somebody else.
    append(both, "anna", item_ids[20:29])
    assert same(both, "anna") and same(both, "ben")


def test_another_model_encodes_the_histories_again(
    tiny_log, item_ids, tmp_path, one_thread, monkeypatch
):
    run = write_run(tmp_path / "run", tiny_log)
    monkeypatch.setattr(version, "build_encoder", PagedEncoder)
    with Server(run, tmp_path / "pages.sqlite") as server:
        for user in range(3):
            server.append(user, item_ids[user : user + 12])
            server.recommend(user_id=user)
        before = weakref.ref(server.service.version.encoder)
        write_run(run, tiny_log, seed=1)
        server.reload()
        server.idle()
        after = server.service.version
        assert after.cache.users() == ["2", "1", "0"]
        found = []
        for number in range(2):
            for user in range(3):
                server.append(user, [item_ids[40 + number]])
                found.append(server.recommend(user_id=user))
        # The old model's pages are nobody's and have gone with it.
        gc.collect()
        assert before() is None
    monkeypatch.undo()
    with Server(run, tmp_path / "pages.sqlite") as server:
        for user, wanted in enumerate(found[3:]):
            assert close(server.recommend(user_id=user), wanted)

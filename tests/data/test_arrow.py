"""Tables of other libraries that give an Arrow stream."""

from __future__ import annotations

import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import DataError

ITEMS = pl.DataFrame({"item_id": [50_003, 50_010], "genre": [["a", "b"], ["b"]]})


class Stream:
    """A table of which nothing is known but its stream."""

    def __init__(self, frame: pl.DataFrame):
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


class ReadOnce(Stream):
    """A stream that has no rows left once it was read."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        stream = super().__arrow_c_stream__(requested_schema)
        self._frame = self._frame.clear()
        return stream


def of_pyarrow(frame):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    return frame.to_arrow()


def of_datasets(frame):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    # With rows that were chosen, which its table knows nothing of.
    rows = pl.concat([frame.head(1), frame])
    return datasets.Dataset(of_pyarrow(rows)).select(range(1, len(rows)))


@pytest.mark.parametrize("made", [Stream, ReadOnce, of_pyarrow, of_datasets])
def test_a_stream_is_read_as_the_frame_it_is_of(tiny_events, made):
    wanted = EventLog.prepare(tiny_events, items=ITEMS)
    log = EventLog.prepare(made(tiny_events), items=made(ITEMS))
    assert log.digest == wanted.digest
    assert log.summary["item_table"] == wanted.summary["item_table"]
    assert "\n" not in log.options["items"]


def test_faults_are_named_as_those_of_frames(tiny_events):
    with pytest.raises(DataError, match="has no column 'item_id'"):
        EventLog.prepare(Stream(tiny_events.drop("item_id")))
    with pytest.raises(DataError, match="column 'user_id', row 1: None is not an id"):
        EventLog.prepare(Stream(tiny_events.with_columns(user_id=pl.lit(None, pl.Int64))))

    class Broken:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            raise OSError("the connection is gone")

    with pytest.raises(DataError, match="cannot be read: the connection is gone"):
        EventLog.prepare(Broken())

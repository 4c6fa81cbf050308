"""Tables at addresses: of a server that speaks S3 and of one of files, both on loopback."""

from __future__ import annotations

import re
import threading
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from blossomrec.cli import main
from blossomrec.data.log import EventLog
from blossomrec.data.reading.addresses import is_address, without_secrets
from blossomrec.errors import DataError, NoEventsError
from events_in_parts import at_once

DAYS = (1, 2, 3)


def events_of(day: int) -> pl.DataFrame:
    """Two hundred events of twenty users."""
    rows = pl.int_range(200, eager=True)
    return pl.DataFrame(
        {
            "user_id": (rows * 7 + day) % 20,
            "item_id": pl.select(pl.format("item-{}", (rows * rows + day) % 37)).to_series(),
            "timestamp": 1_700_000_000 + day * 86_400 + rows,
        }
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three days of events, each a partition, with what Spark leaves beside them."""
    for day in DAYS:
        path = tmp_path / "shop" / "events" / f"dt=2024-01-0{day}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        events_of(day).write_parquet(path, row_group_size=64)
    (tmp_path / "shop" / "events" / "_SUCCESS").touch()
    pl.DataFrame({"item_id": ["item-0", "item-1", "new"], "title": ["a", "b", "c"]}).write_parquet(
        tmp_path / "shop" / "items.parquet"
    )
    return tmp_path / "shop" / "events"


class _Files(SimpleHTTPRequestHandler):
    """Files of a folder, also a part of one, as those who read Parquet ask for."""

    def do_GET(self):
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def on_the_web(folder):
    """The address of the folder at a server of files."""
    handler = partial(_Files, directory=str(folder.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/events"
        server.shutdown()


@pytest.fixture(scope="module")
def s3():
    """The address of a server that speaks S3, known to Polars by the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    known = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in known.items():
            patch.setenv(name, value)
        yield address
    server.stop()


@pytest.fixture
def bucket(s3, folder, request):
    """The address of the folder in a bucket of its own."""
    name = f"bucket-{abs(hash(request.node.name))}"
    _put(f"{s3}/{name}", b"")
    for path in folder.parent.rglob("*"):
        if path.is_file():
            _put(f"{s3}/{name}/{path.relative_to(folder.parent)}", path.read_bytes())
    return f"s3://{name}/events"


def _put(address: str, content: bytes) -> None:
    # Without a type it would be taken for a form.
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(address, content, headers, method="PUT")
    urllib.request.urlopen(request).close()


def arrays(folder: Path) -> dict[str, bytes]:
    """All files of a log but what says where it came from."""
    return {
        re.sub(r"generation-[0-9a-f]+", "", str(path.relative_to(folder))): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.json"
    }


@pytest.mark.parametrize("pattern", ["/", "/**/*.parquet", "/dt=2024-01-0[123]/*.parquet"])
@pytest.mark.parametrize("options", [{}, {"min_user_events": 9, "min_item_events": 16}], ids=str)
def test_a_bucket_gives_the_log_of_a_folder(bucket, folder, tmp_path, pattern, options):
    options |= {"context": ("dt",)}
    expected = EventLog.prepare(folder, tmp_path / "one", **options)
    with at_once(90):
        log = EventLog.prepare(bucket + pattern, tmp_path / "two", **options)
    assert arrays(tmp_path / "two") == arrays(tmp_path / "one")
    assert log.identity == expected.identity
    assert log.num_events == expected.num_events > 0
    assert bool(log.summary["dropped_items"]) == ("min_item_events" in options)


def test_days_of_a_bucket_are_appended_once(bucket, folder, tmp_path):
    EventLog.prepare(bucket + "/dt=2024-01-01/", tmp_path / "log")
    EventLog.prepare(folder / "dt=2024-01-01", tmp_path / "other")
    for day in DAYS[1:]:
        new = EventLog.open(tmp_path / "log").append(f"{bucket}/dt=2024-01-0{day}/part-0.parquet")
        again = EventLog.open(tmp_path / "log").append(f"{bucket}/dt=2024-01-0{day}/*.parquet")
        assert (new.events, again.is_new) == (200, False)
        EventLog.open(tmp_path / "other").append(folder / f"dt=2024-01-0{day}")
    assert EventLog.open(tmp_path / "log").identity == EventLog.open(tmp_path / "other").identity


def test_verbs_take_addresses_as_they_are(bucket, tmp_path, capsys):
    items = bucket.replace("events", "items.parquet")
    assert main(["prepare", f"{bucket}/dt=2024-01-01/", str(tmp_path / "l"), "--items", items]) == 0
    assert main(["append", str(tmp_path / "l"), f"{bucket}/dt=2024-01-02/"]) == 0
    log = EventLog.open(tmp_path / "l")
    assert (log.num_events, log.options["items"]) == (400, items)
    assert log.item_features is not None
    assert main(["prepare", f"{bucket}/none/", str(tmp_path / "no")]) == 2
    assert f"{bucket}/none/" in capsys.readouterr().err


@pytest.mark.parametrize(
    "inside", ["/none/*.parquet", "/dt=2024-01-01/none.parquet", "", "/dt=2024-01-01"]
)
def test_what_is_not_there_is_named(bucket, tmp_path, inside):
    with pytest.raises(DataError, match=f"^{re.escape(bucket + inside)} "):
        EventLog.prepare(bucket + inside, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_wrong_value_is_named_with_its_file(bucket, s3, tmp_path):
    wrong = events_of(3).with_columns(pl.lit(None, pl.Int64).alias("timestamp"))
    wrong.write_parquet(tmp_path / "wrong.parquet")
    inside = bucket.removeprefix("s3://")
    _put(f"{s3}/{inside}/dt=2024-01-03/part-1.parquet", (tmp_path / "wrong.parquet").read_bytes())
    place = f"{bucket}/dt=2024-01-03/part-1.parquet, column 'timestamp', row 1: "
    with pytest.raises(DataError, match=f"^{re.escape(place)}"):
        EventLog.prepare(f"{bucket}/", tmp_path / "log")


def test_files_without_rows_are_no_events(bucket, s3, tmp_path):
    events_of(1).clear().write_parquet(tmp_path / "empty.parquet")
    inside = bucket.removeprefix("s3://")
    _put(f"{s3}/{inside}/no/part-0.parquet", (tmp_path / "empty.parquet").read_bytes())
    with pytest.raises(NoEventsError, match=f"^{re.escape(bucket)}/no/ has no events"):
        EventLog.prepare(f"{bucket}/no/", tmp_path / "log")


def test_a_file_on_the_web_is_read_in_batches(on_the_web, folder, tmp_path):
    address = f"{on_the_web}/dt=2024-01-01/part-0.parquet?signature=secret"
    EventLog.prepare(folder / "dt=2024-01-01", tmp_path / "one", timestamp="dt")
    with at_once(90):
        EventLog.prepare(address, tmp_path / "two", timestamp="dt")
    assert arrays(tmp_path / "two") == arrays(tmp_path / "one")
    assert "secret" not in (tmp_path / "two" / "log.json").read_text()
    new = EventLog.open(tmp_path / "two").append(address.replace("-01/", "-02/"))
    assert new.events == 200


def test_what_is_not_on_the_web_is_named(on_the_web, tmp_path):
    with pytest.raises(DataError) as error:
        EventLog.prepare(f"{on_the_web}/none.parquet?signature=secret", tmp_path / "log")
    assert str(error.value).startswith(f"{on_the_web}/none.parquet cannot be read as Parquet: ")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz", "*.tsv"])
def test_text_is_read_from_folders(tmp_path, name):
    with pytest.raises(DataError, match=rf"^s3://bucket/{re.escape(name)} ends in .*Parquet files"):
        EventLog.prepare(f"s3://bucket/{name}", tmp_path / "log")


def test_what_an_address_is():
    assert is_address("s3://bucket/a/*.parquet") and is_address("hf://datasets/a/b/c.parquet")
    assert (
        not is_address("a/b.parquet") and not is_address("C:/b") and not is_address(Path("s3:/b"))
    )
    told = without_secrets("https://ann:secret@host/a.parquet?signature=secret#part")
    assert told == "https://host/a.parquet"
    for other in ("s3://bucket/a?.parquet", "s3://[x]/a?.parquet", "//[x]/a?.csv", "http:a?b.csv"):
        assert without_secrets(other) == other


@pytest.mark.parametrize("source", ["//[x]/events.csv", "https://[x/a.parquet"])
def test_brackets_that_no_host_has_are_refused_as_what_is_not_there(tmp_path, source):
    with pytest.raises(DataError, match=re.escape(source.lstrip("/"))):
        EventLog.prepare(source, tmp_path / "log")

"""The compose file holds together, and Prometheus asks the replicas that are there."""

import re

import pytest
import yaml
from recipe import DEPLOY

from blossomrec.serving.http.server import TOKEN


@pytest.fixture(scope="module")
def compose():
    text = (DEPLOY / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+)[^}]*\}", r"\1", text))


@pytest.fixture(scope="module")
def prometheus():
    return yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())


def test_names_are_those_of_the_file(compose):
    services = compose["services"]
    for name, one in services.items():
        for volume in one.get("volumes", ()):
            source = volume.split(":")[0]
            is_path = source in ("RUNS", "LOG") or source.startswith("./")
            assert is_path or source in compose["volumes"], (name, volume)
        assert set(one["networks"]) <= set(compose["networks"])
        assert set(one.get("depends_on", ())) <= set(services)
        assert set(one.get("secrets", ())) <= set(compose["secrets"])


def test_files_that_are_mounted_are_there(compose):
    sources = [
        volume.split(":")[0]
        for one in compose["services"].values()
        for volume in one.get("volumes", ())
        if volume.startswith("./")
    ]
    assert len(sources) == 2 and all((DEPLOY / source).exists() for source in sources)


def test_images_have_a_version_and_are_built_where_they_are_ours(compose):
    for name, one in compose["services"].items():
        image, _, tag = one["image"].rpartition(":")
        assert image and tag != "latest", name
        assert "build" not in one or (image, tag) == ("blossomrec", "cpu")
        assert "healthcheck" in one or "build" in one, name


def test_our_containers_write_to_their_volumes_alone(compose):
    ours = [one for one in compose["services"].values() if one["image"].startswith("blossomrec:")]
    assert len(ours) == 4
    for one in ours:
        assert one["read_only"] is True and one["tmpfs"] == "/tmp" and one["cap_drop"] == ["ALL"]
        assert "code:/cache" in one["volumes"]


def test_prometheus_asks_each_replica_with_the_token(compose, prometheus):
    replicas = [name for name in compose["services"] if name.startswith("replica-")]
    (job,) = prometheus["scrape_configs"]
    (group,) = job["static_configs"]
    assert group["targets"] == [f"{name}:8000" for name in replicas]
    path = job["authorization"]["credentials_file"]
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert path == f"/run/secrets/{secret}"
    assert compose["secrets"][secret]["environment"] == TOKEN


def test_prometheus_reads_its_rules_from_the_folder_that_it_sees(compose, prometheus):
    command = compose["services"]["prometheus"]["command"]
    (config,) = [word.split("=")[1] for word in command if word.startswith("--config.file=")]
    assert "./prometheus:/etc/prometheus:ro" in compose["services"]["prometheus"]["volumes"]
    assert config == "/etc/prometheus/prometheus.yaml"
    assert prometheus["rule_files"] == ["alerts.yaml"]

"""What lies in ``deploy/`` fits together: options, addresses, ports, and what nginx makes of it."""

import re
import subprocess

import pytest
import yaml
from fleet import DEPLOY, configured, missing_nginx
from places import Redis, needs_redis

from blossomrec.cli import VERBS, build_app
from blossomrec.config import ServingConfig

ROOT = DEPLOY.parent
# Seconds that a container has beyond those that requests under way have.
MOMENT = 5


@pytest.fixture(scope="module")
def services():
    text = (DEPLOY / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+)[^}]*\}", r"\1", text))["services"]


@pytest.fixture(scope="module")
def conf():
    return re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())


def replicas(services):
    return {name: one for name, one in services.items() if name.startswith("replica-")}


def test_options_are_those_of_the_command_line(services):
    app = build_app()
    for one in (*replicas(services).values(), services["update"]):
        verb, *words = one["command"]
        known = app[verb].assemble_argument_collection()
        names = {name for argument in known for name in argument.names}
        assert verb in VERBS
        assert {word for word in words if word.startswith("--")} <= names, words


def test_the_balancer_knows_each_replica_and_waits_longer_than_they_do(services, conf):
    addresses = [
        f"{one['networks']['inside']['ipv4_address']}:8000" for one in replicas(services).values()
    ]
    assert len(addresses) == 3
    assert re.findall(r"server (\S+:\d+) ", conf) == addresses
    assert services["balancer"]["ports"][0].endswith(":" + re.findall(r"listen (\d+);", conf)[0])
    assert f"proxy_next_upstream_tries {len(addresses)};" in conf
    config = ServingConfig()
    assert config.max_body == 1 << 20 and "client_max_body_size 1m;" in conf
    for name in ("read", "send"):
        assert int(re.findall(rf"proxy_{name}_timeout (\d+)s;", conf)[0]) > config.timeout


def test_requests_that_nginx_may_repeat_change_nothing(conf):
    (pattern,) = re.findall(r"location ~ (\S+) \{\s+proxy_next_upstream[^;]*non_idempotent", conf)
    assert conf.count("non_idempotent") == 1
    page = (ROOT / "docs" / "serving.md").read_text()
    named = set(re.findall(r"`POST (/v1/[^`]*)`", page))
    changing = {path for path in named if not re.match(pattern, path)}
    assert changing == {"/v1/users/{id}/events", "/v1/items"}


def test_a_container_ends_later_than_its_requests(services):
    default = {
        argument.name: argument.field_info.default
        for argument in build_app()["serve"].assemble_argument_collection()
    }["--drain"]
    for one in replicas(services).values():
        assert int(one["stop_grace_period"].removesuffix("s")) >= default + MOMENT


@needs_redis
def test_the_store_keeps_what_it_has_acknowledged(services, tmp_path, caplog):
    command = services["valkey"]["command"]
    assert command[0] == "valkey-server"
    place = command.index("--requirepass")
    server = Redis(tmp_path, *command[1:place], *command[place + 2 :])
    try:
        server.open().close()
    finally:
        server.kill()
    # A server that may lose anything is warned of.
    assert not caplog.records


@pytest.mark.skipif(missing_nginx() is not None, reason=str(missing_nginx()))
def test_nginx_takes_its_configuration(tmp_path):
    urls = [f"http://127.0.0.1:{8001 + number}" for number in range(3)]
    path = configured(urls, 8000, tmp_path)
    command = ["nginx", "-t", "-e", "stderr", "-c", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr, done.stderr


def test_the_script_is_one():
    done = subprocess.run(["bash", "-n", DEPLOY / "swap"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

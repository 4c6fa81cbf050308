"""The manifests fit together, and are what Kubernetes takes. No test applies them to a cluster."""

import json
import os
import re
import shutil
import subprocess
from importlib.util import find_spec

import pytest
import yaml
from recipe import DEPLOY, last_stage

from blossomrec.cli import build_app
from blossomrec.serving.http.server import TOKEN

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
MANIFESTS = [
    manifest
    for name in KUSTOMIZATION["resources"]
    for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
# What the schemas of Kubernetes know nothing of.
FOREIGN = {"ServiceMonitor"}
# Of the newest Kubernetes but a few, so that those who have not the newest are served.
VERSION = "1.33"


def the(kind, name="blossomrec"):
    (found,) = [one for one in MANIFESTS if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def pods():
    """Manifest and template of all that start pods."""
    for one in MANIFESTS:
        spec = one.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield one, template


def containers(template):
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def server():
    (container,) = the("Deployment")["spec"]["template"]["spec"]["containers"]
    return container


def test_every_file_is_a_resource():
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    keys = [(one["kind"], one["metadata"]["name"]) for one in MANIFESTS]
    assert len(keys) == len(set(keys))


def test_selectors_find_their_pods():
    templates = [template["metadata"]["labels"] for _, template in pods()]

    def found(selector):
        return [labels for labels in templates if selector.items() <= labels.items()]

    for one in MANIFESTS:
        spec = one.get("spec", {})
        if one["kind"] in ("Deployment", "StatefulSet"):
            labels = spec["selector"]["matchLabels"]
            assert found(labels) == [spec["template"]["metadata"]["labels"]]
        elif one["kind"] == "Service":
            assert len(found(spec["selector"])) == 1
        elif one["kind"] == "PodDisruptionBudget":
            assert len(found(spec["selector"]["matchLabels"])) == 1
        elif one["kind"] == "NetworkPolicy":
            (rule,) = spec["ingress"]
            (source,) = rule["from"]
            assert len(found(spec["podSelector"]["matchLabels"])) == 1
            # The replicas and the update.
            assert len(found(source["podSelector"]["matchLabels"])) == 2
    spread = the("Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread[0]["labelSelector"] == the("Deployment")["spec"]["selector"]


def test_ports_match():
    names = {
        port["name"]: port["containerPort"]
        for _, template in pods()
        for one in containers(template)
        for port in one.get("ports", ())
    }
    assert str(names["http"]) == last_stage()["EXPOSE"].text
    for service in (the("Service"), the("Service", "valkey")):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(names)
    (port,) = the("Service")["spec"]["ports"]
    for path in the("Ingress")["spec"]["rules"][0]["http"]["paths"]:
        backend = path["backend"]["service"]
        assert (backend["name"], backend["port"]["name"]) == ("blossomrec", port["name"])
    (endpoint,) = the("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == port["name"]
    chosen = the("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert chosen.items() <= the("Service")["metadata"]["labels"].items()


def test_images_are_pinned_and_ours_is_one():
    images = {one["image"] for _, template in pods() for one in containers(template)}
    assert all(re.fullmatch(r"[\w./-]+:(?!latest$)[\w.-]+", image) for image in images)
    (own,) = KUSTOMIZATION["images"]
    assert {image for image in images if image.startswith("blossomrec")} == {"blossomrec:cpu"}
    assert own["name"] == "blossomrec" and own["newTag"] == "cpu"
    compose = (DEPLOY / "compose.yaml").read_text()
    (valkey,) = [image for image in images if image.startswith("valkey/")]
    assert f"image: {valkey}\n" in compose


@pytest.mark.skipif(find_spec("fastapi") is None, reason="the extra serve is not installed")
def test_probes_and_paths_are_routes_of_the_server():
    from blossomrec.serving.command import openapi_schema

    paths = set(openapi_schema()["paths"])
    probes = [server()[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")]
    assert [probe["path"] for probe in probes] == ["/healthz", "/healthz", "/readyz"]
    assert {probe["path"] for probe in probes} <= paths
    assert {probe["port"] for probe in probes} == {"http"}
    assert the("ServiceMonitor")["spec"]["endpoints"][0]["path"] in paths
    shown = [path["path"] for path in the("Ingress")["spec"]["rules"][0]["http"]["paths"]]
    assert all(any(path.startswith(one) for path in paths) for one in shown)
    assert not any("/metrics".startswith(one) for one in shown)


def test_options_are_those_of_the_command_line():
    app = build_app()
    commands = [
        one["args"]
        for _, template in pods()
        for one in containers(template)
        if one["image"] == "blossomrec:cpu" and "command" not in one
    ]
    assert {command[0] for command in commands} == {"serve", "update"}
    for verb, *words in commands:
        known = app[verb].assemble_argument_collection()
        names = {name for argument in known for name in argument.names}
        assert {word for word in words if word.startswith("--")} <= names, words


def test_pods_are_confined():
    user, group = map(int, last_stage()["USER"].text.split(":"))
    for one, template in pods():
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"] == {"type": "RuntimeDefault"}
        if one["metadata"]["name"] != "valkey":
            assert (context["runAsUser"], context["runAsGroup"]) == (user, group)
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_volumes_and_claims_are_there():
    claims = {one["metadata"]["name"] for one in MANIFESTS if one["kind"].endswith("VolumeClaim")}
    for one, template in pods():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", ())}
        kept = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", ())}
        mounted = {mount["name"] for each in containers(template) for mount in each["volumeMounts"]}
        assert mounted == volumes.keys() | kept
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
    # What the image keeps in a volume, apart from the store, which is another one here.
    paths = {mount["mountPath"] for mount in server()["volumeMounts"]}
    assert paths == {"/tmp", *last_stage()["VOLUME"].words} - {"/events"}


def test_a_pod_ends_later_than_its_requests():
    known = build_app()["serve"].assemble_argument_collection()
    (drain,) = [one.field_info.default for one in known if "--drain" in one.names]
    pause = int(server()["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = the("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= drain + pause + 5


def test_secrets_are_those_that_the_guide_makes():
    used = set()
    for _, template in pods():
        for one in containers(template):
            for variable in one.get("env", ()):
                secret = variable["valueFrom"]["secretKeyRef"]
                assert secret["name"] == "blossomrec"
                used.add((variable["name"], secret["key"]))
    assert used == {(TOKEN, "token"), ("REDISCLI_AUTH", "store-password")}
    monitor = the("ServiceMonitor")["spec"]["endpoints"][0]["authorization"]["credentials"]
    assert monitor == {"name": "blossomrec", "key": "token"}
    guide = (DEPLOY.parent / "docs" / "how-to" / "service.md").read_text()
    made = set(re.findall(r"--from-literal=([\w-]+)=", guide))
    assert made == {"token", "store-password"}


def test_the_store_is_that_of_the_compose_file():
    text = re.sub(r"\$\{(\w+)\}", r"$(\1)", (DEPLOY / "compose.yaml").read_text())
    command = yaml.safe_load(text)["services"]["valkey"]["command"]
    (valkey,) = the("StatefulSet", "valkey")["spec"]["template"]["spec"]["containers"]
    assert [*valkey["command"], *valkey["args"]] == command


def test_how_many_replicas_there_are_is_said_once():
    autoscaler = the("HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in the("Deployment")["spec"]
    target = autoscaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "blossomrec")
    assert 1 < autoscaler["minReplicas"] < autoscaler["maxReplicas"]


def test_the_ingress_sends_a_user_by_the_header_of_the_client():
    annotations = the("Ingress")["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert all(name.startswith(prefix) for name in annotations)
    assert all(isinstance(value, str) for value in annotations.values())
    assert annotations[f"{prefix}upstream-hash-by"] == "$http_x_user"
    # As beside the replicas of compose: what is repeated, for how long is waited.
    conf = (DEPLOY / "nginx.conf").read_text()
    for name in ("next-upstream", "next-upstream-tries", "read-timeout", "send-timeout"):
        value = annotations[f"{prefix}proxy-{name}"]
        assert re.search(rf"proxy_{name.replace('-', '_')} {value}s?;", conf), name
    assert f"client_max_body_size {annotations[f'{prefix}proxy-body-size']};" in conf


def test_a_new_run_replaces_the_pods_and_the_same_does_not(tmp_path):
    spec = the("CronJob", "blossomrec-update")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    _, step = spec["initContainers"]
    runs, handed = tmp_path / "runs", tmp_path / "handed"
    (runs / "00007").mkdir(parents=True)
    handed.mkdir()
    (runs / "current").symlink_to("00007")
    script = step["args"][0].replace("/runs", str(runs)).replace("/handed", str(handed))
    subprocess.run([*step["command"], script], check=True)
    patch = json.loads((handed / "patch.json").read_text())
    assert patch == {
        "spec": {"template": {"metadata": {"annotations": {"blossomrec/run": "00007"}}}}
    }
    (last,) = spec["containers"]
    assert last["args"][1:3] == ["deployment", "blossomrec"]
    assert last["args"][-1] == "/handed/patch.json"
    (rule,) = the("Role", "blossomrec-update")["rules"]
    assert rule["resourceNames"] == ["blossomrec"] and last["args"][0] in rule["verbs"]
    account = the("RoleBinding", "blossomrec-update")["subjects"][0]["name"]
    assert spec["serviceAccountName"] == account


@pytest.mark.skipif(
    find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed"
)
@pytest.mark.parametrize(
    "manifest",
    [one for one in MANIFESTS if one["kind"] not in FOREIGN],
    ids=lambda one: f"{one['kind']}-{one['metadata']['name']}",
)
def test_kubernetes_takes_it(manifest):
    import kubernetes_validate  # pyright: ignore[reportMissingImports]

    kubernetes_validate.validate(manifest, VERSION, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_it(tmp_path):
    command = ["kubectl", "kustomize", FOLDER]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(MANIFESTS)
    (own,) = KUSTOMIZATION["images"]
    assert f"image: {own['newName']}:{own['newTag']}\n" in done.stdout
    assert "image: blossomrec" not in done.stdout

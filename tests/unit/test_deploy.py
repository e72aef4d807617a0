"""The deployment files against the published schemas, and against one another."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.transport.certs import Credentials
from orchestrator.transport.ray_settings import SETTINGS
from silos.config import SiloConfig

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
AGENT = DEPLOY / "systemd/siloray-agent.service"
HEALTH = {
    "RAY_health_check_initial_delay_ms": "10000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "5",
}
"""What the head is told besides what every Ray process is told, on a laptop too."""


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def start_commands() -> Iterator[tuple[str, str, bool]]:
    """Every line that starts Ray: where it stands, the line, whether it starts a head."""
    for path in (REPOSITORY / "cluster.yaml", DEPLOY / "aws.yaml"):
        cluster = load(path)
        for key, head in (("head_start_ray_commands", True), ("worker_start_ray_commands", False)):
            yield f"{path.name} {key}", cluster[key][-1], head
    settings = " ".join(f"{key}={value}" for key, value in environment_file().items())
    for unit in UNITS:
        if unit == AGENT:
            continue
        yield unit.name, f"{settings}; {service(unit)['Service']['ExecStart']}", "head" in unit.name


def environment_file() -> dict[str, str]:
    lines = (DEPLOY / "systemd/siloray.env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def service(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text(encoding="utf-8"))
    return unit


STARTS = [pytest.param(line, head, id=name) for name, line, head in start_commands()]


@pytest.mark.parametrize(
    "path", [REPOSITORY / "cluster.yaml", DEPLOY / "aws.yaml"], ids=lambda path: path.name
)
def test_ray_accepts_the_launcher_files(path: Path) -> None:
    """By the schema that Ray ships, before and after Ray has filled in what is not said."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(
        (Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8")
    )
    jsonschema.validate(load(path), schema)
    validate_config(prepare_config(load(path)))


def test_ray_refuses_a_field_that_it_does_not_know() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**load(DEPLOY / "aws.yaml"), "worker_type": "x"}))


@pytest.mark.parametrize(("line", "head"), STARTS)
def test_every_start_of_ray_says_the_same(line: str, head: bool) -> None:
    """And what Siloray says where it starts Ray itself."""
    said = dict(re.findall(r"\b(RAY_\w+)=(\S+?)(?=[;\s])", line))
    wanted = {**SETTINGS, **(HEALTH if head else {})}
    assert {key: said.get(key) for key in wanted} == wanted
    assert "RAY_AUTH_TOKEN_PATH" in said and "RAY_AUTH_TOKEN" not in said, (
        "a token in a file, not in a command"
    )
    assert ("--head" in line.split()) is head
    assert head == ("--dashboard-host=127.0.0.1" in line)
    assert "--object-spilling-directory=" in line
    assert "--num-gpus" not in line, "Ray counts them"


@pytest.mark.parametrize(("line", "head"), STARTS)
def test_ray_knows_the_options_and_no_port_is_left_to_chance(line: str, head: bool) -> None:
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    arguments = re.sub(r"\$\(.*?\)", "", line.split("ray start", 1)[1].split("&&")[0])
    used = dict(word.partition("=")[::2] for word in shlex.split(arguments))
    assert set(used) <= known
    ports = {name for name in known if name.endswith("-port")} - {
        "--ray-client-server-port",  # nobody uses Ray's client; its port is not let through
        "--worker-port-list",
        "--port",
        "--dashboard-port",
        "--dashboard-grpc-port",
        "--redis-port",
        "--gcs-server-port",
    }
    assert ports <= set(used)
    assert not head or used["--port"] == "6379"


def test_machines_of_a_room_say_themselves_what_they_are() -> None:
    cluster = load(REPOSITORY / "cluster.yaml")
    assert cluster["provider"]["type"] == "local" and "file_mounts" not in cluster
    head, worker = cluster["head_start_ray_commands"][-1], cluster["worker_start_ray_commands"][-1]
    for line in (head, worker):
        assert "--labels-file=/etc/siloray/labels.yaml" in line
        assert "unset SSH_CLIENT SSH_CONNECTION" in line
    assert "RAY_enable_autoscaler_v2=0" in head, "version 2 starts one machine too few"
    assert list(cluster)[:3] == ["cluster_name", "provider", "auth"], "what an operator changes comes first"


def test_aws_has_one_type_of_its_own_for_each_silo() -> None:
    cluster = load(DEPLOY / "aws.yaml")
    types = dict(cluster["available_node_types"])
    assert types.pop(cluster["head_node_type"])["labels"] == {"siloray.role": "driver"}
    assert cluster["max_workers"] == len(types) >= 2
    for name, kind in types.items():
        assert kind["labels"] == {"siloray.role": "silo", "siloray.silo": name.removeprefix("silo-")}
        assert kind["min_workers"] == kind["max_workers"] == 1
        assert kind["resources"]["GPU"] >= 1
    private = [kind["worker_setup_commands"][-1].split()[-1] for kind in types.values()]
    profiles = [kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()]
    assert len(set(private)) == len(set(profiles)) == len(types), "a volume and a right to it for each"
    disks = [disk for kind in types.values() for disk in kind["node_config"]["BlockDeviceMappings"]]
    assert all(disk["Ebs"]["Encrypted"] for disk in disks)


@pytest.fixture(scope="module")
def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def ray_cluster(kubernetes: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = (each for each in kubernetes if each["kind"] == "RayCluster")
    return found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    text = (REPOSITORY / "tests/data/raycluster.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(document)
    return document


def test_runs_outlive_the_drivers_machine_where_that_is_replaced(ray_cluster: dict[str, Any]) -> None:
    """Else they would be in the home folder of Ray's account: lost with a pod or an instance, absent under systemd."""
    (head,) = ray_cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (runs,) = (each["value"] for each in head["env"] if each["name"] == "SILORAY_RUNS")
    (mounted,) = (each["mountPath"] for each in head["volumeMounts"])
    assert Path(runs).is_relative_to(mounted) and runs != mounted
    assert _claim(ray_cluster["spec"]["headGroupSpec"]) == "driver"

    started = load(DEPLOY / "aws.yaml")["head_start_ray_commands"][-1]
    assert re.search(r" SILORAY_RUNS=s3://[\w-]+/runs RAY_", started)

    unit = service(DEPLOY / "systemd/siloray-head.service")["Service"]
    runs = environment_file()["SILORAY_RUNS"]
    assert runs in [f"/var/lib/{folder}" for folder in unit["StateDirectory"].split()]


def test_an_agents_example_lies_where_its_unit_lets_it() -> None:
    """The guide's own silo.yaml under the unit's SILORAY_DATA_ROOT."""
    (guide,) = re.findall(
        r"```yaml\n# /etc/siloray/silo.yaml.*?\n(.*?)```",
        (REPOSITORY / "docs/deployment.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    config = SiloConfig.model_validate(yaml.safe_load(guide))
    (root,) = re.findall(r"SILORAY_DATA_ROOT=(\S+)", service(AGENT)["Service"]["Environment"])
    paths = [str(dataset.path) for dataset in config.datasets.values()]
    assert paths and all(Path(path).is_relative_to(root) for path in paths)


def test_the_guides_certificates_are_made_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ``siloray certs`` line of the guide, in its order, in the folder of whoever gives it."""
    guide = (REPOSITORY / "docs/deployment.md").read_text(encoding="utf-8")
    section = re.search(r"### 1. Certificates\n(.*?)\n### 2. ", guide, re.DOTALL)
    assert section is not None
    lines = re.findall(r"(?:^    |`)siloray (certs [^`#\n]*\w)", section[1], re.MULTILINE)
    lines = [line for line in lines if "FOLDER" not in line]
    homes = {name: tmp_path / name for name in ("consortium", "driver", "cleveland")}
    for home in homes.values():
        home.mkdir()
    for line in lines:
        words = shlex.split(line)
        who = "consortium" if words[1] != "request" else "driver" if "--driver" in words else words[2]
        monkeypatch.chdir(homes[who])
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, f"{line}: {ended.output}"
        if words[1] == "request":
            shutil.copy("credentials/request.pem", homes["consortium"] / f"{who}.pem")
        if words[1] == "show":
            for member in ("driver", "cleveland"):
                own = homes[member] / "credentials"
                for name in ("tls.pem", "ca.pem"):
                    shutil.copy(homes["consortium"] / f"for-{member}" / name, own)
                shutil.copy(homes["consortium"] / "certs/roster.yaml", own)
                assert Credentials.load(own).identity.endswith(f"/{member}")
    assert [line.split()[1] for line in lines] == [
        *("init", "request", "request", "issue", "issue", "show"),
        *("issue", "revoke"),
    ]


def test_kuberay_knows_every_field(ray_cluster: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.validate(ray_cluster, schema)


def test_a_misspelt_field_for_kuberay_is_found(ray_cluster: dict[str, Any], schema: dict[str, Any]) -> None:
    """KubeRay itself would drop it without a word."""
    for spoil in ("label", "nodeSelectors"):
        wrong = json.loads(json.dumps(ray_cluster))
        group = wrong["spec"]["workerGroupSpecs"][0]
        (group if spoil == "label" else group["template"]["spec"])[spoil] = {"siloray.silo": "va"}
        with pytest.raises(jsonschema.ValidationError, match=spoil):
            jsonschema.validate(wrong, schema)


def test_kubernetes_has_one_group_claim_and_machine_for_each_silo(
    kubernetes: list[dict[str, Any]], ray_cluster: dict[str, Any]
) -> None:
    claims = {each["metadata"]["name"] for each in kubernetes if each["kind"] == "PersistentVolumeClaim"}
    used = [_claim(ray_cluster["spec"]["headGroupSpec"])]
    for group in ray_cluster["spec"]["workerGroupSpecs"]:
        silo = group["labels"]["siloray.silo"]
        pod = group["template"]["spec"]
        assert group["groupName"] == f"silo-{silo}" and group["labels"]["siloray.role"] == "silo"
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 1
        assert pod["nodeSelector"] == {"siloray.silo": silo}
        assert "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        used.append(_claim(group))
    assert len(used) == len(set(used)) and set(used) == claims


def test_data_comes_onto_a_silos_claim_as_its_pod_will_read_it(
    kubernetes: list[dict[str, Any]], ray_cluster: dict[str, Any], schema: dict[str, Any]
) -> None:
    """The example pod, by the schema of a silo's own pod; the claims can be made before the cluster."""
    pod = load(DEPLOY / "kuberay-data.yaml")["spec"]
    trial = json.loads(json.dumps(ray_cluster))
    group = trial["spec"]["workerGroupSpecs"][0]
    own = group["template"]["spec"]
    group["template"]["spec"] = pod
    jsonschema.validate(trial, schema)
    assert (pod["nodeSelector"], pod["securityContext"]) == (own["nodeSelector"], own["securityContext"])
    assert _claim({"template": {"spec": pod}}) == _claim(ray_cluster["spec"]["workerGroupSpecs"][0])
    parts = [
        (each["kind"] == "PersistentVolumeClaim", each["metadata"].get("labels") == {"siloray.part": "claim"})
        for each in kubernetes
    ]
    assert all(is_claim == selected for is_claim, selected in parts)


def test_pods_are_told_what_machines_are_told(ray_cluster: dict[str, Any]) -> None:
    spec = ray_cluster["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group, wanted in zip(groups, [SETTINGS | HEALTH, SETTINGS, SETTINGS], strict=True):
        (container,) = group["template"]["spec"]["containers"]
        said = {each["name"]: each.get("value") for each in container["env"]}
        assert {key: said.get(key) for key in wanted} == wanted
        (token,) = (each for each in container["env"] if each["name"] == "RAY_AUTH_TOKEN")
        assert "secretKeyRef" in token["valueFrom"]
        assert (group is groups[0]) != ("SILORAY_SILO" in said)
    assert groups[0]["rayStartParams"]["dashboard-host"] == "127.0.0.1"


def _claim(group: dict[str, Any]) -> str:
    volumes = group["template"]["spec"]["volumes"]
    (name,) = (
        each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each
    )
    return str(name)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_starts_it_again_whatever_ends_it(path: Path) -> None:
    unit = service(path)
    assert unit["Service"]["Restart"] == "always" and unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert ("--block" in unit["Service"]["ExecStart"].split()) == (path != AGENT)
    assert unit["Service"]["KillMode"] == "control-group"
    assert unit["Service"]["User"] != "root"
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    wanted = set(re.findall(r"\$\{(\w+)\}", unit["Service"]["ExecStart"]))
    assert wanted <= set(environment_file())


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_accepts_the_unit(path: Path, tmp_path: Path) -> None:
    """With a command that exists here in place of ``ray``."""
    copy = tmp_path / path.name
    copy.write_text(
        path.read_text(encoding="utf-8")
        .replace("/opt/siloray/.venv/bin/ray", shutil.which("true") or "")
        .replace("/opt/siloray/.venv/bin/siloray", shutil.which("true") or "")
    )
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "notice"},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_an_account_of_its_own_runs_the_units() -> None:
    users = {service(path)["Service"]["User"] for path in UNITS}
    assert users == {"siloray"} and len(UNITS) == 3

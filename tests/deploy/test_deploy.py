"""What lies in deploy/ fits together: images, commands, ports, probes, manifests, metrics."""

import json
import re
import shlex
from pathlib import Path

import pytest

from beam_pipelines.cli.main import COMMANDS, build_parser
from beam_pipelines.services.flink_config import Memory
from schemas import metric_names

yaml = pytest.importorskip("yaml", reason="PyYAML is not there: pip install 'beamrec[dev]'")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
SERVICE_KEYS = {"build", "cap_drop", "command", "depends_on", "environment", "healthcheck", "image", "init", "mem_limit",
                "ports", "profiles", "read_only", "restart", "security_opt", "stop_grace_period", "tmpfs", "volumes"}
"""Of the Compose Specification, those that we use."""


def stages():
    """The Dockerfile as {stage: (base, [(instruction, rest)])}."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    found, name = {}, None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = (base, [])
        else:
            found[name][1].append((instruction, rest.strip()))
    return found


def whole(name):
    """Every instruction of a stage, its bases' first."""
    found, steps = stages(), []
    while name in found:
        name, own = found[name]
        steps = own + steps
    return steps


def parsed(words):
    """The arguments of a beamrec command line; fails when beamrec would."""
    command = next(c for c in COMMANDS if c.name == words[0])
    return build_parser(command).parse_args([str(word) for word in words[1:]])


def manifests():
    for path in sorted((DEPLOY / "k8s").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield pytest.param(document, id=f"{path.stem}-{document['kind']}-{document['metadata']['name']}")


def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_dockerfile_uses_known_instructions_and_pinned_bases():
    found = stages()
    assert {instruction for name in found for instruction, _ in found[name][1]} <= INSTRUCTIONS
    for base, _ in found.values():
        assert base in found or re.search(r":[^:]*\d", base), f"{base} has no version"
    assert list(found)[-1] == "serve"  # what is built without --target


@pytest.mark.parametrize("name", ["serve", "jobs", "stream"])
def test_an_image_runs_as_nobody_special_and_tells_how_it_is(name):
    steps = whole(name)
    assert [rest for instruction, rest in steps if instruction == "USER"][-1] == "10001"
    assert "useradd --uid 10001" in next(rest for instruction, rest in steps if instruction == "RUN")
    if name != "jobs":
        assert any(instruction == "HEALTHCHECK" for instruction, _ in steps)
    for instruction, rest in steps:
        if instruction in ("ENTRYPOINT", "CMD"):
            json.loads(rest)  # the form without a shell: signals arrive
        assert not re.search(r"\b(curl|wget)\b.*\|", rest)


def test_the_dockerfile_copies_what_there_is():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in stages():
        for instruction, rest in stages()[name][1]:
            words = [w for w in shlex.split(rest) if not w.startswith("--")]
            if instruction == "COPY" and "--from" not in rest:
                for source in words[:-1]:
                    assert (ROOT / source).exists() and f"!{source}" in ignored, source


def test_the_server_image_installs_neither_beam_nor_tensorflow():
    install = next(rest for instruction, rest in stages()["build-serve"][1] if "pip install" in rest)
    assert ".[serve,bigtable,stream]" in install and "--constraint requirements.lock" in install
    setup = (ROOT / "setup.py").read_text()
    for extra in ("SERVE", "BIGTABLE", "STREAM"):
        named = re.search(rf"^{extra} = (\[.*?\])$", setup, re.M | re.S)[1]
        assert "beam" not in named and "tensorflow" not in named
    assert parsed(json.loads(whole("serve")[-1][1])).host == "0.0.0.0"


def test_the_shell_script_runs_a_command_that_there_is():
    text = (DEPLOY / "stream.sh").read_text()
    line = re.search(r"exec beamrec (stream .*) \"\$@\"", text)[1].replace('"$state"', "/data")
    args = parsed([*shlex.split(line), "--log", "kafka://k:9092/events"])
    assert args.metrics_port == 9100 and args.resume_or_start  # a container that died before its first checkpoint starts again
    assert (DEPLOY / "stream.sh").stat().st_mode & 0o111


def test_compose_services_name_what_there_is():
    document = compose()
    services, volumes = document["services"], set(document["volumes"])
    assert {"kafka", "flink", "bigtable", "collector", "api"} <= set(services)
    targets, published = set(stages()), []
    for name, service in services.items():
        assert set(service) <= SERVICE_KEYS, name
        assert service.get("image") and ("build" in service or ":" in service["image"])
        if "build" in service:
            assert service["build"]["target"] in targets and (DEPLOY / service["build"]["context"] / "setup.py").exists()
            assert service["image"] == f"beamrec:{service['build']['target']}"
            assert service["read_only"] and service["cap_drop"] == ["ALL"]
        waits = service.get("depends_on", [])
        for other in waits:
            assert other in services
            if isinstance(waits, dict):
                assert waits[other]["condition"] == "service_healthy" and "healthcheck" in services[other]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in volumes, volume
        for value in service.get("environment", {}).values():
            assert isinstance(value, str)
        published += service.get("ports", [])
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)  # nothing is open to the network
    assert len(set(published)) == len({port.split(":")[1] for port in published})


@pytest.mark.parametrize("name", ["collector", "api", "lake"])
def test_compose_commands_are_beamrecs(name):
    args = parsed(compose()["services"][name]["command"])
    assert args.log == "kafka://kafka:9092/events"


def test_the_stream_has_the_memory_that_its_parts_take():
    memory = Memory()
    flink = (memory.heap + memory.managed + memory.network + 600 + memory.jobmanager + memory.jobserver + 2 * 100) / 1024
    workers = 4 * .85  # twice as many as slots, resident in the benchmark of half an hour
    assert float(compose()["services"]["flink"]["mem_limit"].removesuffix("g")) > flink + workers


def test_the_compose_stream_command_is_beamrecs():
    args = parsed(["stream", *compose()["services"]["flink"]["command"]])
    assert args.store == "bigtable://local/dev" and args.log == "kafka://kafka:9092/events"


def test_what_listens_for_others_takes_keys_only():
    commands = [service["command"] for service in compose()["services"].values() if service.get("command")]
    commands += [p.values[0]["spec"]["template"]["spec"]["containers"][0]["args"] for p in manifests()
                 if p.values[0]["kind"] == "Deployment"]
    listening = [parsed(words) for words in commands if "--host" in words]
    assert len(listening) == 4 and all(args.keys and args.host == "0.0.0.0" for args in listening)
    assert not any(getattr(args, "open", False) or getattr(args, "anonymous", None) for args in listening)


@pytest.mark.parametrize("document", manifests())
def test_a_manifest_is_valid_kubernetes(document):
    validate = pytest.importorskip("kubernetes_validate", reason="not there: pip install 'beamrec[dev]'")
    validate.validate(document, "1.33", strict=True)


def test_manifests_fit_together():
    documents = [p.values[0] for p in manifests()]
    by_kind = {}
    for document in documents:
        by_kind.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    lake = by_kind["Deployment"].pop("beamrec-lake")
    pod = lake["spec"]["template"]["spec"]
    writer = parsed(pod["containers"][0]["args"])
    assert lake["spec"]["replicas"] == 1 and lake["spec"]["strategy"] == {"type": "Recreate"} and not writer.until_end
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] in by_kind["PersistentVolumeClaim"]
    assert not pod["containers"][0]["volumeMounts"][0].get("readOnly")
    deployments = by_kind["Deployment"]
    for kind in ("Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"):
        assert set(by_kind[kind]) == set(deployments)
    for name, deployment in deployments.items():
        spec, labels = deployment["spec"], deployment["spec"]["template"]["metadata"]["labels"]
        pod, container = spec["template"]["spec"], spec["template"]["spec"]["containers"][0]
        assert spec["selector"]["matchLabels"] == labels == by_kind["Service"][name]["spec"]["selector"]
        assert labels == by_kind["PodDisruptionBudget"][name]["spec"]["selector"]["matchLabels"]
        scaler = by_kind["HorizontalPodAutoscaler"][name]["spec"]
        assert scaler["scaleTargetRef"]["name"] == name and scaler["minReplicas"] <= spec["replicas"] <= scaler["maxReplicas"]
        args = parsed(container["args"])
        assert args.log == writer.log
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == labels
        assert scaler["behavior"]["scaleDown"]["policies"] == [{"type": "Percent", "value": 20, "periodSeconds": 60}]
        assert args.port == container["ports"][0]["containerPort"] and args.host == "0.0.0.0"
        assert {"readinessProbe", "livenessProbe"} <= set(container) and "requests" in container["resources"]
        assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        drain = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pod["terminationGracePeriodSeconds"] > drain + 5
    for job in by_kind["CronJob"].values():
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert parsed(pod["containers"][0]["args"]).workspace == "/data" and job["spec"]["concurrencyPolicy"] == "Forbid"
        for volume in pod["volumes"]:
            assert volume["persistentVolumeClaim"]["claimName"] in by_kind["PersistentVolumeClaim"]


def exported():
    """Every metric name of API and collector, as Prometheus sees it; those of the stream: test_stream_job.py, in a scrape."""
    names = {value for key, value in vars(metric_names).items() if key.startswith(("SERVE_", "COLLECT_"))}
    return names | {f"{n}_{end}" for n in names if n.endswith("_seconds") for end in ("bucket", "sum", "count")}


def test_the_dashboard_names_metrics_that_are_exported():
    board = json.loads((DEPLOY / "grafana" / "beamrec.json").read_text())
    panels = [p for p in board["panels"] if p["type"] != "row"]
    known, used = exported(), set()
    for panel in panels:
        assert panel["title"] and panel["targets"] and panel["datasource"]["uid"] == "prometheus"
        for target in panel["targets"]:
            used |= set(re.findall(r"beamrec_(?:serve|collector)_\w+", target["expr"]))
            assert target["expr"].count("(") == target["expr"].count(")")
    assert len(used) > 20 and used <= known, used - known
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"])
    placed = {(x, y) for p in board["panels"] for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
              for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])}
    assert len(placed) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in board["panels"])  # none lies over another


def test_prometheus_scrapes_services_that_there_are():
    config = yaml.safe_load((DEPLOY / "grafana" / "prometheus.yaml").read_text())
    services = compose()["services"]
    for job in config["scrape_configs"]:
        host, port = job["static_configs"][0]["targets"][0].split(":")
        assert host in services and port in ("8000", "9100")
    source = yaml.safe_load((DEPLOY / "grafana" / "datasource.yaml").read_text())["datasources"][0]
    assert source["uid"] == "prometheus" and source["url"] == "http://prometheus:9090" and "prometheus" in services

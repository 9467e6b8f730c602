"""Holds the Helm chart to what a cluster takes and to what its users are told.

    chart.py render OUT     every set of values in helm/ci: linted, rendered, validated; OUT/NAME.json says what to start
    chart.py refused        values that make no sense are refused, and the message says what to do
    chart.py settings FILE  the chart takes every setting of docs/configuration.md, and of this printed configuration (TOML)
    chart.py notes          what NOTES.txt says to type, one command a line

HELM is the helm to call. Prints `ok` at the end, or says what is wrong and fails.
"""

import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

import jsonschema
import kubernetes_validate
import yaml

TOP = pathlib.Path(__file__).resolve().parents[3]
CHART = TOP / "helm"
HELM = os.environ["HELM"]
# The oldest that Chart.yaml admits, as far as its schemas are there, and the newest.
VERSIONS = ["1.27", kubernetes_validate.latest_version()]
RELEASE = "ferry"


class UniqueKeys(yaml.SafeLoader):
    """Refuses mappings with the same key twice, of which one would be lost in silence."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        require(not twice, f"{node.start_mark}: twice: {twice}")
        return super().construct_mapping(node, deep)


def require(condition, message):
    if not condition:
        sys.exit(f"chart.py: {message}")


def helm(*arguments, chart=CHART):
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False)


def template(*arguments, release=RELEASE, chart=CHART):
    done = helm("template", release, str(chart), "--namespace", "storage", *arguments)
    require(done.returncode == 0, f"helm template {arguments}: {done.stderr}")
    return [one for one in yaml.load_all(done.stdout, UniqueKeys) if one]


# What Kubernetes says of the objects.


def validate(documents, where):
    with open(pathlib.Path(__file__).with_name("servicemonitor.schema.json"), encoding="utf-8") as file:
        service_monitor = json.load(file)
    for document in documents:
        kind = f"{where}: {document['kind']} {document['metadata']['name']}"
        if document["apiVersion"].startswith("monitoring.coreos.com/"):
            try:
                jsonschema.validate(document, service_monitor)
            except jsonschema.ValidationError as error:
                sys.exit(f"chart.py: {kind}: {error.message}")
            continue
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                sys.exit(f"chart.py: {kind}, Kubernetes {version}: {error.message} at {list(error.path)}")
            except Exception as error:  # pylint: disable=broad-except
                # A schema that is not there is only warned of by the command: here it is a failure.
                sys.exit(f"chart.py: {kind}, Kubernetes {version}: {error!r}")


# What a stranger would look for in them.


def pods(documents):
    for document in documents:
        if document["kind"] == "StatefulSet":
            yield document, document["spec"]["template"]["metadata"], document["spec"]["template"]["spec"]
        elif document["kind"] == "Pod":
            yield document, document["metadata"], document["spec"]


def matches(selector, labels):
    return selector.items() <= labels.items()


def inspect(documents, where):
    names = [(one["kind"], one["metadata"]["name"]) for one in documents]
    require(len(set(names)) == len(names), f"{where}: a name is there twice: {names}")
    for kind, name in names:
        longest = 52 if kind == "StatefulSet" else 63
        require(len(name) <= longest, f"{where}: {kind} {name} has too long a name")
    for one in documents:
        labels = one["metadata"]["labels"]
        require(labels["app.kubernetes.io/instance"], f"{where}: {one['kind']} has no labels")
    services = [one for one in documents if one["kind"] == "Service"]
    for document, metadata, pod in pods(documents):
        what = f"{where}: {document['kind']} {document['metadata']['name']}"
        require(pod["automountServiceAccountToken"] is False, f"{what} mounts a token")
        require(pod["enableServiceLinks"] is False, f"{what} gets variables of services")
        require(pod["securityContext"]["runAsNonRoot"] is True, f"{what} may run as root")
        require(pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, f"{what} has no seccomp")
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for claim in document["spec"].get("volumeClaimTemplates", []):
            volumes.add(claim["metadata"]["name"])
        for container in pod["containers"]:
            security = container["securityContext"]
            require(security["readOnlyRootFilesystem"] is True, f"{what} may write its root")
            require(security["allowPrivilegeEscalation"] is False, f"{what} may gain privileges")
            require(security["capabilities"] == {"drop": ["ALL"]}, f"{what} has capabilities")
            variables = [variable["name"] for variable in container.get("env", [])]
            require(len(set(variables)) == len(variables), f"{what}: a variable is there twice: {variables}")
            mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
            require(set(mounted) <= volumes, f"{what} mounts what is no volume: {mounted} of {volumes}")
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if get := container.get(probe, {}).get("httpGet"):
                    require(get["port"] in ports, f"{what}: {probe} asks at no port of it")
        if metadata["labels"]["app.kubernetes.io/component"] == "test":
            for policy in (one for one in documents if one["kind"] == "NetworkPolicy"):
                selectors = [
                    peer["podSelector"].get("matchLabels", {})
                    for rule in policy["spec"]["ingress"]
                    for peer in rule.get("from", [{"podSelector": {}}])
                    if set(peer) == {"podSelector"}
                ]
                require(any(matches(one, metadata["labels"]) for one in selectors), f"{what} is not let in by the policy")
        if document["kind"] == "StatefulSet":
            spec = document["spec"]
            require(matches(spec["selector"]["matchLabels"], metadata["labels"]), f"{what} does not select its pods")
            governing = [one for one in services if one["metadata"]["name"] == spec["serviceName"]]
            require(governing, f"{what} has no service {spec['serviceName']}")
            containers = {port["name"] for container in pod["containers"] for port in container["ports"]}
            for policy in (one for one in documents if one["kind"] == "NetworkPolicy"):
                if matches(policy["spec"]["podSelector"]["matchLabels"], metadata["labels"]):
                    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
                    require(opened <= containers, f"{what}: the network policy opens no port of it: {opened}")
            selecting = [one for one in services if matches(one["spec"]["selector"], metadata["labels"])]
            require(selecting, f"{what} is behind no service")
            for service in selecting:
                targets = {port["targetPort"] for port in service["spec"]["ports"]}
                require(targets <= containers, f"{what}: its service leads to no port of it: {targets}")
                others = [
                    other["metadata"]["name"]
                    for other, labels, _ in pods(documents)
                    if other is not document and matches(service["spec"]["selector"], labels["labels"])
                ]
                require(not others, f"{what}: its service leads to {others} too")


def replicator(documents, where):
    """The replicator's configuration, arguments and variables, which have to agree with its ports and grace period."""
    (config,) = [one["data"]["blobferry.toml"] for one in documents if one["kind"] == "ConfigMap"]
    settings = tomllib.loads(config)
    found = [
        (document, pod)
        for document, _, pod in pods(documents)
        if document["kind"] == "StatefulSet"
        and document["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "replicator"
    ]
    require(len(found) == 1, f"{where}: there is not one replicator")
    document, pod = found[0]
    require(document["spec"]["replicas"] in (0, 1), f"{where}: {document['spec']['replicas']} replicas")
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    require(settings["server"]["listen"].endswith(f":{ports['grpc']}"), f"{where}: gRPC is at another port")
    require(settings["server"]["http_listen"].endswith(f":{ports['http']}"), f"{where}: HTTP is at another port")
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    require(settings["server"]["data_dir"] in mounts, f"{where}: the queue is on no volume")
    variables = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    # `kubectl exec … -- blobferry status` goes by it.
    require(
        variables["BLOBFERRY_REPLICATOR"] == f"http://127.0.0.1:{ports['grpc']}",
        f"{where}: commands in the pod look at {variables['BLOBFERRY_REPLICATOR']}",
    )
    drain = seconds(settings["server"].get("drain_timeout", "25s"))
    grace = pod["terminationGracePeriodSeconds"]
    require(grace >= drain + 10, f"{where}: {grace} s of grace for a drain of {drain} s")
    return {"config": config, "args": container["args"], "env": variables, "http": settings["server"]["http_listen"]}


def seconds(text):
    number, unit = re.fullmatch(r"(\d+) ?(\w+)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600}[unit]


def render(out):
    lint = helm("lint", "--strict", str(CHART))
    require(lint.returncode == 0, f"helm lint: {lint.stdout}{lint.stderr}")
    sets = sorted(CHART.glob("ci/*-values.yaml"))
    require(len(sets) >= 6, f"only {len(sets)} sets of values")
    for values in sets:
        name = values.name.removesuffix("-values.yaml")
        lint = helm("lint", "--strict", str(CHART), "--values", str(values))
        require(lint.returncode == 0 and "[WARNING]" not in lint.stdout, f"helm lint {name}: {lint.stdout}{lint.stderr}")
        documents = template("--values", str(values))
        validate(documents, name)
        inspect(documents, name)
        pathlib.Path(out, f"{name}.json").write_text(json.dumps(replicator(documents, name)), encoding="utf-8")
    # The longest name of a release that Helm admits, and one that has the chart's name in it.
    for release in ("r" * 53, "blobferry", "b-" * 26 + "b"):
        inspect(template("--values", str(CHART / "ci/trial-values.yaml"), release=release), release)
    changed = template("--values", str(CHART / "ci/default-values.yaml"), "--set", "config.log.level=debug")
    unchanged = template("--values", str(CHART / "ci/default-values.yaml"))
    sums = [
        pod["metadata"]["annotations"]["checksum/config"]
        for documents in (changed, unchanged)
        for pod in (one["spec"]["template"] for one in documents if one["kind"] == "StatefulSet")
    ]
    require(len(set(sums)) == 2, "another configuration makes no other pod")
    version = re.search(r'^version = "(.*)"', (TOP / "Cargo.toml").read_text(), re.M)[1]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    require(chart["appVersion"] == version, f"the chart is of {chart['appVersion']}, the program of {version}")
    require(f"ARG VERSION={version}\n" in (TOP / "Dockerfile").read_text(), f"the image's label is not of {version}")


# Nonsense, and what is said about it.

ROUTE = {
    "config": {
        "stores": {"a": {"endpoint": "http://a:1"}, "b": {"endpoint": "http://b:1"}},
        "routes": {"r": {"from": "a", "to": "b"}},
    }
}
NONSENSE = [
    ("no route", {"config": {"routes": None}}, ["config.routes: no route is configured", "trialStores.enabled=true"]),
    ("two replicas", {"replicas": 2}, ["replicas", "one writer", "raise workers"]),
    ("half a replica", {"replicas": 0.5}, ["replicas"]),
    ("words for replicas", {"replicas": "one"}, ["replicas"]),
    ("an unknown value", {"replicaCount": 1}, ["Additional property replicaCount is not allowed"]),
    ("an unknown value inside", {"persistence": {"sise": "1Gi"}}, ["persistence", "sise"]),
    ("an unknown setting", {"config": {"routes": {"r": {"worker": 3}}}}, ["config.routes.r", "worker"]),
    ("an unknown section", {"config": {"route": {}}}, ["config", "route"]),
    ("too many workers", {"config": {"routes": {"r": {"workers": 5000}}}}, ["config.routes.r.workers", "1024"]),
    ("an address of its own", {"config": {"server": {"listen": "x:1"}}}, ["config.server", "listen"]),
    ("a store that is not there", {"config": {"routes": {"r": {"to": "c"}}}}, ['no store "c"', "are: a, b"]),
    ("a bad name of a store", {"config": {"stores": {"Main": {"endpoint": "http://m:1"}}}}, ["stores.Main", "small letters"]),
    ("a bad name of a route", {"config": {"routes": {"a-b": {"from": "a", "to": "b"}}}}, ["routes.a-b", "small letters"]),
    ("no endpoint", {"config": {"stores": {"c": {}}}}, ["config.stores.c", "endpoint is required"]),
    ("an endpoint without a scheme", {"config": {"stores": {"a": {"endpoint": "a:1"}}}}, ["stores.a.endpoint", "http://HOST:PORT"]),
    ("a drain that cannot be read", {"config": {"server": {"drain_timeout": "soon"}}}, ["drain_timeout", "such as 25s"]),
    ("too little grace", {"terminationGracePeriodSeconds": 30}, ["terminationGracePeriodSeconds", "at least 35"]),
    (
        "too little grace for a longer drain",
        {"terminationGracePeriodSeconds": 60, "config": {"server": {"drain_timeout": "1min"}}},
        ["terminationGracePeriodSeconds", "at least 70"],
    ),
    ("one port for both", {"ports": {"grpc": 7071}}, ["ports.http: is 7071, as ports.grpc is"]),
    ("a privileged port", {"ports": {"grpc": 80}}, ["ports.grpc", "1024"]),
    ("a volume of no size", {"persistence": {"size": "large"}}, ["persistence.size"]),
    ("a claim, and no persistence", {"persistence": {"enabled": False, "existingClaim": "q"}}, ["persistence.existingClaim", "remove one"]),
    (
        "a reserve that the volume cannot hold",
        {"persistence": {"size": "1Gi"}, "config": {"queue": {"reserve_bytes": "2GB"}}},
        ["config.queue.reserve_bytes: is 2GB", "whole volume has 1Gi", "persistence.size"],
    ),
    ("the usual reserve on a volume of its size", {"persistence": {"size": "1024Mi"}}, ["config.queue.reserve_bytes"]),
    ("a name to listen at", {"listenHost": "localhost"}, ["listenHost"]),
    ("a digest that is none", {"image": {"digest": "latest"}}, ["image.digest"]),
    ("a store of the trial's name", {"trialStores": {"enabled": True}, "config": {"stores": {"backup": {"endpoint": "http://b:2"}}}}, ["config.stores.backup", "another name"]),
    ("the chart's own variable", {"extraEnv": [{"name": "BLOBFERRY__SERVER__LISTEN", "value": "x"}]}, ["extraEnv", "ports.grpc"]),
    ("the chart's own argument", {"extraArgs": ["--set", "server.http_listen=0.0.0.0:1"]}, ["extraArgs", "ports.http"]),
    ("an unknown level", {"config": {"log": {"level": "loud"}}}, ["config.log.level", "debug"]),
    ("a service of no kind", {"service": {"type": "Internal"}}, ["service.type", "ClusterIP"]),
]


def merged(base, over):
    base = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = merged(base[key], value) if both else value
    return base


def refused():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        for what, values, said in NONSENSE:
            file.seek(0)
            file.truncate()
            json.dump(merged(ROUTE, values), file)
            file.flush()
            done = helm("template", RELEASE, str(CHART), "--values", file.name)
            require(done.returncode != 0, f"{what} is not refused")
            for part in said:
                require(part in done.stderr, f"{what}: {part!r} is not in: {done.stderr}")
    done = helm("template", RELEASE, str(CHART))
    require(done.returncode != 0 and "no route is configured" in done.stderr, f"no values at all: {done.stderr}")


# The chart and the program know the same settings.


def settings(printed):
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    own = {"server.listen", "server.http_listen", "server.data_dir"}

    def is_known(parts, node):
        node = definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        if not parts:
            return True
        inner = node.get("properties", {}).get(parts[0]) or node.get("additionalProperties")
        return bool(inner) and is_known(parts[1:], inner)

    chapter = (TOP / "docs/configuration.md").read_text()
    listed = set(re.findall(r"^\| `([a-zA-Z_.]+)` \|", chapter, re.MULTILINE))
    require(len(listed) > 20, f"the tables of docs/configuration.md are not understood: {listed}")

    def keys(node, path):
        for key, value in node.items():
            here = [*path, key]
            if isinstance(value, dict):
                yield from keys(value, here)
            else:
                yield ".".join(here)

    with open(printed, "rb") as file:
        in_force = set(keys(tomllib.load(file), []))
    for key in sorted((listed | in_force) - own):
        require(
            is_known(key.split("."), schema),
            f"helm/values.schema.json does not know the setting {key}: add it to properties.config (and its section to "
            "helm/values.yaml, and to the list of sections in helm/templates/_helpers.tpl)",
        )
    values = yaml.safe_load((CHART / "values.yaml").read_text())["config"]
    for section in schema["properties"]:
        require(section in values, f"helm/values.yaml has no config.{section}")


def notes():
    with tempfile.TemporaryDirectory() as folder:
        chart = pathlib.Path(folder, "chart")
        shutil.copytree(CHART, chart)
        # `helm template` shows no notes: here they are an object's text.
        (chart / "notes.tpl").write_text((CHART / "templates/NOTES.txt").read_text())
        shown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: {{ tpl (.Files.Get \"notes.tpl\") . | toJson }}\n"
        (chart / "templates/notes.yaml").write_text(shown)
        for values in sorted(CHART.glob("ci/*-values.yaml")):
            documents = template("--values", str(values), "--show-only", "templates/notes.yaml", chart=chart)
            text = documents[0]["data"]["notes"]
            require("<no value>" not in text and "%!" not in text, f"{values.name}: {text}")
            for line in text.replace("\\\n", " ").splitlines():
                if command := re.search(r"-- blobferry (.*)", line):
                    print(command[1])


def main():
    what, *arguments = sys.argv[1:]
    {"render": render, "refused": refused, "settings": settings, "notes": notes}[what](*arguments)
    print("ok")


if __name__ == "__main__":
    main()

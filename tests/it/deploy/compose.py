"""Holds compose.yaml to the specification of Compose, and to the files beside it.

    compose.py commands    the services of ours as JSON: their commands and variables, to be started for real

Says what is wrong and fails.
"""

import json
import pathlib
import re
import subprocess
import sys

import yaml

TOP = pathlib.Path(__file__).resolve().parents[3]


def require(condition, message):
    if not condition:
        sys.exit(f"compose.py: {message}")


def main():
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(TOP / "compose.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    require(done.returncode == 0, done.stdout + done.stderr)
    compose = yaml.safe_load((TOP / "compose.yaml").read_text())
    version = re.search(r'^version = "(.*)"', (TOP / "Cargo.toml").read_text(), re.M)[1]
    ours = {}
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            require(port.startswith("127.0.0.1:"), f"{name} publishes {port} to the whole network")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (TOP / source).is_file() if source.startswith("./") else source in compose["volumes"]
            require(known, f"{name} mounts {source}, which is not there")
        if "build" not in service:
            require(re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name}: {service['image']} is not pinned")
            continue
        require(service["image"] == f"blobferry:{version}", f"{name}: {service['image']} is not of {version}")
        require(service["healthcheck"]["test"][:2] == ["CMD", "/usr/bin/blobferry"], f"{name} has another health check")
        ours[name] = {
            "command": service["command"],
            "environment": service["environment"],
            "healthcheck": service["healthcheck"]["test"][2:],
        }
    scraped = yaml.safe_load((TOP / "deploy/prometheus.yaml").read_text())["scrape_configs"]
    targets = [target for job in scraped for static in job["static_configs"] for target in static["targets"]]
    for target in targets:
        require(target.split(":")[0] in ours, f"Prometheus asks {target}, which is no service")
    print(json.dumps(ours))


if __name__ == "__main__":
    main()

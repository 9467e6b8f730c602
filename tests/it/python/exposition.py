"""Reads an exposition with the parsers of Prometheus' own Python library.

    exposition.py classic|openmetrics < TEXT

Prints one line for each sample, sorted; ends with an error where the text is not what it claims to be.
"""

import sys

from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

parsers = {
    "classic": parser.text_string_to_metric_families,
    "openmetrics": openmetrics_parser.text_string_to_metric_families,
}

families = list(parsers[sys.argv[1]](sys.stdin.read()))
if not families:
    sys.exit("there is no metric in it")
lines = []
for family in families:
    if not family.documentation:
        sys.exit(f"{family.name} does not say what it is")
    for sample in family.samples:
        labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
        lines.append(f"{sample.name}{{{labels}}}")
if len(lines) != len(set(lines)):
    sys.exit("a sample is there twice")
print("\n".join(sorted(lines)))

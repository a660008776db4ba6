"""Metrics, read from the page that Prometheus would read."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from ipsec_lab.netns import LabError


def samples(page: str, name: str, **labels: str) -> list[Sample]:
    """Those of a metric whose labels have these values, none while nothing was counted.

    Raises LabError where the page does not know the metric at all.
    """
    known = (name, name.removesuffix("_total"))
    families = [f for f in text_string_to_metric_families(page) if f.name in known]
    if not families:
        raise LabError(f"no metric {name}")
    return [
        each
        for family in families
        for each in family.samples
        if each.name == name and labels.items() <= each.labels.items()
    ]

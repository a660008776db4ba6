"""References from one resource to another object of the same namespace."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ipsec_api.rules import ListOf, SpecModel
from ipsec_api.scalars import DataKey, ObjectName


class LocalRef(SpecModel):
    """An object of the same namespace."""

    name: ObjectName
    """Name of the object."""


class SecretRef(SpecModel):
    """A key of a Secret of the same namespace."""

    name: ObjectName
    """Name of the Secret."""

    key: DataKey = "psk"
    """Key in the Secret. A value that begins with 0x is hexadecimal; one trailing newline is
    removed. The value of KEY-previous, where there is one, is accepted too while the secret is
    rotated."""


class TrustBundleRef(SpecModel):
    """Certificates of authorities, PEM."""

    kind: Literal["ConfigMap", "Secret"] = "ConfigMap"
    """Kind of the object."""

    name: ObjectName
    """Name of the object."""

    key: DataKey = "ca.crt"
    """Key in the object."""


LabelValue = Annotated[str, Field(max_length=63)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=64)]


class LabelExpression(SpecModel):
    """One requirement of a label selector."""

    key: Annotated[str, Field(min_length=1, max_length=317)]
    """Label key."""

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the key relates to the values."""

    values: Annotated[tuple[LabelValue, ...], Field(max_length=64), ListOf("atomic")] = ()
    """Values of In and NotIn."""


class LabelSelector(SpecModel):
    """Which objects are meant; all requirements must hold."""

    match_labels: Labels | None = None
    """Labels that must be equal."""

    match_expressions: Annotated[
        tuple[LabelExpression, ...], Field(max_length=32), ListOf("atomic")
    ] = ()
    """Further requirements."""

"""One rule, said twice: as CEL for the API server, as Python for everybody else.

A folder of manifests has no API server in front of it, so every CEL rule needs a twin that says the
same. Both stand side by side in one ``Rule``; ``structural`` writes the first into the CRD,
pydantic runs the second, and a test drives both kinds of input through each rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from ipsec_api.base import ApiModel

#: What the API server reports as the cause (``reason`` of x-kubernetes-validations).
FieldReason = Literal[
    "FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate"
]


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on one value or one object.

    As ``Annotated`` metadata it judges that value; in ``SpecModel.RULES`` it judges the object.
    ``check`` is None only for transition rules (``oldSelf``), which need the stored object.
    ``message`` ends with the fix. ``field`` is the path, relative to the object, that the fault
    belongs to.
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None
    field: str = ""
    reason: FieldReason = "FieldValueInvalid"

    def to_schema(self) -> dict[str, str]:
        """The entry of ``x-kubernetes-validations``."""
        entry = {"rule": self.cel, "message": self.message, "reason": self.reason}
        if self.field:
            entry["fieldPath"] = "." + self.field
        return entry

    def error(self) -> PydanticCustomError:
        # Braces would be taken for placeholders of a template.
        message = self.message.replace("{", "{{").replace("}", "}}")
        return PydanticCustomError(self.reason, message)

    def _judge(self, value: Any) -> Any:
        if self.check is not None and not self.check(value):
            raise self.error()
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._judge, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler(schema)
        result.setdefault("x-kubernetes-validations", []).append(self.to_schema())
        return result


@dataclass(frozen=True, slots=True)
class ListOf:
    """How the API server merges and compares a list: ``set``, ``atomic``, or ``map`` with a key.

    A set and the key of a map must be unique; the API server sees to that by itself. Objects cannot
    be in a set: its server-side apply refuses every document that has some, even one about status
    alone. ``unique`` is for them: atomic over there, and duplicates are found here.
    """

    type: Literal["set", "atomic", "unique", "map"]
    key: str = ""

    def _judge(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.type != "atomic":
            keys = [getattr(item, self.key) if self.key else item for item in value]
            if len(set(keys)) != len(keys):
                what = (
                    f"two entries have the same {self.key}" if self.key else "an entry occurs twice"
                )
                raise PydanticCustomError("FieldValueDuplicate", f"{what}: remove one of them")
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._judge, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler(schema)
        result["x-kubernetes-list-type"] = "atomic" if self.type == "unique" else self.type
        if self.key:
            result["x-kubernetes-list-map-keys"] = [self.key]
        return result


class SpecModel(ApiModel):
    """A part of a resource. The text under a field is what ``kubectl explain`` says."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    #: Rules between the fields of this object.
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules(self) -> Self:
        broken = [r for r in self.RULES if r.check is not None and not r.check(self)]
        if broken:
            # pydantic keeps the entries of a nested ValidationError and puts our path before them.
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(
                        type=r.error(),
                        loc=tuple(r.field.split(".")) if r.field else (),
                        input=None,
                    )
                    for r in broken
                ],
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        result = handler.resolve_ref_schema(handler(schema))
        if cls.RULES:
            result["x-kubernetes-validations"] = [r.to_schema() for r in cls.RULES]
        return result

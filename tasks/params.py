"""Parameters of methods: what they have in common, and which of them are of speed alone."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

SPEED: Any = Field(json_schema_extra={"speed": True})
"""Marks a parameter that changes how fast something is computed and nothing else: it is no part of any id."""


class Params(BaseModel):
    """Parameters of a method: published values are the defaults, and each description can be read alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NoParams(Params):
    """Of a method that has nothing to be set."""


def determining(params: BaseModel) -> dict[str, Any]:
    """The parameters that determine a result, as JSON has them: all but those of speed."""
    idle = {name for name, one in type(params).model_fields.items() if is_speed(one)}
    return params.model_dump(mode="json", exclude=idle)


def is_speed(one: Any) -> bool:
    """Whether a pydantic field is one of speed alone."""
    extra = one.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("speed"))

"""What every model of settings has in common: two spellings of each field, and all problems reported at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.alias_generators import to_camel


class ConfigError(ValueError):
    """Values that make no configuration. ``problems`` lists every one of them as ``(field, text)``."""

    def __init__(self, title: str, problems: list[tuple[str, str]]) -> None:
        self.title = title
        self.problems = problems
        super().__init__("\n".join([title, *(f"  {field}: {text}" for field, text in problems)]))


class SeveralProblems(ValueError):
    """More than one thing wrong inside one field."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems))


class ConfigModel(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        loc_by_alias=False,
        validate_default=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _no_field_twice(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            twice = [
                name for name in cls.model_fields if to_camel(name) != name and {name, to_camel(name)} <= set(values)
            ]
            if twice:
                raise ValueError(f"given twice, in snake_case and in camelCase: {', '.join(twice)}; keep one spelling")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate ``values`` (snake_case or camelCase). Raises :class:`ConfigError` naming every problem at once."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError(f"invalid {cls.__name__}", describe_problems(cls, error)) from None

    @classmethod
    def in_snake_case(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """``values`` with the names of fields in snake_case; a field given in both spellings stays, to be refused."""
        names = {to_camel(name): name for name in cls.model_fields}
        snake = {names.get(key, key): value for key, value in values.items()}
        return snake if len(snake) == len(values) else dict(values)


def _all_names(model: type[BaseModel]) -> Iterator[str]:
    """Fields of ``model`` and of the models inside it."""
    for name, info in model.model_fields.items():
        yield name
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, ConfigModel):
                yield from _all_names(kind)


def describe_problems(model: type[BaseModel], error: ValidationError) -> list[tuple[str, str]]:
    """``(field, text)`` for every problem in ``error``: what was given, what is allowed, or which name was meant."""
    problems = []
    snake = list(_all_names(model))
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "configuration"
        if item["type"] == "extra_forbidden":
            name = str(item["loc"][-1])
            # The spelling that was used is the one to suggest.
            close = difflib.get_close_matches(name, snake if name.islower() else map(to_camel, snake), n=1)
            problems.append((field, "unknown field" + (f"; did you mean {close[0]!r}?" if close else "")))
            continue
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, SeveralProblems):
            problems += [(f"{field}.{name}", text) for name, text in inner.problems]
            continue
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_pattern_mismatch":
            text = "not of the form that is allowed"  # the description says it better than a regular expression
        root = item["loc"][0] if item["loc"] else None
        info = model.model_fields.get(str(root))
        given = repr(item["input"])
        given = given if len(given) <= 80 else given[:77] + "..."
        meaning = f" ({info.description})" if info is not None and info.description else ""
        # A password must not travel into a log by way of its own error message.
        shown = "" if root == "room_password" else f", got {given}"
        problems.append((field, f"{text[:1].lower()}{text[1:]}{shown}{meaning}"))
    return problems

"""Groups of options as one parameter: a dataclass a group, a field an option.

    @spread
    def score(dataset: ..., source: SourceOptions, evidence: EvidenceOptions, json: ...) -> None:

`spread` puts a group's fields in the group's place in the signature that typer reads, and hands
the command the group as one value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with each dataclass parameter replaced by one parameter a field."""
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(_keyword(name, kind, parameter.default))
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        inner = get_type_hints(kind, include_extras=True)
        parameters += [_keyword(f.name, inner[f.name], f.default) for f in fields(kind)]

    def run(**values: Any) -> None:
        whole = {
            name: kind(**{f.name: values.pop(f.name) for f in fields(kind) if f.name in values})
            for name, kind in groups.items()
        }
        command(**whole, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    return run


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )

"""One public function and the arguments of a right call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """A right call, and what is done with what it gives.

    Attributes:
        function: under test.
        given: arguments; those with a default are added.
        then: a use of the result, so that what is accepted is also tried out.
        fixed: names of arguments that are left as they are: they compile or take minutes.
    """

    function: Callable[..., Any]
    given: Mapping[str, Any] = field(default_factory=dict)
    then: Callable[[Any], Any] | None = None
    fixed: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """All of them, made anew where ``given`` holds a function called ``fresh``."""
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind not in VARIABLE
            and parameter.default is not inspect.Parameter.empty
            and repr(parameter.default) != "<factory>"
            and not name.startswith("_")
        }
        made = {
            name: value() if getattr(value, "__name__", "") == "fresh" else value
            for name, value in self.given.items()
        }
        return defaults | made

    def free(self) -> list[str]:
        """Names of arguments that are replaced."""
        return [name for name in self.arguments() if name not in self.fixed]

    def __call__(self, **replaced: Any) -> Any:
        """Call it with some arguments replaced, and use what it gives."""
        found = self.function(**self.arguments() | replaced)
        return found if self.then is None else self.then(found)

"""What can be named: nce-fx's own, and what installed packages bring by entry points; importing registers nothing.

[project.entry-points."nce_fx.weight_quantizers"]
ternary = "my_package.ternary:Ternary"

QuantSpec(weight="ternary")     nce-fx rewrite resnet8 --weight-quantizer ternary     nce-fx list weight_quantizers
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to values; what packages bring is looked for when it is first asked."""

    def __init__(
        self, kind: str, own: Mapping[str, T], check: Callable[[Any], bool], says: Callable[[T], str] | None = None
    ) -> None:
        """Name nce-fx's own.

        Args:
            kind: in the plural, such as ``weight_quantizers``; the group of entry points is ``nce_fx.<kind>``.
            own: nce-fx's own, in the order that help lists them.
            check: whether what a package brings is one.
            says: what help says of one; the first line of its docstring by default.
        """
        self.kind, self.group, self._own, self._check = kind, f"nce_fx.{kind}", dict(own), check
        self._says = says or _first_line

    def __getitem__(self, name: str) -> T:
        return self._own[name] if name in self._own else self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._all

    def names(self) -> tuple[str, ...]:
        """Return the names, without importing what packages bring."""
        return tuple(dict.fromkeys((*self._own, *(point.name for point in entry_points(group=self.group)))))

    def help(self) -> dict[str, str]:
        """Return what there is, by name, in a line each."""
        return {name: self._says(value) for name, value in self.items()}

    @cached_property
    def _all(self) -> Mapping[str, T]:
        found = dict(self._own)
        for point in entry_points(group=self.group):
            if point.name in found:
                raise input_error(
                    f"two {self.kind} are called {point.name}: one is {point.value} of an installed package"
                )
            try:
                value = point.load()
            except Exception as error:
                problem = " ".join(str(error).split())
                raise input_error(
                    f"{point.name} of {self.kind}, by the entry point {point.value}: {problem}"
                ) from error
            if not self._check(value):
                raise input_error(f"{point.value}, by an entry point of the group {self.group}, is none of {self.kind}")
            found[point.name] = value
        return found


def _first_line(value: object) -> str:
    lines = (getattr(value, "__doc__", None) or "").strip().splitlines()
    return lines[0] if lines else ""


def input_error(text: str) -> Exception:
    """Return an `nce_fx.errors.InputError`."""
    # Not imported above: errors.py knows torch.fx nodes, and help must not wait for torch.
    from nce_fx.errors import InputError

    return InputError(text)

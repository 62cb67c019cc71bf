"""A sequence whose values are made when they are asked for: a pool may hold millions."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar, overload

_Value = TypeVar("_Value", covariant=True)


class LazySequence(Sequence[_Value]):
    """A sequence of which a subclass gives the length and `make`."""

    @abstractmethod
    def make(self, index: int) -> _Value:
        """The value at a place from 0 to below the length."""

    @overload
    def __getitem__(self, index: int) -> _Value: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_Value]: ...
    def __getitem__(self, index: int | slice) -> _Value | Sequence[_Value]:
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"place {index} of {len(self)}")
        return self.make(place)

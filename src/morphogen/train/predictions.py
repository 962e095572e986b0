"""What a trained network says of an image, ready to be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, the best first, with their probabilities."""

    columns: ClassVar[tuple[str, ...]] = ("image", "rank", "class", "probability")
    image: str
    classes: list[tuple[str, float]]

    def words(self) -> list[str]:
        """Of each class."""
        return [f"{name} {100 * share:.1f} %" for name, share in self.classes]

    def rows(self) -> list[list[str]]:
        """By `columns`."""
        return [
            [self.image, str(place), name, f"{share:.6f}"] for place, (name, share) in enumerate(self.classes, start=1)
        ]


@dataclass(frozen=True)
class Object:
    """Something found: its class, its score from 0 to 1, and left, top, right and bottom in pixels of the file."""

    name: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Detected:
    """The objects of one image, the surest first."""

    columns: ClassVar[tuple[str, ...]] = ("image", "rank", "class", "score", "left", "top", "right", "bottom")
    image: str
    objects: list[Object]

    def words(self) -> list[str]:
        """Of each object."""
        return [
            f"{each.name} {100 * each.score:.1f} % [{', '.join(f'{side:.0f}' for side in each.box)}]"
            for each in self.objects
        ]

    def rows(self) -> list[list[str]]:
        """By `columns`."""
        return [
            [self.image, str(place), each.name, f"{each.score:.6f}", *(f"{side:.1f}" for side in each.box)]
            for place, each in enumerate(self.objects, start=1)
        ]

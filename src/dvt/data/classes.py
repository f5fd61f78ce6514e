"""Which class of a model a folder shows, and what ImageNet's classes are called: released files know no names."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from dvt.errors import ConfigError, DataError, listing, reason_of

CLASS_MAP = "class_map FILE (JSON or YAML: folder -> class index or name)"
GIVE_MAP = f"give --data.{CLASS_MAP}"


@cache
def imagenet_classes() -> dict[str, str]:
    """WordNet identifier -> words of ImageNet's 1,000 classes, in the order of the outputs, which is sorted."""
    rows = resources.files("dvt.data").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return dict(row.split(" ", 1) for row in rows)


@dataclass(frozen=True)
class ModelClasses:
    """The classes of a model, with which class folders are matched."""

    count: int
    names: Sequence[str] | None = None  # in the order of the outputs, where the model knows them
    class_map: str | None = None  # JSON or YAML file: folder -> class index or name

    @property
    def imagenet(self) -> bool:
        """Whether these are ImageNet's: by their names, or by their number where there are none."""
        return set(self.names) == set(imagenet_classes()) if self.names else self.count == len(imagenet_classes())

    @property
    def words(self) -> list[str]:
        """What the classes are called for people; those without a name by their number."""
        if self.imagenet:
            return [imagenet_classes()[wnid] for wnid in self.names or imagenet_classes()]
        return list(self.names or (f"class {i}" for i in range(self.count)))

    @property
    def known_words(self) -> list[str] | None:
        """The same; None where the classes have no names."""
        return self.words if self.names or self.imagenet else None

    def matched(
        self, folders: Sequence[str], where: Path, remedy: str = f"give --data.{CLASS_MAP}"
    ) -> tuple[list[int], list[str]]:
        """The class of each of the sorted `folders` in `where`, and the names of all classes.

        Raises DataError if one is no class of the model, ConfigError for a class map that cannot be used.
        """
        names = list(self.names or (imagenet_classes() if self.imagenet else ()))
        if not names and self.class_map is None and len(folders) == self.count:
            return list(range(self.count)), list(folders)  # nothing but their order is known
        places = {name: i for called in (self.words, names) for i, name in enumerate(called)}
        places |= self._mapped(places)
        if unknown := [folder for folder in folders if folder not in places]:
            pairs = zip(names, self.words, strict=False)  # they differ for ImageNet alone
            called = [name if name == said else f"{name} ({said})" for name, said in pairs]
            known = f"such as {listing(called)}" if names else "without names"
            raise DataError(
                f"{len(unknown):,} of the {len(folders):,} folders of {where} are no classes of the model:"
                f" {listing(unknown)}. It has {self.count:,} classes, {known}; rename the folders, or {remedy}"
            )
        return [places[folder] for folder in folders], names or self.words

    def _mapped(self, places: dict[str, int]) -> dict[str, int]:
        """The class of each folder of the class map, whose values are indices or names among `places`."""
        if self.class_map is None:
            return {}
        try:
            given = yaml.safe_load(Path(self.class_map).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"class_map {self.class_map} cannot be read: {reason_of(error)}") from error
        if not isinstance(given, dict) or not all(isinstance(folder, str) for folder in given):
            raise ConfigError(f"class_map {self.class_map} must map folders, in quotes, to class indices or names")
        known = places | {i: i for i in range(self.count)}
        for folder, wanted in given.items():
            if isinstance(wanted, bool) or not isinstance(wanted, str | int) or wanted not in known:
                raise ConfigError(
                    f"class_map {self.class_map} maps {folder} to {wanted!r}; give a class index from 0 to"
                    f" {self.count - 1} or a class name, such as {listing(self.words)}"
                )
        return {folder: known[wanted] for folder, wanted in given.items()}

"""Images and label files found in folders, and which belong together."""

from collections.abc import Iterable
from pathlib import Path

from backbones.errors import UserError
from engine.files import IMAGE_SUFFIXES


def files_below(folder: Path, suffixes: Iterable[str], *, what: str) -> list[Path]:
    """The files with these endings in a folder and below it, sorted; hidden ones are none.

    Raises:
        UserError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of {what}.")
    wanted = set(suffixes)
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in wanted and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise UserError(f"The folder {folder} has no {what} ({', '.join(sorted(wanted))}).")
    return found


class ImageFinder:
    """The images of a folder, by their names without ending: those of labels.

    Raises:
        UserError: there is no such folder, or no image in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = files_below(folder, IMAGE_SUFFIXES, what="images")
        self._by_place: dict[str, list[Path]] = {}  # by the path below the folder, without ending
        self._by_stem: dict[str, list[Path]] = {}
        self._by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            self._by_place.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
            self._by_stem.setdefault(path.stem, []).append(path)
            self._by_name.setdefault(path.name, []).append(path)

    def of(self, label: Path, labels_folder: Path, *, stated: str | None = None) -> Path:
        """A label file's image: the one at the same place below its folder, or of the same name; else the one `stated`.

        A labelling tool names the label file after the image; the name it states inside goes stale when files are renamed.

        Raises:
            UserError: there is none, or there are several.
        """
        place = label.relative_to(labels_folder).with_suffix("").as_posix()
        stated_name = (stated or "").replace("\\", "/").rpartition("/")[2]
        by_stated = self._by_name.get(stated_name) or self._by_stem.get(stated_name, [])
        for found in (self._by_place.get(place), self._by_stem.get(label.stem), by_stated):
            if not found:
                continue
            if len(found) > 1:
                found = [path for path in found if path.name == stated_name] or found
            if len(found) > 1:
                raise UserError(f"{label} may be of {found[0]} or of {found[1]}. Give them different names.")
            return found[0]
        also = f", nor {stated_name}, which it states" if stated_name and Path(stated_name).stem != label.stem else ""
        raise UserError(
            f"{label}: there is no image {label.stem}.* in {self.folder}{also}. Add it, or take the label file out."
        )


def check_size(stated: tuple[int, int], actual: tuple[int, int], *, where: str, image: Path) -> None:
    """Check that the (width, height) a label file states is its image's.

    Raises:
        UserError: it is not, and what is labelled would be misplaced.
    """
    if stated != actual:
        turned = " The sides are swapped: a viewer may have turned the picture (EXIF)." if stated == actual[::-1] else ""
        raise UserError(
            f"{where} is for {stated[0]} x {stated[1]} pixels, but {image} has {actual[0]} x {actual[1]}. The labels would be "
            f"misplaced: find the image that was labelled, or put the size right.{turned}"
        )

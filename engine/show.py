"""What the network sees: a picture of training samples."""

from pathlib import Path

from engine.build import build_training_set
from engine.config import Config
from engine.draw import save_picture
from engine.files import make_folder
from engine.pictures import draw_samples


def show_samples(config: Config, output: str, *, count: int, epoch: int = 0) -> None:
    """Draw a contact sheet of `count` augmented training samples, as in `epoch` (from 0), into the file `output`.

    Raises:
        UserError: the data cannot be read.
    """
    make_folder(Path(output).parent)
    dataset = build_training_set(config)
    save_picture(draw_samples(dataset, count=count, epoch=epoch), Path(output))
    table = dataset.annotations
    print(f"{min(count, len(dataset))} of {len(dataset)} training samples, as in epoch {epoch}: {output}")
    print(f"{len(table.boxes)} objects, {int(table.iscrowd.sum())} of them crowd regions, in {len(table.categories)} classes:")
    for label, category in enumerate(table.categories, start=1):
        print(f"  {category.name:<20} {int((table.labels == label).sum()):>8}")

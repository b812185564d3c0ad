"""Contact sheet of augmented views."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from simclr.data import open_source
from simclr.data.survey import spread_images
from simclr.errors import SettingError
from simclr.runs.files import printable, require_picture_path, save_picture
from simclr.settings import check_settings, setting
from simclr.views import Views, view_policies
from simclr.views.operations import OPERATIONS
from simclr.views.sheet import contact_sheet, operation_sheet


@dataclass(frozen=True, kw_only=True)
class ShowViews:
    """Draw a contact sheet of the augmentation.

    Each row has an image and pairs of its views, or sets if there are more, the same as in training with this seed;
    with `--each` the image and every operation alone.
    """

    command: ClassVar[str] = "views"

    data: str
    """images, with or without labels"""
    out: Path = Path("views.png")
    """picture file to write"""
    views: Views = Views(size=224)
    """augmentation policy"""
    policies: tuple[dict[str, Any], ...] = ()
    """policies of the views if they are not two equal ones: a list of what differs from `views`, each entry for one
    view or `count` views, the largest first, such as '{count: 2}, {count: 4, size: 96, crop_area: [0.1, 0.3]}'"""
    count: int = setting(8, at_least=1)
    """number of images, evenly spaced over the data"""
    pairs: int = setting(4, at_least=1)
    """number of pairs (or sets) of views per image, those of the first epochs"""
    each: bool = False
    """every operation alone, also those that are off, with the ranges of `views`, in place of whole views"""
    seed: int = 0
    """seed of the views"""
    overwrite: bool = False
    """replacement of existing files"""

    def __post_init__(self) -> None:
        check_settings(self)
        view_policies(self.views, self.policies)
        if self.each and self.policies:
            raise SettingError("each", "false with policies; set the ranges in `views`", self.each)

    def __call__(self) -> dict[str, Any]:
        """Write the picture; return its path and the numbers of images and pairs."""
        require_picture_path(self.out, self.overwrite)
        source = open_source(self.data, "pretrain")
        rows, images, errors = spread_images(source, self.count)
        for error in errors:
            print(f"unreadable, replaced by the next image: {printable(str(error))}")
        if self.each:
            sheet = operation_sheet(images, self.views, self.seed, indices=rows)
            content = f"{len(OPERATIONS)} operations"
        else:
            policies = view_policies(self.views, self.policies)
            sheet = contact_sheet(images, policies, self.seed, indices=rows, pairs=self.pairs)
            content = f"{self.pairs} sets of {len(policies)} views"
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_picture(sheet, self.out)
        print(f"{len(images)} images of {printable(source.name)}, {content} each")
        print(f"wrote {self.out}")
        return {"out": str(self.out), "images": len(images), "pairs": self.pairs}

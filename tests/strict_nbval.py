"""Make nbval compare pictures too, as a reader sees them: a plugin, ``-p tests.strict_nbval``."""

from typing import Any

from nbval.plugin import IPyNbCell, IPyNbFile

from smol_scratch.course.pictures import same_picture

compare_exactly = IPyNbCell.compare_outputs


def compare_outputs(self: Any, test: list[Any], ref: list[Any], skip_compare: Any = None) -> bool:
    """Compare outputs; a picture that no eye can tell from the stored one counts as that one."""
    for output, stored in zip(test, ref, strict=False):
        ours, theirs = output.get("data", {}), stored.get("data", {})
        if "image/png" in ours and "image/png" in theirs:
            if same_picture(ours["image/png"], theirs["image/png"]):
                ours["image/png"] = theirs["image/png"]
    return bool(compare_exactly(self, test, ref, skip_compare))


IPyNbCell.compare_outputs = compare_outputs


def pytest_collectstart(collector: Any) -> None:
    if isinstance(collector, IPyNbFile):
        # The alternative text is beside the picture, in its metadata.
        collector.skip_compare = tuple(
            kind for kind in collector.skip_compare if kind not in ("image/png", "image/jpeg")
        )

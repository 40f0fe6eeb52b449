"""Inserts the output of commands into Markdown documents, so that no numbers are copied by hand."""

import os
import re
from pathlib import Path

from llm_jax.core.checks import check
from llm_jax.core.files import write_atomically

_PICTURE = re.compile(r"(!\[[^\]]*\]\()([^)/:]+)(\))")


def publish(document: Path, name: str, text: str) -> None:
    """Writes `text` between the markers <!-- name --> and <!-- /name --> of a Markdown document.

    Raises:
      ValueError: as `check_markers`.
    """
    check_markers(document, name)
    old = document.read_text(encoding="utf-8")
    write_atomically(document, _between(name).sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old))


def check_markers(document: Path, name: str) -> None:
    """Checks that a document has the markers. Call it before a long computation whose result is published.

    Raises:
      ValueError: if the document does not exist, or has no such markers.
    """
    check(
        document.is_file() and _between(name).search(document.read_text(encoding="utf-8")) is not None,
        f"{document} has no markers <!-- {name} --> ... <!-- /{name} -->: add them where the text goes",
    )


def _between(name: str) -> re.Pattern:
    return re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL)


def with_pictures(text: str, folder: Path, beside: Path, document: Path) -> str:
    """`text`, whose pictures are in `folder`, with links for `document`. The pictures are copied into the folder of
    `beside`, as `<stem of beside>_<picture>`."""

    def copied(found: re.Match) -> str:
        picture = beside.with_name(f"{beside.stem}_{found[2]}")
        picture.write_bytes((folder / found[2]).read_bytes())
        return found[1] + Path(os.path.relpath(picture, document.parent)).as_posix() + found[3]

    return _PICTURE.sub(copied, text)

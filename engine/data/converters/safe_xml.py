"""XML as a tree whose elements know their lines. Documents that define entities are refused: a few lines fill any memory."""

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from backbones.errors import UserError


@dataclass
class Element:
    """An element, its own text, and what is in it."""

    tag: str
    line: int
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def all(self, tag: str) -> list["Element"]:
        """The elements of this name directly in this one."""
        return [child for child in self.children if child.tag == tag]

    def first(self, tag: str) -> "Element | None":
        """The first element of this name directly in this one."""
        return next(iter(self.all(tag)), None)


class _Refused(Exception):
    pass


def read_xml(path: Path) -> Element:
    """Read an XML file.

    Raises:
        UserError: it is malformed, or has a document type, with which entities could be defined.
    """
    root = Element("", 0)
    open_elements = [root]
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(tag: str) -> None:
        element = open_elements.pop()
        element.text = element.text.strip()

    def text(characters: str) -> None:
        open_elements[-1].text += characters

    def doctype(*_: object) -> None:
        raise _Refused

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    try:
        parser.Parse(path.read_bytes(), True)
    except _Refused:
        raise UserError(
            f"{path}, line {parser.CurrentLineNumber}: a document type (DOCTYPE) is refused, for it can define entities "
            "without end. Labels need none: take it out."
        ) from None
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise UserError(f"{path}, line {error.lineno}, column {error.offset + 1}: this is no XML ({reason}).") from None
    # An encoding that there is not, a file that cannot be read.
    except (OSError, LookupError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None
    return root.children[0]

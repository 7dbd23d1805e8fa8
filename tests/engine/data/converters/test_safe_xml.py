"""engine/data/converters/safe_xml.py against the standard library's reader, and what it refuses."""

from xml.etree import ElementTree

import pytest

from backbones.errors import UserError
from engine.data.converters.safe_xml import read_xml

BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [
 <!ENTITY lol "lol">
 <!ENTITY lol2 "&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;">
 <!ENTITY lol3 "&lol2;&lol2;&lol2;&lol2;&lol2;&lol2;&lol2;&lol2;&lol2;&lol2;">
]>
<annotation><filename>&lol3;</filename></annotation>"""
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'
ANNOTATION = """<annotation a="1">
  <filename> caf\u00e9 &amp; cat.jpg </filename>
  <!-- a comment -->
  <object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>
  <object>
    <name><![CDATA[<dog>]]></name><part><name>head</name></part>
  </object>
</annotation>"""


def as_pairs(element, text):
    return element.tag, text(element), [as_pairs(child, text) for child in getattr(element, "children", element)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_the_tree_is_the_standard_librarys(tmp_path, encoding):
    path = tmp_path / "a.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{ANNOTATION}'.encode(encoding))
    ours = read_xml(path)
    expected = as_pairs(
        ElementTree.parse(path).getroot(), lambda e: ((e.text or "") + "".join(c.tail or "" for c in e)).strip()
    )
    assert as_pairs(ours, lambda e: e.text) == expected
    assert ours.first("filename").text == "caf\u00e9 & cat.jpg"
    assert [element.line for element in ours.all("object")] == [5, 6]
    assert [element.first("name").text for element in ours.all("object")] == ["cat", "<dog>"]
    assert ours.first("nothing") is None


@pytest.mark.parametrize("text", [BOMB, OUTSIDE, "<!DOCTYPE annotation><annotation/>"])
def test_document_types_are_refused(tmp_path, text):
    (tmp_path / "bomb.xml").write_text(text)
    with pytest.raises(UserError, match=r"bomb\.xml, line \d: a document type \(DOCTYPE\) is refused"):
        read_xml(tmp_path / "bomb.xml")


@pytest.mark.parametrize(
    ("text", "line"),
    [("<a>\n<b>\n</a>", 3), ("", 1), ("no xml", 1), ("<a>&undefined;</a>", 1), ("<a></a>\n<b></b>", 2), ("<a", 1)],
)
def test_what_is_malformed_is_named_with_its_line(tmp_path, text, line):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError, match=rf"a\.xml, line {line}, column \d+: this is no XML"):
        read_xml(tmp_path / "a.xml")


def test_an_unknown_encoding_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "a.xml").write_text('<?xml version="1.0" encoding="klingon"?><a/>')
    with pytest.raises(UserError, match=r"a\.xml"):
        read_xml(tmp_path / "a.xml")
    with pytest.raises(UserError, match="cannot be read"):
        read_xml(tmp_path / "none.xml")


def test_a_deep_tree_is_read(tmp_path):
    (tmp_path / "a.xml").write_text("<a>" * 5000 + "</a>" * 5000)
    assert read_xml(tmp_path / "a.xml").tag == "a"

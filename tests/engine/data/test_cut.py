"""engine/data/cut.py against Python's json, in any layout of the file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.cut import cut_coco

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
)
images = st.lists(st.fixed_dictionaries({"id": st.integers(0, 9), "name": st.text()}), max_size=6, unique_by=lambda i: i["id"])
annotations = st.lists(st.fixed_dictionaries({"image_id": st.integers(0, 9), "more": values}), max_size=9)


@given(st.data())
def test_the_cut_is_what_json_gives(tmp_path_factory, data):
    content = {
        "info": data.draw(values),
        "images": data.draw(images),
        "annotations": data.draw(annotations),
        "": data.draw(values),
    }
    content = {key: content[key] for key in data.draw(st.permutations(list(content)))}
    indent, escaped = data.draw(st.sampled_from([None, 0, 2, "\t"])), data.draw(st.booleans())
    separators = data.draw(st.sampled_from([None, (",", ":"), (" ,\r\n", " : ")]))
    path = tmp_path_factory.getbasetemp() / "cut.json"
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=escaped)
    path.write_text(f" \n{text}\n", encoding="utf-8", errors="surrogatepass")
    chosen = [image for image in content["images"] if image["id"] % 2]
    kept = {image["id"] for image in chosen}
    expected = content | {"images": chosen, "annotations": [a for a in content["annotations"] if a["image_id"] in kept]}
    assert cut_coco(path, lambda found: [image for image in found if image["id"] % 2]) == expected


def test_images_may_come_last(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"annotations": [{"image_id": 1}, {"image_id": 2}], "images": [{"id": 1}, {"id": 2}], "categories": []}')
    assert cut_coco(path, lambda found: found[1:]) == {
        "annotations": [{"image_id": 2}],
        "images": [{"id": 2}],
        "categories": [],
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"images": {}}',
        '{"images": [{"id": 1}], "annotations": [{"image_id": 1}',
        '{"images": [{"id": 1}], "annotations": [{"id": 1}]}',
        '{"images": [{"id": 1}] "annotations": []}',
        '{"images": [{}], "annotations": []}',
        '{"images": [1], "annotations": []}',
        '{"images": [{"id": 1}]}',
        '{"annotations": []}',
        "<html>",
    ],
)
def test_what_is_no_coco_file_is_said(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is no COCO file .* Delete it"):
        cut_coco(tmp_path / "a.json", lambda found: found)


def test_a_choice_that_cannot_be_made_is_told_as_it_is(tmp_path):
    def refuse(found):
        raise UserError(f"only {len(found)}")

    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(UserError, match=r"^only 0$"):
        cut_coco(tmp_path / "a.json", refuse)

"""heads/crowd.py: a crowd region is neither object nor background."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heads import crowd
from heads.crowd import in_crowd, set_crowd_apart

IMAGE = (64, 96)
EVERYWHERE = [[-500.0, -500.0, 1000.0, 1000.0]]
LEFT_HALF = [[0.0, 0.0, 48.0, 64.0]]


def boxes_strategy(most):
    side = st.integers(1, 20)
    box = st.tuples(st.integers(0, 20), st.integers(0, 20), side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
    return st.lists(box, min_size=1, max_size=most)


def painted(box):
    canvas = np.zeros((40, 40), dtype=bool)
    canvas[box[1] : box[3], box[0] : box[2]] = True
    return canvas


@given(boxes=boxes_strategy(4), crowd=boxes_strategy(3))
def test_a_box_is_in_a_crowd_where_one_region_has_half_its_pixels(boxes, crowd):
    covers = [[2 * (painted(box) & painted(region)).sum() >= painted(box).sum() for region in crowd] for box in boxes]
    target = {"crowd_boxes": torch.tensor(crowd, dtype=torch.float32)}
    assert in_crowd(torch.tensor(boxes, dtype=torch.float32), target).tolist() == [any(row) for row in covers]


@pytest.mark.parametrize("target", [{}, {"crowd_boxes": torch.zeros(0, 4)}])
def test_nothing_is_in_a_crowd_where_there_is_none(target):
    assert in_crowd(torch.tensor([[0.0, 0, 5, 5], [1, 1, 2, 2]]), target).tolist() == [False, False]


def test_boxes_without_an_area_are_in_no_crowd_and_no_boxes_give_no_answers():
    target = {"crowd_boxes": torch.tensor([[0.0, 0, 50, 50]])}
    assert in_crowd(torch.tensor([[5.0, 5, 5, 5]]), target).tolist() == [False]
    assert in_crowd(torch.zeros(0, 4), target).shape == (0,)


@given(crowd=st.lists(st.booleans(), max_size=6))
def test_crowd_rows_are_set_apart_with_everything_that_belongs_to_them(crowd):
    count = len(crowd)
    rows = torch.arange(count)
    target = {
        "boxes": rows[:, None] * torch.ones(4),
        "labels": rows,
        "masks": rows[:, None, None] * torch.ones(2, 3),
        "area": rows * 10.0,
        "iscrowd": torch.tensor(crowd, dtype=torch.int64),
        "image_id": 7,
    }
    apart = set_crowd_apart(target)
    kept = [i for i in range(count) if not crowd[i]]
    assert apart["labels"].tolist() == kept
    assert apart["boxes"][:, 0].tolist() == kept
    assert apart["masks"][:, 0, 0].tolist() == kept
    assert apart["area"].tolist() == [10 * i for i in kept]
    assert apart["iscrowd"].tolist() == [0] * len(kept)
    assert apart["crowd_boxes"][:, 0].tolist() == [i for i in range(count) if crowd[i]]
    assert apart["image_id"] == 7
    assert len(target["boxes"]) == count, "the caller's target was changed"


@pytest.fixture(scope="module")
def detector_that_takes_all(small_detector):
    """One whose box head is trained on every proposal."""
    return small_detector(box_batch_size_per_image=1000, box_positive_fraction=0.5)


def assigned(model, anchors, target):
    (labels,), (matched,) = model.rpn.assign_targets_to_anchors([anchors], [set_crowd_apart(target)])
    return labels, matched


def grid(side, step, size=IMAGE):
    """Square boxes of `side` pixels, in rows, within the image."""
    height, width = size
    corners = [(x, y) for y in range(0, height - side + 1, step) for x in range(0, width - side + 1, step)]
    return torch.tensor([[x, y, x + side, y + side] for x, y in corners], dtype=torch.float32)


def test_anchors_in_a_crowd_are_ignored_and_objects_before_it_are_not(small_detector, make_target):
    anchors = grid(16, 8)
    thing = [8.0, 8.0, 24.0, 24.0]  # one of the anchors
    plain, _ = assigned(small_detector(), anchors, make_target([thing]))
    labels, matched = assigned(small_detector(), anchors, make_target([thing], crowd=LEFT_HALF))

    inside = anchors[:, 0] <= 40  # half of the 16 pixels or more are left of 48
    assert (plain == 0).logical_and(inside).sum() > 20
    assert plain[~inside].eq(0).all()
    expected = torch.where((plain == 0) & inside, -torch.ones(()), plain)
    assert labels.tolist() == expected.tolist()
    assert labels[(anchors == torch.tensor(thing)).all(1)].tolist() == [1.0]
    assert {tuple(box) for box in matched[labels == 1].tolist()} == {tuple(thing)}


def test_a_crowd_that_fits_an_anchor_is_no_object(small_detector, make_target):
    anchors = grid(16, 8)
    as_object, _ = assigned(small_detector(), anchors, make_target(anchors[:1].tolist()))
    as_crowd, matched = assigned(small_detector(), anchors, make_target([], crowd=anchors[:1].tolist()))
    assert as_object[0] == 1
    assert as_crowd[0] == -1
    assert (as_crowd <= 0).all()
    assert (matched == 0).all()


def sampled(model, proposals, target):
    """The proposals that are trained on, and their labels."""
    (boxes,), _, (labels,), _ = model.roi_heads.select_training_samples([proposals], [set_crowd_apart(target)])
    return boxes, labels


def test_proposals_in_a_crowd_are_dropped_and_objects_before_it_are_not(detector_that_takes_all, make_target):
    proposals = grid(16, 8)
    thing = torch.tensor([[8.0, 8.0, 24.0, 25.0]])
    target = make_target(thing.tolist(), crowd=LEFT_HALF, labels=torch.tensor([3, 2]))
    boxes, labels = sampled(detector_that_takes_all, proposals, target)

    on_thing = torch.tensor([[8.0, 8.0, 24.0, 24.0], [8.0, 8.0, 24.0, 25.0]])  # the proposal, and the object itself
    outside = proposals[proposals[:, 0] > 40]
    assert {tuple(box) for box in boxes[labels == 3].tolist()} == {tuple(box) for box in on_thing.tolist()}
    assert {tuple(box) for box in boxes[labels == 0].tolist()} == {tuple(box) for box in outside.tolist()}
    assert set(labels.tolist()) == {0, 3}, "the crowd's own label was trained"


def test_without_a_crowd_all_those_proposals_are_background(detector_that_takes_all, make_target):
    proposals = grid(16, 8)
    boxes, labels = sampled(detector_that_takes_all, proposals, make_target([[8.0, 8.0, 24.0, 25.0]]))
    expected = {tuple(box) for box in proposals.tolist()} - {(8.0, 8.0, 24.0, 24.0)}
    assert {tuple(box) for box in boxes[labels == 0].tolist()} == expected


def test_an_image_of_nothing_but_crowd_keeps_one_proposal_for_a_loss_over_none_is_nan(detector_that_takes_all, make_target):
    boxes, labels = sampled(detector_that_takes_all, grid(16, 8), make_target([], crowd=EVERYWHERE))
    assert labels.tolist() == [0]
    assert boxes.shape == (1, 4)


@given(objects=boxes_strategy(3), crowd=boxes_strategy(2))
def test_no_background_example_ever_lies_in_a_crowd(detector_that_takes_all, make_target, objects, crowd):
    """Objects of any kind before crowds of any kind, and proposals everywhere."""
    proposals = grid(8, 4, size=(40, 40))
    target = make_target(objects, crowd=crowd)
    boxes, labels = sampled(detector_that_takes_all, proposals, target)
    apart = set_crowd_apart(target)
    assert not in_crowd(boxes[labels == 0], apart).any()
    assert (labels > 0).sum() >= len(objects), "the objects themselves are examples"

    anchor_labels, _ = assigned(detector_that_takes_all, proposals, target)
    assert not in_crowd(proposals[anchor_labels == 0], apart).any()
    plain, _ = assigned(detector_that_takes_all, proposals, make_target(objects))
    assert (anchor_labels[plain != 0] == plain[plain != 0]).all(), "a crowd changes background only"


def images_for(targets):
    return [torch.rand(3, *IMAGE) for _ in targets]


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("crowd", [LEFT_HALF, [*LEFT_HALF, [50.0, 10.0, 60.0, 20.0]], [[0.0, 0.0, 96.0, 64.0]], EVERYWHERE])
def test_images_of_crowd_alone_train_every_parameter(head, crowd, small_detector, make_target, train_step):
    targets = [make_target([], crowd=crowd, size=IMAGE)]
    train_step(small_detector(head), images_for(targets), targets)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_an_image_of_crowd_alone_trains_beside_others(head, small_detector, make_target, train_step):
    targets = [make_target([], crowd=EVERYWHERE, size=IMAGE), make_target([[5, 5, 40, 50]], crowd=[], size=IMAGE)]
    losses = train_step(small_detector(head), images_for(targets), targets)
    assert all(loss > 0 for loss in losses.values())


def test_an_object_before_a_crowd_that_covers_everything_trains(small_detector, make_target, train_step):
    targets = [make_target([[5, 5, 40, 50]], crowd=EVERYWHERE, size=IMAGE)]
    losses = train_step(small_detector("mask_rcnn"), images_for(targets), targets)
    assert losses["loss_mask"] > 0


def test_where_all_is_crowd_the_rpn_learns_nothing(small_detector, make_target, train_step):
    targets = [make_target([], crowd=EVERYWHERE)]
    losses = train_step(small_detector(), images_for(targets), targets)
    assert losses["loss_objectness"] == 0
    assert losses["loss_rpn_box_reg"] == 0


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_flags_that_say_no_crowd_change_nothing(head, small_detector, make_target):
    model = small_detector(head).train()
    images = [torch.rand(3, *IMAGE)]

    def losses(**options):
        return model(images, [make_target([[5, 5, 40, 50], [60, 8, 90, 60]], size=IMAGE, seed=1, **options)])

    assert losses() == losses(crowd=[])


def test_targets_are_not_changed_by_training(small_detector, make_target, train_step):
    target = make_target([[5, 5, 40, 50]], crowd=LEFT_HALF, size=IMAGE)
    before = {key: value.clone() for key, value in target.items()}
    train_step(small_detector("mask_rcnn"), images_for([target]), [target])
    assert set(target) == set(before)
    assert all(torch.equal(target[key], value) for key, value in before.items())


def test_regions_are_compared_with_a_few_at_a_time(monkeypatch):
    corners = torch.rand(60, 2) * 50
    boxes = torch.cat([corners, corners + 1 + torch.rand(60, 2) * 50], dim=1)
    target = {"crowd_boxes": boxes[:7] + 5}
    whole = in_crowd(boxes, target)
    assert 0 < int(whole.sum()) < 60
    monkeypatch.setattr(crowd, "AT_ONCE", 2)
    assert torch.equal(in_crowd(boxes, target), whole)

"""python -m unittest discover scripts/train: what a mistake in would spoil a training without a word."""

import math
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import data
from loss import learnt_from, loss, match
from ssd300 import SSD300, corners, decode, default_boxes, encode


def picture(boxes, classes=None, ignored=None, size=(400, 200)):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    classes = np.ones(len(boxes), np.int64) if classes is None else np.array(classes)
    ignored = np.zeros(len(boxes), bool) if ignored is None else np.array(ignored)
    return data.Picture(1, Path("none"), *size, boxes, classes, ignored, np.ones(4, bool))


class Boxes(unittest.TestCase):
    def test_there_are_8732_and_offsets_go_both_ways(self):
        defaults = default_boxes()
        self.assertEqual(defaults.shape, (8732, 4))
        for at, box in [
            (0, (4 / 300, 4 / 300, 0.07, 0.07)),
            (1, (12 / 300, 4 / 300, 0.07, 0.07)),
            (2 * 1444, (4 / 300, 4 / 300, 0.07 * math.sqrt(2), 0.07 / math.sqrt(2))),
            (8731, (0.5, 0.5, 0.87 / math.sqrt(2), 1.0)),
        ]:
            self.assertTrue(torch.allclose(defaults[at], torch.tensor(box), atol=1e-6), at)
        boxes = corners(defaults + torch.rand(8732, 4) * 0.01)
        self.assertTrue(torch.allclose(decode(encode(boxes, defaults), defaults), boxes, atol=1e-4))

    def test_an_untrained_network_sees_background(self):
        model = SSD300(4).eval()
        with torch.no_grad():
            offsets, logits = model(torch.randn(1, 3, 300, 300))
        self.assertEqual((offsets.shape, logits.shape), ((1, 8732, 4), (1, 8732, 4)))
        self.assertGreater(logits.softmax(2)[..., 0].mean().item(), 0.8)


class Chosen(unittest.TestCase):
    def test_some_default_boxes_are_as_all_of_them_and_so_is_what_they_teach(self):
        torch.manual_seed(3)
        model = SSD300(4).eval()
        maps = [torch.randn(2, channels, side, side, requires_grad=True)
                for channels, side in zip((1024, 512, 512, 256, 256, 256), (38, 19, 10, 5, 3, 1))]
        chosen = torch.rand(2, 8732) < 0.01
        chosen[0, 8729] = True
        heads = [*model.loc.parameters(), *model.conf.parameters()]

        def taught(offsets, logits):
            return torch.autograd.grad((offsets * 2).square().sum() + logits.square().sum(), [*maps, *heads])

        offsets, logits, picture, box = model.at(maps, chosen)
        self.assertEqual(len(box), chosen.sum())
        all_offsets, all_logits = model.everywhere(model.loc, maps), model.everywhere(model.conf, maps)
        self.assertTrue(torch.allclose(offsets, all_offsets[picture, box], atol=1e-3))
        self.assertTrue(torch.allclose(logits, all_logits[picture, box], atol=1e-3))
        for one, other in zip(taught(offsets, logits), taught(all_offsets[chosen], all_logits[chosen])):
            self.assertTrue(torch.allclose(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item()))


class Loss(unittest.TestCase):
    def setUp(self):
        self.defaults = default_boxes()
        self.boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.55, 0.2, 0.6, 0.25], [0.6, 0.6, 1.0, 1.0]])
        self.classes = torch.tensor([1, 2, 3])
        self.ignored = torch.tensor([False, False, True])

    def loss(self, offsets, logits, labelled):
        target, wanted = (values[None] for values in match(self.boxes, self.classes, self.ignored, self.defaults))
        picture, box = learnt_from(logits, target, labelled).nonzero(as_tuple=True)
        chosen = (values[picture, box] for values in (offsets, logits, target, wanted))
        return loss(*chosen, labelled[picture], self.defaults[box])

    def test_objects_find_default_boxes_and_crowds_leave_them_out(self):
        target, matched = match(self.boxes, self.classes, self.ignored, self.defaults)
        self.assertGreater((target == 1).sum(), 3)
        self.assertGreaterEqual((target == 2).sum(), 1, "a small object has its best default box")
        self.assertGreater((target == -1).sum(), 3)
        self.assertEqual((target == 3).sum(), 0, "a crowd is no object")
        self.assertTrue((matched[target == 1] == self.boxes[0]).all())
        nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool)
        self.assertTrue((match(*nothing, self.defaults)[0] == 0).all())

    def test_what_is_not_labelled_gets_no_gradient(self):
        logits = torch.randn(1, 8732, 4, requires_grad=True)
        offsets = torch.zeros(1, 8732, 4, requires_grad=True)
        labelled = torch.tensor([[True, True, True, False]])
        place, kind = self.loss(offsets, logits, labelled)
        (place + kind).backward()
        self.assertEqual(logits.grad[..., 3].abs().max(), 0)
        self.assertGreater(logits.grad[..., 0].abs().max(), 0)
        target, _ = match(self.boxes, self.classes, self.ignored, self.defaults)
        self.assertEqual(logits.grad[0, target == -1].abs().max(), 0)
        # Three negatives for a positive.
        used = (logits.grad[0].abs().sum(1) > 0).sum()
        self.assertLessEqual(used, 4 * (target > 0).sum())
        self.assertEqual((offsets.grad[0].abs().sum(1) > 0).sum(), (target > 0).sum())

    def test_a_known_object_of_an_unlabelled_class_is_learnt(self):
        logits = torch.zeros(1, 8732, 4, requires_grad=True)
        labelled = torch.tensor([[True, True, False, False]])
        offsets = torch.zeros(1, 8732, 4)
        _, kind = self.loss(offsets, logits, labelled)
        self.assertLess(kind.item(), 20)
        kind.backward()
        target, _ = match(self.boxes, self.classes, self.ignored, self.defaults)
        self.assertTrue((logits.grad[0, target == 2, 2] < 0).all())
        self.assertEqual(logits.grad[0, target != 2, 2].abs().max(), 0)

    def test_a_perfect_answer_costs_nothing(self):
        target, matched = match(self.boxes, self.classes, self.ignored, self.defaults)
        logits = 50 * torch.nn.functional.one_hot(target.clamp(min=0), 4).float()[None]
        offsets = encode(matched, self.defaults)[None]
        labelled = torch.ones(1, 4, dtype=torch.bool)
        place, kind = self.loss(offsets, logits, labelled)
        self.assertLess((place + kind).item(), 1e-4)


class Augmentation(unittest.TestCase):
    def test_boxes_stay_on_their_objects(self):
        # A red object on green: whatever happens to the picture, the box is where the red is.
        pixels = np.zeros((200, 400, 3), np.uint8)
        pixels[..., 1] = 150
        pixels[60:140, 120:280] = (220, 20, 20)
        image, boxes = Image.fromarray(pixels), [[120, 60, 280, 140]]
        kept = 0
        for seed in range(200):
            out, found, left = data.augmented(image, picture(boxes), np.random.default_rng(seed))
            self.assertEqual(out.shape, (300, 300, 3))
            if not left[0]:
                continue
            kept += 1
            rows, columns = np.nonzero(out[..., 0].astype(int) - out[..., 1] > 40)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 300
            self.assertLess(abs(seen - found[0]).max(), 0.02, seed)
        self.assertGreater(kept, 150)

    def test_the_same_draw_gives_the_same_picture(self):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 400, 3), np.uint8).astype(np.uint8))
        one, other = (data.augmented(image, picture([[10, 10, 90, 90]]), np.random.default_rng([1, 2, 3])) for _ in "ab")
        self.assertTrue(all((a == b).all() for a, b in zip(one, other)))

    def test_pictures_without_objects_pass(self):
        image = Image.new("RGB", (400, 200), (9, 9, 9))
        for seed in range(20):
            _, boxes, left = data.augmented(image, picture([]), np.random.default_rng(seed))
            self.assertEqual((len(boxes), len(left)), (0, 0))


class Mosaics(unittest.TestCase):
    def test_boxes_stay_on_their_objects(self):
        # A red object on green; two more pictures are labelled for different classes.
        with tempfile.TemporaryDirectory() as folder:
            pictures = []
            for number, left in enumerate((40, 120, 200, 280)):
                pixels = np.zeros((200, 400, 3), np.uint8)
                pixels[..., 1] = 150
                pixels[60:140, left : left + 80] = (220, 20, 20)
                one = picture([[left, 60, left + 80, 140]], [1])
                one.path = Path(folder) / f"{number}.png"
                Image.fromarray(pixels).save(one.path)
                pictures.append(one)
            for known in (1, 2):
                pictures.append(picture([]))
                pictures[-1].path = pictures[0].path
                pictures[-1].labelled = np.array([True] + [kind == known for kind in (1, 2, 3)])
            several = data.Augmented(data.Data(pictures, ["a", "b", "c"], [10, 20, 30], {}), 1, 1.0, 1.0)
            for place in range(20):
                pixels, target, wanted, labelled = several[0, place, 0]
                self.assertTrue(labelled.all(), "those labelled in part stay among themselves")
                self.assertEqual(pixels.shape, (300, 300, 3))
                boxes = wanted[target == 1].unique(dim=0).numpy()
                self.assertEqual(len(boxes), 4)
                red = pixels[..., 0].astype(int) - pixels[..., 1] > 40
                for box in boxes:
                    left, top, right, bottom = (box * 300).round().astype(int)
                    self.assertGreater(red[top + 2 : bottom - 2, left + 2 : right - 2].mean(), 0.99)
                    red[top - 2 : bottom + 2, left - 2 : right + 2] = False
                self.assertEqual(red.sum(), 0)
            partly = {tuple(several[0, place, 4][3].tolist()) for place in range(20)}
            self.assertEqual(partly, {(True, True, False, False), (True, False, False, False)})


class Squashing(unittest.TestCase):
    def test_shares_add_up(self):
        for size in (100, 299, 300, 301, 640, 1080):
            self.assertTrue(np.allclose(data.shares(size).sum(1), 1, atol=1e-5), size)
        image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3)).astype(np.uint8))
        self.assertTrue((data.squashed(image) == np.asarray(image)).all())


class Teacher(unittest.TestCase):
    def test_it_fills_in_what_is_not_labelled(self):
        one = picture([[0, 0, 50, 50]], [1])
        one.labelled = np.array([True, True, False, False])
        all_data = data.Data([one], ["a", "b", "c"], [10, 20, 30], {})
        found = lambda category, score: {"image_id": 1, "category_id": category, "score": score, "bbox": [5, 5, 20, 20]}
        results = [found(10, 0.9), found(20, 0.8), found(30, 0.2), found(99, 0.9)]
        self.assertEqual(data.add_teacher(all_data, results, 0.5), 1)
        self.assertEqual((one.classes.tolist(), one.labelled.tolist()), ([1, 2], [True, True, False, False]))
        one.boxes, one.classes, one.ignored = one.boxes[:1], one.classes[:1], one.ignored[:1]
        self.assertEqual(data.add_teacher(all_data, results, 0.5, 0.1), 1)
        # b is known now, c is doubtful.
        self.assertEqual(one.labelled.tolist(), [True, True, True, False])


class Epochs(unittest.TestCase):
    def test_every_picture_comes_once_where_all_weigh_the_same(self):
        seen = [item for batch in data.Batches([1.0] * 12, 4, 7, [3]) for item in batch]
        self.assertEqual(sorted(number for _, _, number in seen), list(range(12)))
        self.assertEqual([(epoch, place) for epoch, place, _ in seen], [(3, place) for place in range(12)])

    def test_rare_classes_are_seen_more_often(self):
        # Of 100 pictures one has class 2, a crowd of it is on another.
        many = [picture([[0, 0, 9, 9]], [1]) for _ in range(98)]
        many += [picture([[0, 0, 9, 9]] * 2, [1, 2]), picture([[0, 0, 9, 9]] * 2, [1, 2], [False, True])]
        weights = data.repeats(data.Data(many, ["a", "b", "c"], [10, 20, 30], {}), 0.16)
        self.assertEqual(weights[:98] + weights[99:], [1.0] * 99)
        self.assertAlmostEqual(weights[98], 4.0)
        seen = [number for batch in data.Batches(weights, 10, 7, range(20)) for _, _, number in batch]
        self.assertEqual(len(seen), 20 * 100)
        # 4 of 103 parts of each epoch's 100 pictures.
        self.assertAlmostEqual(seen.count(98) / 20, 400 / 103, delta=0.3)


if __name__ == "__main__":
    unittest.main()

"""Token labelling by hand-worked numbers and real crops."""

import math

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

from morphogen.errors import ConfigError
from morphogen.train.images import MapCrops
from morphogen.train.token_labels.label_maps import About, LabelMaps, image_names
from morphogen.train.token_labels.objective import (
    Predictions,
    TokenTargets,
    predict,
    token_grid,
    token_label_loss,
    token_targets,
    with_true_labels,
)
from morphogen.train.token_labels.teacher import top_scores

from batches import crops
from nets import teacher, tiny_volo

# ---------------------------------------------------------------- loss


def test_the_loss_by_hand():
    """Two images, two classes, four tokens in a row, the last of them mixed: a quarter of the box's area."""
    ln3 = math.log(3)
    output = Predictions(torch.tensor([[ln3, 0.0], [0.0, 0.0]]), torch.zeros(2, 4, 2), (0, 3, 1, 4))
    targets = TokenTargets(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.full((2, 4, 2), 0.5))
    # log p of the first image: log 3/4 and log 1/4; its target 3/4 and 1/4. The second image, and all tokens: log 2.
    first = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert token_label_loss(output, targets).item() == pytest.approx((first + math.log(2)) / 2 + 0.5 * math.log(2))
    unmixed = output._replace(box=(0, 0, 0, 0))
    assert token_label_loss(unmixed, targets, dense_weight=0).item() == pytest.approx(
        (-math.log(0.75) + math.log(2)) / 2
    )


def test_tokens_answer_for_their_own_image_one_by_one():
    """The first token is mixed, and sure of what its own image's map says."""
    tokens = torch.zeros(2, 2, 2)
    tokens[0, 0, 1] = math.log(7)  # probabilities 1/8 and 7/8
    own = torch.tensor([[[0.0, 1.0], [0.25, 0.75]], [[1.0, 0.0], [1.0, 0.0]]])
    targets = TokenTargets(torch.full((2, 2), 0.5), own)
    loss = token_label_loss(Predictions(torch.zeros(2, 2), tokens, (0, 0, 1, 1)), targets)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * (-math.log(7 / 8) + 3 * math.log(2)) / 4)


def test_the_models_token_predictions_are_of_their_own_images():
    """What a VOLO returns has MixToken undone, so the targets of tokens must not be mixed."""

    def kept_apart(tokens):  # a body in which tokens do not see each other
        return F.avg_pool2d(tokens.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)

    model = tiny_volo(use_mix_token=True)
    model.patch_embed.eval()
    model.forward_tokens = kept_apart
    x = torch.randn(4, 3, 64, 64)
    boxes = set()
    for _ in range(5):
        _, mixed, box = model.forward_train(x)
        model.mix_token = False
        _, alone, none = model.forward_train(x)
        model.mix_token = True
        assert none == (0, 0, 0, 0) and torch.allclose(mixed, alone, atol=1e-6)
        boxes.add(box)
    assert any((r2 - r1) * (c2 - c1) for r1, c1, r2, c2 in boxes)


def test_the_box_is_the_share_of_the_other_image():
    """Rows, columns and area of the box as the loss reads them are what the model mixed in."""
    model = tiny_volo(use_mix_token=True)
    seen = []
    model.patch_embed.forward = lambda x: x
    model.forward_tokens = lambda x: seen.append(x) or F.avg_pool2d(x.permute(0, 3, 1, 2), 2).flatten(2).transpose(1, 2)
    x = torch.eye(4, 8)[:, :, None, None].expand(-1, -1, 8, 8)  # image i is the vector e_i everywhere
    for _ in range(5):
        _, _, (r1, c1, r2, c2) = model.forward_train(x)
        share = (r2 - r1) * (c2 - c1) / 16
        own = torch.eye(4, 8)
        assert torch.allclose(seen[-1].mean((1, 2)), (1 - share) * own + share * own.flip(0))


def test_the_head_is_part_of_the_prediction():
    """timm's forward_train stops before it."""
    for classes in (5, 8):  # 8 is also the number of features
        model = tiny_volo(num_classes=classes, use_mix_token=True)
        model.patch_embed.eval()
        model.mix_token = False
        x = torch.randn(2, 3, 64, 64)
        image, tokens, _ = predict(model, x)
        model.eval()
        assert torch.allclose(model(x), image + 0.5 * tokens.amax(1), atol=1e-6)


def test_a_volo_learns_its_tokens():
    model = tiny_volo(use_mix_token=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    x = torch.randn(8, 3, 64, 64)
    tokens = F.one_hot(torch.randint(5, (8, 16)), 5).float()
    targets = TokenTargets(tokens.mean(1), tokens)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16):
            loss = token_label_loss(predict(model, x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0] and all(p.grad is not None for p in model.parameters())


def test_output_or_targets_that_do_not_fit_are_one_line():
    targets = TokenTargets(torch.rand(2, 5), torch.rand(2, 9, 5))
    for model in (teacher(), tiny_volo().eval()):
        with pytest.raises(ConfigError, match=r"no predictions for its tokens.*VOLO in training mode"):
            predict(model, torch.zeros(2, 3, 64, 64))
    with pytest.raises(ConfigError, match=r"expected .*\(2, 16, 5\), found \(2, 9, 5\)"):
        token_label_loss(Predictions(torch.zeros(2, 5), torch.zeros(2, 16, 5), (0, 0, 0, 0)), targets)


def test_true_labels_by_hand():
    """Half each where the teacher is right, a tenth truth where it is wrong; smoothing 0.2 of two classes."""
    teacher_says = torch.tensor([[0.6, 0.4], [0.6, 0.4]])
    targets = TokenTargets(teacher_says, torch.rand(2, 4, 2))
    blended = with_true_labels(targets, torch.tensor([0, 1]), smoothing=0.2)
    assert torch.allclose(blended.image, torch.tensor([[0.75, 0.25], [0.55, 0.45]]))
    assert blended.tokens is targets.tokens


# ---------------------------------------------------------------- targets of a crop


def crop_of(scores, classes, box=(0.0, 0.0, 1.0, 1.0), flipped=False):
    one = (torch.tensor(0), scores, classes.int(), torch.tensor(box), torch.tensor(flipped))
    return MapCrops(*(tensor[None] for tensor in one))


def test_a_quarter_of_a_map_by_hand():
    """A 2 x 2 map with one class a place; the upper right quarter, then the whole mirrored."""
    scores, classes = torch.full((1, 2, 2), math.log(3)), torch.tensor([[[0, 1], [2, 3]]])
    own = torch.full((4, 4), 1 / 6).fill_diagonal_(1 / 2)  # 3 of 3 + 1 + 1 + 1
    whole = token_targets(crop_of(scores, classes), 4, (2, 2))
    assert torch.allclose(whole.tokens[0], own) and torch.allclose(whole.image[0], torch.full((4,), 1 / 4))
    mirrored = token_targets(crop_of(scores, classes, flipped=True), 4, (2, 2))
    assert torch.allclose(mirrored.tokens[0], own[[1, 0, 3, 2]])
    # Two samples an axis: the quarter's outer ones see class 1 alone, the inner ones 1/4 of a neighbour.
    corner = token_targets(crop_of(scores, classes, (0.5, 0.0, 1.0, 0.5)), 4, (1, 1))
    assert corner.tokens.shape == (1, 1, 4) and corner.image[0].argmax() == 1
    assert torch.allclose(corner.tokens[0], corner.image)


def test_left_out_classes_share_what_the_teacher_leaves():
    logits = torch.randn(2, 6, 3, 4) * 3 - 20  # far from 0, where the left out are put
    scores, classes = top_scores(logits, 2)
    whole = torch.stack([torch.tensor([0.0, 0.0, 1.0, 1.0])] * 2)
    images = MapCrops(torch.zeros(2), scores, classes, whole, torch.zeros(2, dtype=torch.bool))
    targets = token_targets(images, 6, (3, 4)).tokens.transpose(1, 2).view(2, 6, 3, 4)
    probabilities = logits.softmax(1)
    assert torch.allclose(targets.gather(1, classes), probabilities.gather(1, classes), atol=1e-5)
    rest = targets.scatter(1, classes, torch.nan)
    assert torch.allclose(rest.nan_to_num(-1).amax(1), rest.nan_to_num(2).amin(1), atol=1e-5)


def positions(rows, columns):
    """A map whose first class scores the place's own column, the second its row, as shares of the image."""
    x, y = (torch.arange(columns) + 0.5) / columns, (torch.arange(rows) + 0.5) / rows
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)])


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (14, 14)])
def test_the_map_follows_the_image(grid, tmp_path):
    """Red is the column and green the row of each pixel; the map says the same of its own places."""
    height, width = 120, 200
    ramp = (positions(height, width) * 255).round().byte()
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "b").mkdir()
    picture = torch.stack([*ramp, torch.zeros_like(ramp[0])], dim=-1).numpy()
    for name in ("a/0.png", "b/1.png"):
        Image.fromarray(picture).save(tmp_path / "data" / name)
    dataset = ImageFolder(str(tmp_path / "data"))
    maps = LabelMaps.create(tmp_path / "maps", About("hand", ("a", "b"), 2, (18, 18)))
    for name in image_names(dataset):
        maps.write(name, positions(18, 18), torch.tensor([0, 1])[:, None, None].expand(-1, 18, 18))
    flips, worst = set(), 0.0
    for images, labels in crops(dataset, maps, 112, 42):
        seen = images[:, :2] / 255
        lowest, highest = -F.adaptive_max_pool2d(-seen, grid), F.adaptive_max_pool2d(seen, grid)
        inside = (lowest > 1 / 36) & (highest < 35 / 36)  # nearer to the edge the map has no two places to go by
        logs = token_targets(labels, 3, grid).tokens.log().transpose(1, 2).unflatten(2, grid)
        said = logs[:, :2] - logs[:, 2:]  # the third class scores 0
        worst = max(worst, float(((F.adaptive_avg_pool2d(seen, grid) - said) * inside).abs().max()))
        flips |= set(labels.flipped.tolist())
        assert inside.float().mean() > 0.5
    assert flips == {False, True} and worst < 0.003  # bytes are 0.004 apart, places of the map 0.056


def test_the_grid_has_the_images_aspect():
    assert token_grid(196, (224, 224)) == (14, 14) and token_grid(24, (64, 96)) == (4, 6)
    assert token_grid(24, (96, 64)) == (6, 4) and token_grid(4 * 6, (72, 96)) == (4, 6)  # a row of patches is cut off
    assert token_grid(7, (64, 64)) in ((1, 7), (7, 1))

"""What each growth operator says of the weights it makes."""

import pytest
import torch
from torch import nn

import morphogen

from nets import Plain, Residual, image


class Wide(nn.Module):
    """A 3 x 3 convolution with room for new filters, and a 1 x 1 convolution with none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.point = nn.Conv2d(16, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.point(torch.relu(self.conv(torch.relu(self.stem(x)))))).mean((2, 3)))


def grown(operator, start=0.5):
    model = Wide()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=start))
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    morphogen.morph(net, net.dense, operator=operator)
    return model, old


def test_orthogonal_meets_equations_2_and_5():
    model, old = grown("orthogonal")
    weight, before = model.conv.weight.detach(), old["conv.weight"]
    assert torch.equal(weight[:8, :8], before)
    rows, new_rows = before.flatten(1), weight[8:, :8].flatten(1)
    columns, new_columns = before.transpose(0, 1).flatten(1), weight[:8, 8:].transpose(0, 1).flatten(1)
    for had, got in ((rows, new_rows), (columns, new_columns)):
        norm = had.norm(dim=1).mean()
        assert (had @ got.T).abs().max() < 1e-5  # orthogonal to the old
        torch.testing.assert_close(got @ got.T, norm**2 * torch.eye(8), atol=1e-5, rtol=1e-4)  # and to each other


def test_orthogonal_uses_the_room_there_is():
    """`point` grows from (16, 8) to (32, 16): its 16 old rows fill all 8 dimensions; columns have 8 to spare."""
    model, old = grown("orthogonal")
    weight, before = model.point.weight.detach().flatten(1), old["point.weight"].flatten(1)
    assert (before.T @ weight[:16, 8:]).abs().max() < 1e-5
    norm = before.norm(dim=1).mean()
    torch.testing.assert_close(weight[16:, :8].norm(dim=1), norm.expand(16), rtol=1e-4, atol=1e-5)


def test_random_is_he_normal():
    model = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.Flatten(), nn.Linear(256 * 16, 4))
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense, operator="random")
    expected = (2 / (256 * 9)) ** 0.5
    for new in (model[2].weight.detach()[128:], model[2].weight.detach()[:, 128:]):
        assert float(new.mean().abs()) < 1e-3 and float(new.std()) == pytest.approx(expected, rel=0.02)


def test_replicate_repeats_filters():
    model, old = grown("replicate")
    before = old["conv.weight"]
    assert torch.equal(model.conv.weight, torch.cat([before, before]).repeat(1, 2, 1, 1))
    assert torch.equal(model.conv.bias, old["conv.bias"].repeat(2))


@pytest.mark.parametrize("operator", ["orthogonal", "random"])
def test_new_normalisation_is_neutral(operator):
    model = Residual()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    with torch.no_grad():
        for tensor in (model.bn1.weight, model.bn1.bias, model.bn1.running_mean, model.bn1.running_var):
            tensor.fill_(7.0)
    morphogen.morph(net, net.dense, operator=operator)
    for tensor, value in (
        (model.bn1.weight, 1),
        (model.bn1.bias, 0),
        (model.bn1.running_mean, 0),
        (model.bn1.running_var, 1),
    ):
        assert tensor[:6].eq(7).all() and tensor[6:].eq(value).all()


def test_quiet_makes_new_channels_as_loud_as_the_old():
    model = Residual()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor([0.3, -0.4, 0.0, 0.0, 0.0, 0.0]))
        model.bn1.bias.fill_(7.0)
    morphogen.morph(net, net.dense)
    assert model.bn1.weight[6:].detach().numpy() == pytest.approx(0.5 / 6**0.5)  # sqrt((0.3^2 + 0.4^2) / 6)
    assert model.bn1.bias[:6].eq(7).all() and model.bn1.bias[6:].eq(0).all()


def test_quiet_does_not_drown_old_channels_behind_a_norm_over_channels():
    """Weights as transformers begin, of deviation 0.02: He-normal ones would be six times as large."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm, self.last = nn.Embedding(20, 64), nn.RMSNorm(64), nn.RMSNorm(64)
            self.up, self.down, self.head = nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 20)
            for weight in (self.words.weight, self.up.weight, self.down.weight, self.head.weight):
                nn.init.normal_(weight, std=0.02)

        def forward(self, ids):
            x = self.words(ids)
            return self.head(self.last(x + self.down(torch.relu(self.up(self.norm(x))))))

    model, ids = Gated(), torch.randint(0, 20, (2, 8))
    net = morphogen.trace(model, ids)
    morphogen.morph(net, net.subnetwork(width=0.5))
    before = model(ids)
    morphogen.morph(net, net.dense)
    old, new = model.down.weight[:32, :64], model.down.weight[32:, 64:]
    assert new.detach().std().item() == pytest.approx(old.detach().std().item(), rel=0.1)
    assert float((model(ids) - before).norm() / before.norm()) < 0.35  # 0.85 with He-normal ones


def test_adams_new_entries_take_steps_as_long_as_the_old():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, amsgrad=True)
    net = morphogen.trace(model, torch.randn(2, 8))
    morphogen.morph(net, net.subnetwork(width=0.5), optimizer=optimizer)

    def step():
        optimizer.zero_grad()
        nn.functional.mse_loss(model(torch.randn(16, 8)), torch.randn(16, 4)).backward()
        optimizer.step()

    for _ in range(400):
        step()
    weight = model[2].weight
    means = {key: optimizer.state[weight][key].mean() for key in ("exp_avg_sq", "max_exp_avg_sq")}
    morphogen.morph(net, net.dense, optimizer=optimizer, operator="net2net")  # the function stays, so gradients do
    for key, mean in means.items():
        assert torch.equal(optimizer.state[weight][key][32:], mean.expand(32, 64))
    assert optimizer.state[weight]["exp_avg"][32:].eq(0).all() and optimizer.state[weight]["step"] == 400
    longest = 0.0
    for _ in range(20):
        before = weight.detach().clone()
        step()
        moved = (weight.detach() - before).square()
        longest = max(longest, float((moved[32:, 32:].mean() / moved[:32, :32].mean()).sqrt()))
    assert longest < 2  # from second moments of 0 the first steps are several times as long


def test_a_users_own_operator():
    def zeros(gap):
        return gap.map.carry(gap.old)

    model = Plain()
    net = morphogen.trace(model, image())
    morphogen.morph(net, net.subnetwork(width=0.5))
    morphogen.morph(net, net.dense, operator=zeros)
    assert model.conv1.weight[4:].eq(0).all() and not model.conv1.weight[:4].eq(0).any()

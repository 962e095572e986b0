"""A new capability is one part and the method that uses it: nothing else is touched."""

from dataclasses import dataclass

import pytest
import torch

import morphogen
from morphogen.extend import Grow, Method, Part

from nets import Tower, image


class CountSteps(Part):
    """Counts the steps of a run, and the images of each."""

    name, order = "count steps", 7

    def __init__(self):
        self.steps = self.images = 0

    def before_forward(self, args, kwargs, training):
        self.images += training * len(args[0])
        return args, kwargs

    def end_step(self):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps, "images": self.images}

    def prepare(self, state):
        steps, images = int(state["steps"]), int(state["images"])

        def load():
            self.steps, self.images = steps, images

        return load


@dataclass(frozen=True)
class Counted(Method):
    """Growth in two stages, counted."""

    def parts(self):
        growth = morphogen.NetworkExpansion(width=0.5, stages=2)
        return [Grow(growth.schedule, operator="quiet"), CountSteps()]


def test_a_part_of_ones_own_takes_part_in_all():
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = morphogen.attach(model, optimizer, Counted(), example=image(4), epochs=2)
    counts = run.part(CountSteps)
    assert counts is not None
    for epoch in range(2):
        run.begin_epoch(epoch)
        for _ in range(3):
            model(image(4)).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            model(image(4))
        if epoch == 0:
            state, weights = run.state_dict(), {"net": model.state_dict(), "optimizer": optimizer.state_dict()}
            other = Tower()
            its = torch.optim.SGD(other.parameters(), lr=0.01)
            resumed = morphogen.attach(other, its, Counted(), example=image(4), epochs=2)
            resumed.load_state_dict(state)
            assert resumed.part(CountSteps).state_dict() == counts.state_dict() == {"steps": 3, "images": 12}
            third = Tower()
            again = morphogen.attach(
                third, torch.optim.SGD(third.parameters(), 0.01), Counted(), example=image(4), epochs=2
            )
            third.load_state_dict(weights["net"])
            assert again.part(CountSteps).steps == 3
    model.state_dict()  # the run was not told of its steps, so that this shows its end
    assert counts.steps == 6 and counts.images == 24 and run.ended
    sums = Counted() + morphogen.ProgressiveResizing(stages=2)
    assert CountSteps in map(type, sums.parts())


def test_a_damaged_state_of_a_part_is_refused():
    model = Tower()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run = morphogen.attach(model, optimizer, Counted(), example=image(4), epochs=2, start_epoch=0)
    state = run.state_dict()
    state["parts"]["count steps"]["steps"] = "many"
    with pytest.raises(morphogen.extend.CheckpointError, match="the state of the run is damaged"):
        run.load_state_dict(state)
    del state["parts"]["count steps"]
    with pytest.raises(morphogen.extend.CheckpointError, match="other parts; expected grow, count steps, found grow"):
        run.load_state_dict(state)

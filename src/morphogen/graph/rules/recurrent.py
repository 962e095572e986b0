"""Recurrent layers: every gate of a hidden unit goes with it."""

from __future__ import annotations

from ...dense.subnet import Role
from .table import Axes, Call, Value, rule

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def recurrent(call: Call) -> list[Axes]:
    """LSTM, GRU and plain recurrence over a sequence; not for packed sequences and projections.

    Raises:
        ValueError: a layout of parameters without a rule.
    """
    x, gates = call.input, GATES[call.op]
    hidden = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    params: list[Value] = list(call["params"])
    each = 4 if call["has_biases"] else 2
    directions = 2 if call["bidirectional"] else 1
    if len(params) != call["num_layers"] * directions * each:
        raise ValueError("recurrent layers with projections have no rule")
    inputs = x.axes[-1]
    units = None
    for layer in range(call["num_layers"]):
        outputs = []
        for direction in range(directions):
            own = params[(layer * directions + direction) * each :][:each]
            table = own[0].axes[0].view(gates, -1) if own[0].axes[0] is not None else None
            if table is None:
                raise ValueError("recurrent layers of one unit have no rule")
            units = table[0] if units is None else units
            for value in own:
                rows = value.axes[0]
                call.slots.tie(rows, units.repeat(gates), "")
                call.role(value, Role("weight" if len(value.shape) == 2 else "bias"))
            call.slots.tie(own[0].axes[1], inputs, "reads channels that are fixed, such as the model's input")
            call.slots.tie(own[1].axes[1], units, "")
            outputs.append(units)
        inputs = outputs[0].repeat(directions)
    for state in hidden:
        call.slots.tie(state.axes[-1], units, "meets an axis of fixed size")
    call.keeps(input_size=x.axes[-1], hidden_size=units)
    states = [(None,) * (len(shape) - 1) + (units,) for shape in call.shapes[1:]]
    return [(*x.axes[:-1], inputs), *states]


CELLS = {"lstm_cell": 4, "gru_cell": 3, "rnn_tanh_cell": 1, "rnn_relu_cell": 1}


@rule(*CELLS)
def cell(call: Call) -> Axes | list[Axes]:
    """One step of a recurrent layer: an LSTM's hands on two states, the others one."""
    x, gates = call.input, CELLS[call.op]
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    units = call["w_hh"].axes[1]
    for name, kind in {"w_ih": "weight", "w_hh": "weight", "b_ih": "bias", "b_hh": "bias"}.items():
        if call[name] is not None:
            call.slots.tie(call[name].axes[0], None if units is None else units.repeat(gates), "")
            call.role(call[name], Role(kind))
    call.reads(x, -1, call["w_ih"].axes[1])
    for state in states:
        units = call.slots.tie(units, state.axes[-1], "meets an axis of fixed size")
    call.keeps(input_size=call["w_ih"].axes[1], hidden_size=units)
    axes: list[Axes] = [(*x.axes[:-1], units) for _ in call.shapes]
    return axes if len(axes) > 1 else axes[0]

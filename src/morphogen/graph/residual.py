"""Which tensors write into a block's residual stream: with all of them zero, the block passes its input on.

A block computes y = x + f(x), perhaps several times over. The last layer of each branch f (its weight and
bias, a normalisation's scale and shift, a layer scale) is found by walking back from the additions. So are the
weights that everything in f comes through: with one of them zero, f is constant.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..dense.program import module_path, op_name
from ..machine.private import OpOverload

ADD = frozenset({"add"})
IDEMPOTENT = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min"})
"""Activations that leave alone what a block of the same kind returned."""
SAME = frozenset({"clone", "contiguous", "dropout", "alias", "to", "_to_copy", "detach"})
VIEWS = frozenset({"view", "reshape", "flatten", "unflatten", "_unsafe_view"})
"""Views that keep the order of the entries: a block that returns the shape it is given undoes them."""
READERS = {
    "linear": ("weight", "bias"),
    "conv1d": ("weight", "bias"),
    "conv2d": ("weight", "bias"),
    "conv3d": ("weight", "bias"),
    "batch_norm": ("weight", "bias"),
    "layer_norm": ("weight", "bias"),
    "group_norm": ("weight", "bias"),
    "addmm": ("self", "mat2"),
}
WEIGHTED = frozenset({"linear", "conv1d", "conv2d", "conv3d"})
ZERO_STAYS_ZERO = (
    SAME
    | IDEMPOTENT
    | frozenset(
        """view reshape permute transpose flatten unflatten squeeze unsqueeze roll slice select pad constant_pad_nd
        mul div neg gelu silu tanh hardswish mean adaptive_avg_pool2d avg_pool2d col2im im2col expand _unsafe_view
        upsample_bilinear2d upsample_nearest2d split chunk""".split()
    )
)
"""Ops that make zeros of zeros in their first tensor (or, for `mul`, in any)."""


Written = dict[str, bool]
"""Tensors, and whether each belongs to a layer that is called, so that its output can be scaled instead."""


@dataclass(frozen=True)
class Residual:
    """The residual branches of a block.

    Attributes:
        writers: the tensors that write into its residual stream.
        bottlenecks: for each branch, the weights of convolutions and linear layers that all its paths lead through.
    """

    writers: Written
    bottlenecks: tuple[frozenset[str], ...]

    def __or__(self, other: Residual) -> Residual:
        """The branches of both."""
        return Residual(self.writers | other.writers, self.bottlenecks + other.bottlenecks)


class Branches:
    """The residual branches of the modules of an exported program, each looked for when it is asked for."""

    def __init__(self, program: torch.export.ExportedProgram, names: dict[str, str]):
        """`program` is the dense network in evaluation mode, `names` its parameters by the program's names."""
        self._names = names
        self._inputs = frozenset(map(str, program.graph_signature.user_inputs))
        self._inside: dict[str, list[torch.fx.Node]] = {}
        for node in program.graph.nodes:
            if node.op == "call_function":
                for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                    if path:
                        self._inside.setdefault(path, []).append(node)

    def within(self, path: str) -> Residual | None:
        """The branches that a module adds to its own input; None where it is not made of such."""
        return self._of(path).found() if path in self._inside else None

    def whole(self, path: str) -> Residual | None:
        """A module that is a branch itself, whose output its caller adds; None where it does not end in a layer."""
        return self._of(path).whole() if path in self._inside else None

    def _of(self, path: str) -> _Branches:
        return _Branches(self._inside[path], self._names, self._inputs)


class _Branches:
    """The residual branches of one module."""

    def __init__(self, nodes: list[torch.fx.Node], names: dict[str, str], inputs: frozenset[str]):
        self.nodes, self.names, self.inputs = nodes, names, inputs
        self.own = set(nodes)

    def whole(self) -> Residual | None:
        """What the module returns, as a branch."""
        leaving = self._leaving()
        written = self._writer(leaving[0]) if len(leaving) == 1 else None
        return Residual(written, (self._bottlenecks(leaving[0]),)) if written else None

    def _leaving(self) -> list[torch.fx.Node]:
        return [node for node in self.nodes if any(user not in self.own for user in node.users)]

    def found(self) -> Residual | None:
        """All branches between the module's input and its output."""
        leaving = self._leaving()
        if len(leaving) != 1:
            return None
        walked = self._along(leaving[0])
        if walked is not None and walked[1] in self.own:
            joined = self._joined(walked[1])
            walked = None if joined is None else (walked[0] | joined, walked[1])
        return walked[0] if walked and walked[0].writers else None

    def _along(self, node: torch.fx.Node) -> tuple[Residual, torch.fx.Node] | None:
        """From a value back along the residual stream: the branches added on the way, and where the stream comes
        from. None where a branch has no writer."""
        found = Residual({}, ())
        while node in self.own:
            op, inputs = op_name(node.target), node.all_input_nodes
            if op in SAME | IDEMPOTENT | VIEWS and inputs:
                node = inputs[0]
                continue
            stream = [i for i in inputs if op in ADD and self._is_stream(i)]
            if len(inputs) != 2 or len(stream) != 1:
                break
            (branch,) = (i for i in inputs if i is not stream[0])
            written = self._writer(branch)
            if written is None:
                return None
            found |= Residual(written, (self._bottlenecks(branch),))
            node = stream[0]
        return found, node

    def _joined(self, node: torch.fx.Node) -> Residual | None:
        """The writers of an input that is cut into neighbouring ranges and put together again by `cat`."""
        if op_name(node.target) != "cat":
            return None
        found = Residual({}, ())
        dim, end, size = node.args[1] if len(node.args) > 1 else 0, 0, 0
        for part in node.all_input_nodes:
            walked = self._along(part)
            if walked is None or walked[1] not in self.own or op_name(walked[1].target) != "slice":
                return None
            source = walked[1].all_input_nodes[0]
            along, start, stop = (*walked[1].args[1:], 0, None)[:3]
            if source in self.own or along != dim or start != end:
                return None
            size = source.meta["val"].shape[dim]
            end = min(stop, size) if isinstance(stop, int) else size
            found |= walked[0]
        return found if end == size else None

    def _is_stream(self, node: torch.fx.Node) -> bool:
        """Whether a value is the module's input, but for additions to it."""
        if node not in self.own:
            return node.op == "call_function" or node.name not in self.names
        op = op_name(node.target)
        return op in ADD | SAME | IDEMPOTENT | VIEWS | {"slice"} and any(map(self._is_stream, node.all_input_nodes))

    def _writer(self, node: torch.fx.Node) -> Written | None:
        """The tensors that make this value zero when they are."""
        if node not in self.own:
            return {self.names[node.name]: False} if node.name in self.names else None
        if node.target is operator.getitem:
            return self._writer(node.all_input_nodes[0])
        op = op_name(node.target)
        if op in READERS:
            return self._parameters(node, READERS[op])
        if op in ADD:
            parts = [self._writer(i) for i in node.all_input_nodes]
            return None if None in parts else {k: v for part in parts for k, v in (part or {}).items()}
        if op not in ZERO_STAYS_ZERO or not node.all_input_nodes:
            return None
        inputs: Iterable[torch.fx.Node] = node.all_input_nodes if op == "mul" else node.all_input_nodes[:1]
        # A factor that is a parameter (a layer scale) comes before what it scales.
        ordered = sorted(inputs, key=lambda i: i.name not in self.names)
        return next((written for i in ordered if (written := self._writer(i)) is not None), None)

    def _bottlenecks(self, branch: torch.fx.Node) -> frozenset[str]:
        """The weights without whose layers nothing from outside the module would reach the end of a branch."""
        layers = [node for node in self.nodes if op_name(node.target) in WEIGHTED]
        through = [self._parameters(node, ("weight",)) for node in layers if not self._reached(branch, node)]
        return frozenset(name for names in through for name in names or ())

    def _reached(self, branch: torch.fx.Node, without: torch.fx.Node) -> bool:
        """Whether a value depends on what comes from outside the module other than through one of its nodes."""
        open_, seen = [branch], {without}
        while open_:
            node = open_.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.own:
                open_ += node.all_input_nodes
            elif node.op != "placeholder" or node.name in self.inputs:  # neither a parameter nor a buffer
                return True
        return False

    def _parameters(self, node: torch.fx.Node, which: tuple[str, ...]) -> Written | None:
        assert isinstance(node.target, OpOverload)
        arguments = [argument.name for argument in node.target._schema.arguments]
        given = dict(zip(arguments, node.args, strict=False)) | dict(node.kwargs)
        tensors = [given.get(name) for name in which]
        if tensors[0] is None:
            return None
        written = {self.names.get(t.name) for t in tensors if isinstance(t, torch.fx.Node)}
        if None in written:
            return None
        return {name: name.rpartition(".")[0] == module_path(node) for name in written if name is not None}

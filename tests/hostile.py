"""Files as a damaged disk or a hostile hand leaves them: seeded mutants of bytes, of JSON and of pickled data."""

from __future__ import annotations

import copy
import json
import random
import sys
from contextlib import contextmanager

import torch

ODD = [
    None,
    True,
    -1,
    0,
    2**31,
    10**30,
    1e308,
    10**400,
    "",
    "x",
    "os:system(command='touch RAN')",
    "0:999999999",
    "../../x",
]
ODD += [[], {}, [[[]]], {"a": {"a": []}}, "\x1b[2J", "1:0", [1, 2, 3], 0.5, "hf-hub:a/b", "float64", "9" * 5000]
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
_watched: list[list[str]] = []


def _hook(event, arguments):
    if not _watched or "nvidia-ml" in str(arguments):  # PyTorch asks whether there is a GPU
        return
    if event in RUNS or (event == "open" and str(arguments[1])[:1] in "wax+"):
        _watched[-1].append(f"{event} {arguments}")


sys.addaudithook(_hook)


@contextmanager
def nothing_runs():
    """Fails where a program is started, an address is asked, or a file is opened for writing."""
    _watched.append([])
    try:
        yield
        assert not _watched[-1], _watched[-1]
    finally:
        _watched.pop()


def bytes_of(content: bytes, dice: random.Random) -> bytes:
    """Flipped, cut, repeated, filled, or grown at a place."""
    place, length = dice.randrange(len(content)), dice.randrange(1, 64)
    match dice.randrange(5):
        case 0:
            return content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :]
        case 1:
            return content[:place]
        case 2:
            return content[:place] + content[place + length :]
        case 3:
            return content[:place] + content[place : place + length] + content[place:]
        case _:
            return content[:place] + bytes([dice.choice((0, 255))]) * length + content[place + length :]


def tree_of(tree, dice: random.Random):
    """One place in nested lists and dictionaries holds something else, is gone, is there twice, or goes deeper."""
    tree = copy.deepcopy(tree)
    places = []

    def look(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                look(node[key])

    if isinstance(tree, (dict, list)):
        look(tree)
    if not places:
        return dice.choice(ODD)
    node, key = dice.choice(places)
    match dice.randrange(5):
        case 0 | 1:
            node[key] = copy.deepcopy(dice.choice(ODD))
        case 2:
            del node[key]
        case 3 if isinstance(node, dict):
            node[f"{key}{dice.choice(('x', '.', '/..'))}"] = node[key] if dice.random() < 0.5 else node.pop(key)
        case 3:
            node.insert(key, node[key])
        case _:
            for _ in range(dice.choice((1, 40))):
                node[key] = [node[key]] if dice.random() < 0.5 else {"a": node[key]}
    return tree


def text_of(text: str, dice: random.Random) -> bytes:
    """JSON whose bytes or whose structure are others."""
    match dice.randrange(10):
        case 0 | 1 | 2:
            return bytes_of(text.encode(), dice)
        case 3:
            return (text.replace("1", dice.choice(("NaN", "1e999", "-Infinity", "9" * 5000)), 1)).encode()
        case 4:
            return dice.choice((b"[" * 100_000, b'{"a":' * 50_000, b"", b"\xff\xfe", b"null", b"[]"))
    return json.dumps(tree_of(json.loads(text), dice)).encode()


def safetensors_of(content: bytes, dice: random.Random) -> bytes:
    """Bytes, header, or JSON in the metadata."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    choice = dice.randrange(4)
    if choice == 0:
        return bytes_of(content, dice)
    if choice == 1:
        claimed = dice.choice((0, 1, size - 1, 2**62, 2**64 - 1, 10**8 - 1))
        return claimed.to_bytes(8, "little") + content[8:]
    said = header.get("__metadata__", {})
    if choice == 2 and said:
        key = dice.choice(sorted(said))
        try:
            said[key] = text_of(said[key], dice).decode(errors="replace")
        except (ValueError, TypeError):
            said[key] = str(dice.choice(ODD))
    else:
        header = tree_of(header, dice)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def pickled_of(content: dict, dice: random.Random) -> dict:
    """What `torch.save` is given: another note, another kind of tensor."""
    changed = {**content, "state_dict": dict(content["state_dict"])}
    tensors = changed["state_dict"]
    name = dice.choice(list(tensors))
    tensor = tensors[name]
    if dice.random() < 0.4:
        kinds = [
            lambda: tensor.to(torch.complex64),
            tensor.double,
            lambda: tensor.to("meta"),
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: tensor.float().reshape(-1).to_sparse(),
            lambda: 7,
            lambda: tensor[..., None],
            lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor + 1,
            lambda: tensor.to(torch.bool),
        ]
        tensors[name] = dice.choice(kinds)()
        return changed
    key = dice.choice([key for key in changed if isinstance(changed[key], str)])
    if dice.random() < 0.5:
        changed[key] = dice.choice(ODD)
    elif changed[key][:1] in "[{":
        changed[key] = text_of(changed[key], dice).decode(errors="replace")
    else:
        changed[key] = bytes_of(changed[key].encode(), dice).decode(errors="replace") if changed[key] else "x"
    return changed

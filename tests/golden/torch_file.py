"""Writes torch_file.bin with torch.save, for tests/io/torch_file_test.cpp.

pip install torch numpy; python3 tests/golden/torch_file.py
"""
from pathlib import Path

import torch

model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
state = model.state_dict()  # an OrderedDict with `_metadata`
with torch.no_grad():
    state["0.weight"].copy_(torch.arange(6).reshape(2, 3) / 4 - 0.5)
    state["0.bias"].copy_(torch.tensor([1.5, -2.5]))
    state["1.num_batches_tracked"].fill_(2**40)
whole = torch.arange(8, dtype=torch.float32)
state["first"], state["rest"] = whole[:3], whole[3:7].view(2, 2)  # one storage, two tensors that begin at 0 and at 3
state["again"] = state["rest"]
state["parameter"] = torch.nn.Parameter(torch.tensor([[7.0], [8.0]]))
state["one.column"] = torch.arange(6.0).reshape(2, 3)[:, :1][:1]  # contiguous, whatever its strides
state["double"] = torch.tensor([1e-300, -2.5], dtype=torch.float64)
state["half"] = torch.tensor([1.5, -0.0, 6e-8, 65504.0, float("inf")], dtype=torch.float16)
state["brain"] = torch.tensor([3.140625, -1e38], dtype=torch.bfloat16)
state["empty"] = torch.zeros(0, 4)
state["int"] = torch.tensor([-(2**31), 3], dtype=torch.int32)
state["short"] = torch.tensor([-300], dtype=torch.int16)
state["char"] = torch.tensor([-1, 2, 3], dtype=torch.int8)
state["byte"] = torch.tensor([200], dtype=torch.uint8)
state["flags"] = torch.tensor([True, False, True])
torch.save(state, Path(__file__).with_name("torch_file.bin"))

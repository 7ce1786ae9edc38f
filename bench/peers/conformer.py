"""The Conformer of laconic in PyTorch, as its users would write it: the model of train_step.py and encoder.py.

Convolutional subsampling by 4, blocks with Transformer-XL relative positions and batch norm, a norm and a CTC head.
Parameters have the names that laconic gives them. Attention is written in one of two ways (`set_attention`): "matmul",
products and softmax, or "sdpa", scaled_dot_product_attention with the relative term as additive mask.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

KINDS = ("matmul", "sdpa")


def subsampled(frames):
    return ((frames - 1) // 2 - 1) // 2


def relative_scores(q, p):
    """q (batch, time, heads, width) and the projected table p (2 time - 1, heads, width), whose row k is relative
    position T-1-k, to q_i . p_{i-j} (batch, heads, time, time): column T-1-i+j of row i, by the shift of
    Transformer-XL."""
    batch, frames, heads, _ = q.shape
    scores = q.transpose(1, 2) @ p.permute(1, 2, 0)
    scores = F.pad(scores, (1, 0)).view(batch, heads, 2 * frames, frames)[:, :, 1:]
    return scores.reshape(batch, heads, frames, 2 * frames - 1)[..., :frames]


def attend(kind, q, k, v, scale, scores=None, dropout=0.0):
    """q, k, v (batch, time, heads, width) to (batch, time, heads * width); `scores` are added to those of q and k."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if kind == "sdpa":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=scores, dropout_p=dropout, scale=scale)
    else:
        content = (q * scale) @ k.transpose(2, 3)
        out = F.dropout((content if scores is None else content + scores).softmax(-1), dropout, dropout > 0) @ v
    return out.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, d, heads, dropout):
        super().__init__()
        self.heads, self.dropout, self.kind = heads, dropout, "matmul"
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(d, d) for _ in range(4))
        self.linear_pos = nn.Linear(d, d, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, d // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, d // heads))

    def forward(self, x, positions, padding=None):
        batch, frames, d = x.shape
        width = d // self.heads
        scale = width**-0.5
        q, k, v = (f(x).view(batch, frames, self.heads, width) for f in (self.linear_q, self.linear_k, self.linear_v))
        p = self.linear_pos(positions).view(2 * frames - 1, self.heads, width)
        scores = relative_scores((q + self.pos_bias_v) * scale, p)
        if padding is not None:
            scores = scores.masked_fill(padding[:, None, None], -math.inf)
        dropout = self.dropout if self.training else 0.0
        return self.linear_out(attend(self.kind, q + self.pos_bias_u, k, v, scale, scores, dropout))


class FeedForward(nn.Module):
    def __init__(self, d, inner, dropout):
        super().__init__()
        self.intermediate_dense, self.output_dense = nn.Linear(d, inner), nn.Linear(inner, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.output_dense(self.dropout(F.silu(self.intermediate_dense(x))))


class Convolution(nn.Module):
    def __init__(self, d, kernel):
        super().__init__()
        self.layer_norm = nn.LayerNorm(d)
        self.pointwise_conv1 = nn.Conv1d(d, 2 * d, 1, bias=False)
        self.depthwise_conv = nn.Conv1d(d, d, kernel, padding=kernel // 2, groups=d, bias=False)
        self.batch_norm = nn.BatchNorm1d(d)
        self.pointwise_conv2 = nn.Conv1d(d, d, 1, bias=False)

    def forward(self, x, padding=None):
        x = F.glu(self.pointwise_conv1(self.layer_norm(x).transpose(1, 2)), 1)
        if padding is not None:
            x = x.masked_fill(padding[:, None], 0)
        return self.pointwise_conv2(F.silu(self.batch_norm(self.depthwise_conv(x)))).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, d, heads, inner, kernel, dropout):
        super().__init__()
        self.ffn1_layer_norm, self.ffn1 = nn.LayerNorm(d), FeedForward(d, inner, dropout)
        self.self_attn_layer_norm, self.self_attn = nn.LayerNorm(d), Attention(d, heads, dropout)
        self.conv_module = Convolution(d, kernel)
        self.ffn2_layer_norm, self.ffn2 = nn.LayerNorm(d), FeedForward(d, inner, dropout)
        self.final_layer_norm = nn.LayerNorm(d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, positions, padding=None):
        x = x + 0.5 * self.dropout(self.ffn1(self.ffn1_layer_norm(x)))
        x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), positions, padding))
        x = x + self.dropout(self.conv_module(x, padding))
        return self.final_layer_norm(x + 0.5 * self.dropout(self.ffn2(self.ffn2_layer_norm(x))))


class Subsampling(nn.Module):
    def __init__(self, mels, channels, d):
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(1, channels, 3, 2), nn.Conv2d(channels, channels, 3, 2)
        self.linear = nn.Linear(channels * subsampled(mels), d)

    def forward(self, x):  # (batch, time, mels)
        x = F.relu(self.conv1(F.relu(self.conv0(x[:, None]))))
        return self.linear(x.permute(0, 2, 3, 1).flatten(2))  # column f * C + c


class Conformer(nn.Module):
    """`frames` is the longest input that will come."""

    def __init__(self, *, mels, channels, d, layers, heads, inner, kernel, vocab, dropout, frames):
        super().__init__()
        self.subsampling = Subsampling(mels, channels, d)
        self.layers = nn.ModuleList(Block(d, heads, inner, kernel, dropout) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, vocab)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", self.table(subsampled(frames), d).float(), persistent=False)

    @staticmethod
    def table(frames, d):
        """Row k is relative position T-1-k, in double."""
        angles = torch.arange(frames - 1, -frames, -1)[:, None] * 10000 ** (-torch.arange(0, d, 2).double() / d)
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)

    def set_attention(self, kind):
        for layer in self.layers:
            layer.self_attn.kind = kind

    def load(self, state):
        """Parameters and running statistics by name; all must be there."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(f"tensors missing: {missing}, tensors too many: {unexpected}")

    def forward(self, x, padding=None):
        """x (batch, time, mels), padding (batch, subsampled time), true behind the end of an utterance; to logits."""
        x = self.dropout(self.subsampling(x))
        frames = x.shape[1]
        first = self.positions.shape[0] // 2 - (frames - 1)
        positions = self.positions[first : first + 2 * frames - 1]
        for layer in self.layers:
            x = layer(x, positions, padding)
        return self.lm_head(self.layer_norm(x))

"""Training digits, changed at random: rotated, stretched, sheared, shifted, and written with a thicker or thinner pen.

A plain file until lesson 14 teaches it. `training` uses it for recipes with `augment`.
"""

__all__ = ['random_affine', 'random_warp', 'RandomWarp']

import math

from fastai.basics import *

def _matrices(a, b, c, d):
    "The matrices [[a, b], [c, d]] of tensors (n,): (n, 2, 2)"
    return torch.stack([a, b, c, d], 1).view(-1, 2, 2)

def random_affine(
    n:int, # How many
    rotate=15., # Degrees, at most, either way
    scale=.2, # Share by which each direction may be longer or shorter
    shear=.2, # Pixels sideways for each pixel up
    shift=1.5, # Pixels
    device=None,
) -> Tensor: # (n, 2, 3), as `affine_grid` takes them
    "Random matrices that take each pixel of the result from its place in the digit"
    u = torch.rand(6, n, device=device)*2 - 1 # from -1 to 1
    angle = u[0]*math.radians(rotate)
    width,height = (u[1:3]*math.log1p(scale)).exp() # as often 1.2 times as long as 1/1.2
    lean = u[3]*shear
    zero,one = torch.zeros_like(angle),torch.ones_like(angle)
    stretches = _matrices(width, zero, zero, height)
    rotations = _matrices(angle.cos(), -angle.sin(), angle.sin(), angle.cos())
    shears = _matrices(one, lean, zero, one)
    shifts = u[4:]*shift/14 # `affine_grid` counts from -1 to 1: 14 pixels are 1
    return torch.cat([stretches@rotations@shears, shifts.T[:,:,None]], 2)

def random_warp(
    xb:Tensor, # A batch, normalized (n, 1, 28, 28)
    thickness=.7, # Share of a pixel by which the pen may be thicker or thinner on each side
    **kwargs # For `random_affine`
) -> Tensor:
    "Each digit of a batch moved by a random matrix of its own, and its pen changed"
    x = xb.as_subclass(Tensor)
    grid = F.affine_grid(random_affine(len(x), device=x.device, **kwargs), x.shape, align_corners=False)
    x = F.grid_sample(x, grid, padding_mode='border', align_corners=False)
    u = thickness*(torch.rand(len(x), 1, 1, 1, device=x.device)*2-1)
    thicker = F.max_pool2d(x, 3, 1, 1) - x
    thinner = x + F.max_pool2d(-x, 3, 1, 1)
    return x + u.clamp(min=0)*thicker + u.clamp(max=0)*thinner

class RandomWarp(Transform):
    "`random_warp` as a fastai batch transform of the training split"
    split_idx = 0
    def __init__(self, rotate=15., scale=.2, shear=.2, shift=1.5, thickness=.7):
        super().__init__()
        self.kwargs = dict(rotate=rotate, scale=scale, shear=shear, shift=shift, thickness=thickness)
    def encodes(self, xb:TensorImageBW): return random_warp(xb, **self.kwargs)

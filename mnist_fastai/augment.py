"""Training digits, changed at random: rotated, stretched, sheared, shifted, bent, and written with another pen.

A plain file until lesson 14 teaches it. `training` uses it for recipes with `augment`.
"""

__all__ = ['random_affine', 'random_warp', 'RandomWarp', 'average_shifts']

import functools, math

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

@functools.cache
def _basis(device, side=28, knots=5):
    """Places of all pixels, from -1 to 1, and smooth hills: rows x, y, 1, then 25 Gaussians (28, 784)

    A sum of hills with random heights of standard deviation 1 has, over all pixels, a mean square of 1."""
    at = (torch.arange(side, device=device)*2+1)/side - 1 # the middles of the pixels
    centers = torch.linspace(-1, 1, knots+2, device=device)[1:-1]
    hill = torch.exp(-.5*((at-centers[:,None])*14/4)**2) # (5, 28), each 4 pixels wide
    hills = (hill[:,None,:,None]*hill[None,:,None,:]).flatten(2).flatten(0, 1) # (25, 784)
    hills /= (hills**2).sum(0).mean().sqrt()
    y,x = [o.flatten() for o in torch.meshgrid(at, at, indexing='ij')]
    return torch.cat([torch.stack([x, y, torch.ones_like(x)]), hills])

def _spread(x, op):
    "`op` (maximum or minimum) over each pixel and its eight neighbors: like `F.max_pool2d(x, 3, 1, 1)`, but faster"
    x = torch.cat([x[:,:,:1], x, x[:,:,-1:]], 2)
    x = op(op(x[:,:,:-2], x[:,:,1:-1]), x[:,:,2:])
    x = torch.cat([x[...,:1], x, x[...,-1:]], 3)
    return op(op(x[...,:-2], x[...,1:-1]), x[...,2:])

def random_warp(
    xb:Tensor, # A batch, normalized (n, 1, 28, 28)
    thickness=.7, # Share of a pixel by which the pen may be thicker or thinner on each side
    elastic=0., # Pixels by which a place moves, beside all else: the standard deviation of a smooth random field
    **kwargs # For `random_affine`
) -> Tensor:
    "Each digit of a batch moved by a random matrix and a random field of its own, and its pen changed"
    x,n = xb.as_subclass(Tensor),len(xb)
    places = random_affine(n, device=x.device, **kwargs)
    basis = _basis(x.device)
    if elastic: places = torch.cat([places, torch.randn(n, 2, 25, device=x.device)*elastic/14], 2)
    grid = (places.flatten(0, 1) @ basis[:places.shape[2]]).view(n, 2, 28, 28).permute(0, 2, 3, 1)
    x = F.grid_sample(x, grid, padding_mode='border', align_corners=False)
    if not thickness: return x
    u = thickness*(torch.rand(n, 1, 1, 1, device=x.device)*2-1)
    thicker,thinner = _spread(x, torch.maximum)-x,x-_spread(x, torch.minimum)
    return x + u.clamp(min=0)*thicker + u.clamp(max=0)*thinner

class RandomWarp(Transform):
    "`random_warp` as a fastai batch transform of the training split"
    split_idx = 0
    def __init__(self, rotate=15., scale=.2, shear=.2, shift=1.5, thickness=.7, elastic=0.):
        super().__init__()
        self.kwargs = dict(rotate=rotate, scale=scale, shear=shear, shift=shift, thickness=thickness, elastic=elastic)
    def encodes(self, xb:TensorImageBW): return random_warp(xb, **self.kwargs)

def average_shifts(
    net:nn.Module, # In evaluation mode
    xb:Tensor, # A batch, normalized (n, 1, 28, 28)
    by:int=1, # Pixels
) -> Tensor: # (n, 10)
    "Mean probabilities over each digit as it is and moved to the left, right, up and down"
    x = F.pad(xb.as_subclass(Tensor), (by,by,by,by), mode='replicate')
    size = 28
    probs = [net(x[:,:,top:top+size,left:left+size]).softmax(1)
             for top,left in ((by,by), (by,0), (by,2*by), (0,by), (2*by,by))]
    return torch.stack(probs).mean(0)

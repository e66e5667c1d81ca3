"""Modules:

- `mnist_fastai.files`: The official files of MNIST: found, fetched, verified. And the sample, which stands in where they cannot be had."""

__version__ = "0.1.0"

import warnings

# Importing fastai under recent versions of torch prints this warning, which no reader of the course can act on.
warnings.filterwarnings('ignore', message='`torch.jit.script`', category=FutureWarning)

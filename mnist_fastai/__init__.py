"""Modules:

- `mnist_fastai.callbacks`: What a recipe can switch on in a training, as fastai callbacks, and a training that goes on after a stop.
- `mnist_fastai.cli`: The command `mnist_train`: train networks, compare them, save them.
- `mnist_fastai.files`: The official files of MNIST: found, fetched, verified. And the sample, which stands in where they cannot be had.
- `mnist_fastai.images`: Pictures of any kind that people have, opened safely and as grey. Files of strangers come in here.
- `mnist_fastai.predict`: The command `mnist_predict`: read the digits in pictures, a line each.
- `mnist_fastai.synthetic`: Pictures to measure with: MNIST digits as people hand them in, digits of another writer, things that are no digits."""

__version__ = "0.1.0"

import warnings

# Importing fastai under recent versions of torch prints this warning, which no reader of the course can act on.
warnings.filterwarnings('ignore', message='`torch.jit.script`', category=FutureWarning)

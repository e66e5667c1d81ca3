"What the scripts here and `tools/grids.py` measure of a network, beside accuracy on validation"
import functools

import numpy as np, torch
from sklearn.datasets import load_digits

from mnist_fastai.augment import average_shifts
from mnist_fastai.data import Digits
from mnist_fastai.interpret import logits_of
from mnist_fastai.preprocess import preprocess

@functools.cache
def foreign_digits():
    "The digits of scikit-learn's `load_digits`, by other writers, in MNIST's form"
    foreign = load_digits()
    images = torch.stack([preprocess((o/16).astype(np.float32)) for o in foreign.images])
    return Digits(images, foreign.target)

def accuracy(net, ds):
    "Share of the digits for which the network predicts their label"
    return (logits_of(net, ds).argmax(1)==ds.labels).double().mean().item()

def shifts_accuracy(net, ds):
    "Accuracy of the mean of the probabilities of each digit and of its four shifts by one pixel"
    x = ds[:][0]
    with torch.no_grad(): probs = torch.cat([average_shifts(net.eval(), o) for o in x.split(1000)])
    return (probs.argmax(1)==ds.labels).double().mean().item()

def measure(net, data):
    "More numbers of a run: accuracy with five shifts averaged, on validation, and accuracy on other writers' digits"
    return dict(shifts_accuracy=shifts_accuracy(net, data.valid), load_digits=accuracy(net, foreign_digits()))

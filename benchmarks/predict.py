"""How quickly pictures are read: `mnist_predict` on small images, and one large photograph. Writes predict.json

    python benchmarks/predict.py
    python benchmarks/predict.py --against ConvNet # its speed and that of another network, in turns; writes nothing

needs an otherwise idle machine and a minute. The images are validation digits drawn on 280 by 280 pixels, as PNG files.
The photograph has 12 million pixels, as JPEG.
"""
import argparse, io, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np, torch
from PIL import Image

from mnist_fastai.core import versions, atomic_write
from mnist_fastai.data import Digits, load_mnist
from mnist_fastai.images import open_picture
from mnist_fastai.inference import Predictor
from mnist_fastai.interpret import logits_of
from mnist_fastai.models import find_model
from mnist_fastai.preprocess import preprocess_steps
from mnist_fastai.synthetic import photographed, shifted

def write_images(ds, folder, rng):
    "The digits on 280 by 280 pixels, dark on light, as PNG files"
    for i,d in enumerate(ds.images.numpy()):
        Image.fromarray(255-shifted(d, rng)).resize((280,280), Image.BICUBIC).save(Path(folder)/f'{i:05}.png')
    return sorted(Path(folder).iterdir())

def rate(read, files, clock=time.perf_counter):
    "Images a second, and what was read"
    start = clock()
    labels = [o.label for o in read.stream(files)]
    return len(files)/(clock()-start),labels

def milliseconds(read, files, clock=time.perf_counter, bs=64):
    "Where the time goes: milliseconds an image for opening the file, all of preprocessing, and the network"
    start = clock()
    pictures = [open_picture(o) for o in files]
    opened = clock()
    images = [torch.from_numpy((preprocess_steps(o)['center']*255).round().astype(np.uint8)) for o in pictures]
    preprocessed = clock()
    for i in range(0, len(images), bs): logits_of(read.net, Digits(torch.stack(images[i:i+bs]), info=read.info))
    read_all = clock()
    parts = dict(open=opened-start, preprocess=preprocessed-opened, network=read_all-preprocessed)
    return {k: 1000*v/len(files) for k,v in parts.items()}

def in_turns(against, n=1000, rounds=7):
    "CPU seconds of the packaged reader and of another network, best of several rounds; also on a busy machine"
    net = None if Path(against).exists() else find_model(against)()
    if net is not None: net.train_sources = () # untrained
    readers = {'packaged': Predictor(), against: Predictor(against if net is None else net.eval())}
    with tempfile.TemporaryDirectory() as tmp:
        files = write_images(load_mnist().valid.subset(slice(n)), tmp, np.random.default_rng(0))
        rates = {k: [] for k in readers}
        for _ in range(rounds):
            for k,read in readers.items(): rates[k].append(rate(read, files, time.process_time)[0])
        for k,read in readers.items():
            parts = ', '.join(f'{name} {ms:.2f}' for name,ms in milliseconds(read, files, time.process_time).items())
            print(f'{k}: {max(rates[k]):.0f} images a CPU second; milliseconds an image: {parts}')

def main(n=3000):
    rng,ds = np.random.default_rng(0),load_mnist().valid
    res = dict(images=n)
    with tempfile.TemporaryDirectory() as tmp:
        files,read = write_images(ds.subset(slice(n)), tmp, rng),Predictor()
        read.batch(files[:64])
        runs = [rate(read, files) for _ in range(3)]
        right = sum(a==b for a,b in zip(runs[0][1], ds.labels.tolist()))
        res['milliseconds'] = milliseconds(read, files)
        start = time.perf_counter()
        subprocess.run([sys.executable, '-m', 'mnist_fastai.predict', '--json', tmp],
                       stdout=subprocess.DEVNULL, check=True)
        seconds = time.perf_counter()-start
        res |= dict(images_per_second=sorted(o for o,_ in runs)[1], accuracy=right/n, command_seconds=seconds)
        if sys.platform.startswith('linux'):
            res['command_peak_mb'] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1024
    f = io.BytesIO()
    (Image.fromarray(photographed(ds.images[0].numpy(), rng)).resize((4000,3000), Image.BICUBIC)
     .convert('RGB').save(f, 'JPEG', quality=90))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        read(f.getvalue())
        seconds.append(time.perf_counter()-start)
    res |= dict(photo_seconds=sorted(seconds)[2], versions=versions(), threads=torch.get_num_threads(),
                cpus=os.cpu_count(), cpu=torch.backends.cpu.get_cpu_capability())
    atomic_write(Path(__file__).with_name('predict.json'), (json.dumps(res, indent=1) + '\n').encode())
    print(f"{res['images_per_second']:.0f} images a second ({100*res['accuracy']:.1f} % right); "
          f"the command {res['command_seconds']:.1f} s for {n:,}, peak {res.get('command_peak_mb', 0):.0f} MB; "
          f"a photo of 12 million pixels {1000*res['photo_seconds']:.0f} ms")

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--against', help='a file of `save_network`, or a registered network, untrained')
    args = p.parse_args()
    in_turns(args.against) if args.against else main()

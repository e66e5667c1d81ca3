"""How quickly pictures are read: `mnist_predict` on small images, and one large photograph. Writes predict.json

    python benchmarks/predict.py

needs an otherwise idle machine and a minute. The images are validation digits drawn on 280 by 280 pixels, as PNG files.
The photograph has 12 million pixels, as JPEG.
"""
import io, json, os, resource, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np, torch
from PIL import Image

from mnist_fastai.core import versions, atomic_write
from mnist_fastai.data import load_mnist
from mnist_fastai.inference import Predictor
from mnist_fastai.synthetic import photographed, shifted

def main(n=3000):
    rng,ds = np.random.default_rng(0),load_mnist().valid
    res = dict(images=n)
    with tempfile.TemporaryDirectory() as tmp:
        for i,d in enumerate(ds.images[:n].numpy()):
            Image.fromarray(255-shifted(d, rng)).resize((280,280), Image.BICUBIC).save(Path(tmp)/f'{i:05}.png')
        files,read = sorted(Path(tmp).iterdir()),Predictor()
        read.batch(files[:64])
        rates = []
        for _ in range(3):
            start = time.perf_counter()
            right = sum(o.label==y for o,y in zip(read.stream(files), ds.labels.tolist()))
            rates.append(n/(time.perf_counter()-start))
        start = time.perf_counter()
        subprocess.run([sys.executable, '-m', 'mnist_fastai.predict', '--json', tmp],
                       stdout=subprocess.DEVNULL, check=True)
        res |= dict(images_per_second=sorted(rates)[1], accuracy=right/n, command_seconds=time.perf_counter()-start)
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

if __name__=='__main__': main()

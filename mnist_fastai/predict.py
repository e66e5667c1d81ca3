"""The command `mnist_predict`: read the digits in pictures, a line each.

A plain file: how a picture is prepared and read is taught in lesson 16, and this only strings it together.
"""

__all__ = ['main', 'find_images']

import argparse, json, os, sys
from pathlib import Path

suffixes = {'.png','.jpg','.jpeg','.jpe','.mpo','.gif','.bmp','.tif','.tiff','.webp','.pgm','.ppm','.pbm','.pnm'} #: of the pictures in a folder

def find_images(
    paths, # Files and folders
): # The files, and in folders, at any depth, those with the suffix of a picture; in order, each folder's when it is reached
    "What the command reads, one path after another, so that no long list is kept"
    for p in map(Path, paths):
        if not p.is_dir(): yield p; continue
        found = False
        for folder,dirs,names in os.walk(p):
            dirs[:] = sorted(o for o in dirs if not o.startswith('.'))
            for o in sorted(names):
                if Path(o).suffix.lower() in suffixes and not o.startswith('.'):
                    found = True
                    yield Path(folder)/o
        if not found: yield p # answered like a file that is none, and not passed over

def _parser():
    from mnist_fastai import images
    p = argparse.ArgumentParser('mnist_predict', description='Read the digit in each picture. One digit a picture, on any paper, in any size from 8 pixels up.',
                                epilog=f'Read are {", ".join(images.formats)}, up to {images.max_pixels//10**6} million pixels. The exit code is 0 if all pictures were read, 1 if some could not be, 2 if the command was not understood.')
    p.add_argument('images', nargs='+', metavar='IMAGE', type=Path, help='files, and folders whose pictures are read')
    p.add_argument('--json', action='store_true', help='a line of JSON for each picture')
    p.add_argument('--show', action='store_true', help='also draw what the network saw, in characters')
    p.add_argument('--model', type=Path, help='a file made by save_network or mnist_train (default: the reader that comes with mnist_fastai)')
    p.add_argument('--threshold', type=float, metavar='P', help='probability from which a prediction is confident (default: what the file of the network says)')
    return p

def _drawing(image):
    "A digit in 14 lines of 28 characters: two rows of pixels in one of text"
    rows = image.float().view(14, 2, 28).mean(1)
    return '\n'.join(''.join(' .:+#@'[min(int(v/43), 5)] for v in row).rstrip() for row in rows.tolist())

def _line(path, o, args):
    "What is said of one picture"
    from mnist_fastai.images import ImageError
    name = str(path).encode('utf-8', 'backslashreplace').decode('utf-8') # a file's name may hold what no terminal can print
    name = ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
    if isinstance(o, ImageError): return json.dumps(dict(file=name, error=str(o))) if args.json else f'{name}: {o}'
    if not args.json: return f'{name}: {o.text}' + (f'\n{_drawing(o.image)}' if args.show else '')
    res = dict(file=name, label=o.label, confidence=round(o.confidence, 6), confident=o.confident,
               multiple_digits=o.multiple_digits, probabilities=[round(v, 6) for v in o.probs.tolist()])
    return json.dumps(res | (dict(image=o.image.tolist()) if args.show else {}))

class _Count:
    "Progress on a terminal's last line, where answers go into a file or a pipe"
    def __init__(self): self.on,self.n = sys.stderr.isatty() and not sys.stdout.isatty(),0
    def add(self):
        self.n += 1
        if self.on and self.n%100==0: print(f'\r{self.n:,} pictures', end='', file=sys.stderr, flush=True)
    def end(self):
        if self.on and self.n>=100: print(f'\r{self.n:,} pictures', file=sys.stderr)

def _run(args):
    "Read all; returns how many could not be read"
    from itertools import tee
    from mnist_fastai.images import ImageError
    from mnist_fastai.inference import Predictor
    read,bad,count = Predictor(args.model, args.threshold),0,_Count()
    names,sources = tee(find_images(args.images))
    for path,o in zip(names, read.stream(sources)):
        failed = isinstance(o, ImageError)
        bad += failed
        print(_line(path, o, args), file=sys.stderr if failed and not args.json else sys.stdout, flush=count.n%50==0)
        count.add()
    count.end()
    return bad

def main(argv=None):
    "Entry point of `mnist_predict`; returns the exit code"
    args = _parser().parse_args(argv)
    for o in (sys.stdout, sys.stderr):
        if hasattr(o, 'reconfigure'): o.reconfigure(errors='backslashreplace')
    try:
        from mnist_fastai.checkpoint import CheckpointError
        code = 1 if _run(args) else 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print('\nStopped.', file=sys.stderr)
        return 130
    except BrokenPipeError: # the reader of the output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CheckpointError,ValueError,OSError) as e:
        print(f'mnist_predict: {e}', file=sys.stderr)
        return 1

if __name__=='__main__': sys.exit(main())

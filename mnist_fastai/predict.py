"""The command `mnist_predict`: read the digits in pictures, a line each.

With `--json`, each line is an object. Its keys, for a picture that could be read:

- `file`: path as it was given or found. JSON escapes such as `\\n` stand for control characters. A byte that is not
  UTF-8 becomes a lone surrogate such as `\\udcff`, and `os.fsencode(row['file'])` gives the name back.
- `label`, `confidence`: the most probable digit, and its probability
- `confident`: whether the confidence reaches the threshold and the picture shows a single digit
- `multiple_digits`: whether it looks like more than one digit
- `probabilities`: ten numbers, for the digits 0 to 9
- `image`, with `--show`: the 28 by 28 pixels that the network was given, from 0 to 255

For a picture that could not be read there are two keys, `file` and `error`.

A plain file: how a picture is prepared and read is taught in lessons 16 and 17, and this only strings it together.
"""

__all__ = ['main', 'find_images']

import argparse, json, os, sys
from itertools import tee
from pathlib import Path

from mnist_fastai.core import UserError, printable
from mnist_fastai.images import ImageError, formats, max_pixels

#: Suffixes of the pictures in a folder
suffixes = set('.png .jpg .jpeg .jpe .mpo .gif .bmp .tif .tiff .webp .pgm .ppm .pbm .pnm'.split())

def _is_image(name): return Path(name).suffix.lower() in suffixes and not name.startswith('.')

def _walk(folder, unreadable):
    "The pictures in `folder` at any depth, in order. Folders that cannot be read are added to `unreadable`"
    def note(e): unreadable.append(Path(e.filename))
    for parent,dirs,names in os.walk(folder, onerror=note):
        dirs[:] = sorted(o for o in dirs if not o.startswith('.'))
        for name in sorted(filter(_is_image, names)): yield Path(parent)/name

def find_images(
    paths, # Files and folders
): # The files, and the pictures in the folders; each folder is walked when it is reached
    """What the command reads, one path after another, so that no long list is kept

    A folder without pictures, or one that cannot be read, is yielded itself: to open it raises `ImageError`."""
    for path in map(Path, paths):
        if not os.path.isdir(path): # unlike `path.is_dir()`, never raises
            yield path
            continue
        n,unreadable = 0,[]
        for n,image in enumerate(_walk(path, unreadable), 1): yield image
        yield from unreadable
        if not n and not unreadable: yield path

_epilog = f"""\
Pictures may be {', '.join(formats)}, from 8 pixels on the
longer side to {max_pixels//10**6} million pixels in all.

With --json, each line is an object with the keys file, label, confidence,
confident, multiple_digits and probabilities (also image with --show), or with
the keys file and error. In a file name, control characters are JSON escapes, and
a byte that is not UTF-8 is a lone surrogate, which os.fsencode turns back.

The exit code is 0 if all pictures were read, 1 if some could not be, 2 if the
command was not understood."""

def _parser():
    p = argparse.ArgumentParser('mnist_predict', epilog=_epilog, formatter_class=argparse.RawDescriptionHelpFormatter,
                                description='Read the digit in each picture: one digit, on any paper.')
    p.add_argument('images', nargs='+', metavar='IMAGE', type=Path, help='files, and folders whose pictures are read')
    p.add_argument('--json', action='store_true', help='a line of JSON for each picture')
    p.add_argument('--show', action='store_true', help='also draw what the network was given, in characters')
    p.add_argument('--model', type=Path,
                   help='a file made by save_network or mnist_train (default: the reader that comes with mnist_fastai)')
    p.add_argument('--threshold', type=float, metavar='P',
                   help='confidence from which a prediction is accepted (default: what the file of the network says)')
    return p

def _drawing(image):
    "A digit in 14 lines of 28 characters: a line of text for two rows of pixels"
    rows = image.float().view(14, 2, 28).mean(1)
    def draw(row): return ''.join(' .:+#@'[min(int(v/43), 5)] for v in row).rstrip()
    return '\n'.join(map(draw, rows.tolist()))

def _json_line(path, res, show):
    "A line of JSON for a `Prediction` or an `ImageError`. Raises `ValueError` for a probability that is not a number"
    row = dict(file=str(path))
    if isinstance(res, ImageError): row |= dict(error=str(res))
    else:
        row |= dict(label=res.label, confidence=round(res.confidence, 6), confident=res.confident,
                    multiple_digits=res.multiple_digits, probabilities=[round(v, 6) for v in res.probs.tolist()])
        if show: row |= dict(image=res.image.tolist())
    return json.dumps(row, allow_nan=False)

def _text_line(path, res, show):
    "A line of text for a `Prediction` or an `ImageError`, and the drawing if it is to be shown"
    if isinstance(res, ImageError): return printable(f'{path}: {res}')
    line = f'{printable(path)}: {res.text}'
    return f'{line}\n{_drawing(res.image)}' if show else line

class _Count:
    "Progress on a terminal's last line, where the predictions go into a file or a pipe"
    def __init__(self): self.on,self.n = sys.stderr.isatty() and not sys.stdout.isatty(),0
    def add(self):
        self.n += 1
        if self.on and self.n%100==0: print(f'\r{self.n:,} pictures', end='', file=sys.stderr, flush=True)
    def end(self):
        if self.on and self.n>=100: print(f'\r{self.n:,} pictures', file=sys.stderr)

def _run(args):
    "Read all; returns how many could not be read"
    from mnist_fastai.inference import Predictor
    predictor,n_failed,count = Predictor(args.model, args.threshold),0,_Count()
    paths,sources = tee(find_images(args.images))
    to_line = _json_line if args.json else _text_line
    try:
        for path,res in zip(paths, predictor.stream(sources)):
            failed = isinstance(res, ImageError)
            n_failed += failed
            out = sys.stderr if failed and not args.json else sys.stdout
            print(to_line(path, res, args.show), file=out, flush=count.n%50==0)
            count.add()
    except ValueError as e: raise UserError(f'{args.model or "the reader"}: {e}') from None
    count.end()
    return n_failed

def main(argv=None):
    "Entry point of `mnist_predict`; returns the exit code"
    args = _parser().parse_args(argv)
    if sys.stderr is None: sys.stderr = open(os.devnull, 'w') # it was closed before the command began
    if sys.stdout is None:
        print('mnist_predict: Standard output is closed: send it to a file or a terminal.', file=sys.stderr)
        return 1
    for o in (sys.stdout, sys.stderr):
        if hasattr(o, 'reconfigure'): o.reconfigure(errors='backslashreplace')
    try:
        n_failed = _run(args)
        sys.stdout.flush()
        return 1 if n_failed else 0
    except KeyboardInterrupt:
        print('\nStopped.', file=sys.stderr)
        return 130
    except BrokenPipeError: # the reader of the output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError,ImportError,ValueError,OSError) as e:
        print(f'mnist_predict: {printable(e)}', file=sys.stderr)
        return 1

if __name__=='__main__': sys.exit(main())

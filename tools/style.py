#!/usr/bin/env python3
"""What a reader of the notebooks and modules meets, in numbers. It prints, judges nothing, and always exits 0.

usage: python tools/style.py [NOTEBOOK ...]      (default: all notebooks, and the modules)
"""
import json, re, statistics, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def text(cell): return ''.join(cell['source'])
def code_lines(cell): return [o for o in text(cell).splitlines() if o.strip() and not o.lstrip().startswith('#')]
def is_hidden(cell): return bool(re.search(r'^#\| *(hide|default_exp)\b', text(cell), re.M))

def longest_run(cells):
    "How many visible code cells follow each other without a sentence, at most"
    run = best = 0
    for c in cells:
        if c['cell_type']=='markdown': run = 0
        elif not is_hidden(c): run += 1
        best = max(best, run)
    return best

def questions(prose):
    "How many numbered questions the lesson ends with"
    part = re.search(r'^## Questions\n(.*?)(?=^## |\Z)', prose, re.M|re.S)
    return len(re.findall(r'^\d+\. ', part[1], re.M)) if part else 0

def notebook(path):
    cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if text(c).strip()]
    code = [c for c in cells if c['cell_type']=='code']
    shown = [c for c in code if not is_hidden(c)]
    prose = '\n\n'.join(text(c) for c in cells if c['cell_type']=='markdown')
    lengths = [len(code_lines(c)) for c in shown] or [0]
    checks = sum(bool(re.search(r'\b(assert|test_\w+\(|expect_fail|raises\()', text(c))) for c in code)
    figures = sum('image/png' in o.get('data', {}) for c in code for o in c['outputs'])
    return dict(notebook=path.stem, words=len(prose.split()), visible=len(shown), code=len(code), checks=checks,
                median=statistics.median(lengths), longest=max(lengths), run=longest_run(cells), figures=figures,
                predict=len(re.findall(r'\*Predict', prose)), questions=questions(prose),
                wide=sum(len(l)>120 for c in code for l in text(c).splitlines()), kB=path.stat().st_size//1024)

def module(path):
    lines = path.read_text(encoding='utf-8').splitlines()
    return dict(module=path.name, lines=len(lines), wide=sum(len(o)>120 for o in lines if not o.startswith('__all__')))

def show(rows):
    widths = {k: max(len(k), *(len(str(r[k])) for r in rows)) for k in rows[0]}
    for row in [{k: k for k in widths}, *rows]: print('  '.join(str(row[k]).rjust(w) for k,w in widths.items()))

def main(paths):
    notebooks = [Path(o) for o in paths] or sorted((root/'nbs').rglob('*.ipynb'))
    show([notebook(o) for o in notebooks if '.ipynb_checkpoints' not in o.parts])
    if paths: return
    print()
    show([module(o) for o in sorted((root/'mnist_fastai').glob('*.py')) if o.name!='_modidx.py'])

if __name__=='__main__': main(sys.argv[1:])

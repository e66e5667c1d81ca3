#!/usr/bin/env python3
"""Fill the tables of results in README.md and models/README.md from the files that hold the results.

usage: python tools/tables.py [--check]

With --check nothing is written, and the exit code is 1 if a table differs from its file; the tests call it so.
"""
import json, re, statistics, sys
from pathlib import Path

root = Path(__file__).parents[1]

def load(path): return json.loads((root/path).read_text(encoding='utf-8'))

def table(head, rows):
    align = ['---'] + ['--:']*(len(head)-1)
    return '\n'.join('| ' + ' | '.join(map(str, r)) + ' |' for r in [head, align, *rows])

def accuracy():
    "Mean and spread over seeds"
    res,models = load('benchmarks/accuracy.json'),load('models/results.json')['networks']
    def cell(runs, k): return f'{100*statistics.mean(r[k] for r in runs):.2f} ± {100*statistics.stdev(r[k] for r in runs):.2f} %'
    rows = []
    for name in models:
        runs = [r for r in res['runs'] if r['network']==name]
        rows.append([f'`{name}`', f"{models[name]['parameters']:,}", cell(runs, 'valid_accuracy'), cell(runs, 'test_accuracy'), f"{statistics.mean(r['seconds'] for r in runs):.0f} s"])
    seeds = ', '.join(str(r['seed']) for r in res['runs'] if r['network']==name)
    v = res['versions']
    return (table(['network','parameters','validation','test','training'], rows) +
            f"\n\nMean ± standard deviation over the seeds {seeds}; trained on 50,000 digits of MNIST, {runs[0]['epochs']} epochs, recipes chosen on validation; "
            f"{res['threads']} threads of a CPU ({res['cpu']}), torch {v['torch']}, fastai {v['fastai']}. From `benchmarks/accuracy.json`.")

def card():
    "What the two committed files hold"
    res = load('models/results.json')
    rows = []
    for name,r in res['networks'].items():
        c = r['recipe']
        rows.append([f'`{name}.pth`', c['epochs'], c['bs'], f"{c['lr']:g}", f"{c['wd']:g}", c['kwargs'].get('p', ''), r['seed'], f"{100*r['valid_accuracy']:.2f} %", f"{100*r['test_accuracy']:.2f} %",
                     f"{r['valid_loss']:.4f}", f"{r['test_loss']:.4f}"])
    v = res['versions']
    return (table(['file','epochs','batch size','learning rate up to','weight decay','p','seed','validation','test','validation loss','test loss'], rows) +
            f"\n\nSource: {res['source']}; {res['device']}, {res['threads']} threads; Python {v['python']}, torch {v['torch']}, fastai {v['fastai']}. From `models/results.json`.")

places = {'README.md': ('results', accuracy), 'models/README.md': ('card', card)}

def main(check):
    stale = []
    for path,(name,make) in places.items():
        f = root/path
        old = f.read_text(encoding='utf-8')
        new = re.sub(f'(<!-- {name} -->\n).*(<!-- /{name} -->)', lambda m: m[1] + make() + '\n' + m[2], old, flags=re.S)
        if new!=old:
            stale.append(path)
            if not check: f.write_text(new, encoding='utf-8')
    if stale: print(f'{"differ from their results" if check else "filled"}: {", ".join(stale)}')
    return bool(stale and check)

if __name__=='__main__': sys.exit(main('--check' in sys.argv[1:]))

#!/usr/bin/env python3
"""What the texts say of results is what the files of results say.

usage: python tools/claims.py [--check]

Fills the figures and the tables in the READMEs and in the notebooks' Markdown; with --check nothing is written.
Each fault is a line, and the exit code is then 1.

A figure           <!--= FILE KEY FORMAT -->98.39 %<!--/-->
  KEY              a path such as versions.torch or runs.0.seconds (looks.Network.loss is of the last evaluation of
                   Network.pth); or, where FILE holds runs, ARM.METRIC.STAT with one of mean, sd, min, max, n;
                   or A-B.METRIC.STAT, of A less B over the seeds that both have: difference, low, high (the 95 %
                   t interval of `mnist_fastai.stats.compare`), p, n
  FORMAT           pct2 (a share, as 98.39 %), points2 (in percentage points, as +0.29), size2 (the same without a
                   sign), d2 (as 0.05), int (as 50,000), s (as it is); the digit is the number of decimals
A comparison       <!--? FILE A > B METRIC -->better<!--/-->  holds if the interval of A less B lies wholly above
                   zero; with < if below; with ~ if zero is in it
"""
import hashlib, json, math, os, re, statistics, sys
from functools import lru_cache
from pathlib import Path

root = Path(__file__).resolve().parents[1]

class Fault(Exception): "What is wrong with one claim, in a sentence"

# --- what the files of results say

def is_number(v): return isinstance(v, (int,float)) and not isinstance(v, bool)

@lru_cache(None)
def load(file):
    try: return json.loads((root/file).read_text(encoding='utf-8'))
    except OSError: raise Fault(f'there is no {file}') from None
    except ValueError as e: raise Fault(f'{file} is no JSON ({e})') from None

def arms(file):
    "The runs of each arm"
    runs = load(file).get('runs') if isinstance(load(file), dict) else None
    if not isinstance(runs, list): raise Fault(f'{file} holds no runs')
    res = {}
    for r in runs: res.setdefault(r.get('arm', r.get('network')), []).append(r)
    return res

def values(file, arm, metric):
    "A value for each seed"
    runs,res = arms(file).get(arm, []),{}
    if not runs: raise Fault(f'{file} has no runs of {arm!r}, only of {", ".join(map(str, arms(file)))}')
    for r in runs:
        v = r.get(metric)
        if not is_number(v) or not math.isfinite(v):
            raise Fault(f'a run of {arm!r} in {file} has no number {metric!r}')
        if r['seed'] in res: raise Fault(f'{file} has the seed {r["seed"]} of {arm!r} twice')
        res[r['seed']] = v
    return res

@lru_cache(None)
def paired(file, a, b, metric):
    "The comparison of two arms of a file: a less b"
    for o in (a,b): values(file, o, metric) # whose errors name the file
    from mnist_fastai.stats import compare
    runs = [dict(r, arm=arm) for arm in (a,b) for r in arms(file)[arm]]
    try: return compare(runs, [(a,b)], metric).iloc[0].to_dict()
    except ValueError as e: raise Fault(f'{file}: {e}') from None

stats = dict(mean=statistics.mean, sd=statistics.stdev, min=min, max=max, n=len)
pairs = 'difference','low','high','p','n'

def step_into(data, name):
    "A value of a dict, an item of a list by its position, or the last item of a list that is about the file `name`.pth"
    if isinstance(data, dict): return data[name]
    if name.isdecimal(): return data[int(name)]
    return [d for d in data if d.get('file')==f'{name}.pth'][-1]

def lookup(file, key):
    data,parts = load(file),key.rsplit('.', 2)
    if len(parts)==3 and parts[2] in {*stats, *pairs} and isinstance(data, dict) and 'runs' in data:
        arm,metric,stat = parts
        both = [(arm[:i],arm[i+1:]) for i,c in enumerate(arm) if c=='-' and {arm[:i],arm[i+1:]} <= set(arms(file))]
        if arm not in arms(file) and both and stat in pairs: return paired(file, *both[0], metric)[stat]
        vals = list(values(file, arm, metric).values())
        if stat not in stats:
            raise Fault(f'{stat} is of two arms, as in A-B.{metric}.{stat}, and {file} has no two that make {arm!r}')
        if stat=='sd' and len(vals)<2: raise Fault(f'one run of {arm!r} in {file} has no spread')
        return stats[stat](vals)
    for o in key.split('.'):
        try: data = step_into(data, o)
        except (AttributeError,KeyError,IndexError,TypeError,ValueError):
            raise Fault(f'{file} has no {key}: {o!r} is not there') from None
    return data

def form(v, f):
    m = re.fullmatch(r'(pct|points|size|d)(\d)|int|s', f)
    if not m: raise Fault(f'{f!r} is no format: use pct2, points2, size2, d2, int or s')
    if isinstance(v, (dict,list)) or f!='s' and not is_number(v): raise Fault(f'{str(v):.40} cannot be written as {f}')
    if f in ('s','int'): return str(v) if f=='s' else f'{v:,.0f}'
    kind,n = m.groups()
    forms = {'pct': f'{100*v:.{n}f} %', 'points': f'{100*v:+.{n}f}', 'size': f'{abs(100*v):.{n}f}', 'd': f'{v:.{n}f}'}
    return forms[kind]

def hold(text, file, a, sign, b, metric):
    "Raise `Fault` unless the comparison holds, and its word says the same"
    if sign not in ('>','<','~'): raise Fault(f'{sign!r} is no comparison: use >, < or ~')
    r = paired(file, a, b, metric)
    shown = '>' if r['low']>0 else '<' if r['high']<0 else '~'
    if shown!=sign:
        where = {'~': 'crosses zero', '>': 'lies wholly above zero', '<': 'lies wholly below zero'}[shown]
        raise Fault(f'"{text}" does not hold: over {r["n"]:.0f} seeds, {a} less {b} in {metric} is '
                    f'{r["difference"]:+.4g}, 95 % interval {r["low"]:+.4g} to {r["high"]:+.4g}, which {where}')
    small = metric.endswith(('loss','seconds','error','errors')) # small is good
    good,bad = ('<','>') if small else ('>','<')
    words = {'better|more accurate|beats?': good, 'worse|less accurate': bad,
             'higher|slower|more': '>', 'lower|faster|quicker|less|fewer': '<'}
    says = [o for w,o in words.items() if re.search(rf'\b({w})\b', text)]
    if sign!='~' and says and sign!=says[0]: raise Fault(f'"{text}" says the opposite of {a} {sign} {b} in {metric}')

# --- the tables

def table(head, rows):
    return '\n'.join('| ' + ' | '.join(map(str, r)) + ' |' for r in [head, ['---'] + ['--:']*(len(head)-1), *rows])

def accuracy():
    "Mean and spread over seeds"
    file,models = 'benchmarks/accuracy.json',load('models/results.json')['networks']
    def look(name, metric, stat, f): return form(lookup(file, f'{name}.{metric}.{stat}'), f)
    def cell(name, metric): return f"{look(name, metric, 'mean', 'pct2')[:-2]} ± {look(name, metric, 'sd', 'pct2')}"
    def row(o, m):
        seconds = look(o, 'seconds', 'mean', 'd0') + ' s'
        return f'`{o}`', f"{m['parameters']:,}", cell(o, 'valid_accuracy'), cell(o, 'test_accuracy'), seconds
    rows = [row(o, m) for o,m in models.items()]
    res,runs = load(file),arms(file)[list(models)[-1]]
    seeds,v = ', '.join(str(r['seed']) for r in runs),res['versions']
    return (table(['network','parameters','validation','test','training'], rows) +
            f"\n\nMean ± standard deviation over the seeds {seeds}; trained on 50,000 digits of MNIST, "
            f"{runs[0]['epochs']} epochs, recipes chosen on validation; {res['threads']} threads of a CPU "
            f"({res['cpu']}), torch {v['torch']}, fastai {v['fastai']}. From `{file}`.")

def card():
    "What the two committed files hold"
    res,rows = load('models/results.json'),[]
    for name,r in res['networks'].items():
        c = r['recipe']
        sha = hashlib.sha256((root/f'models/{name}.pth').read_bytes()).hexdigest()
        look = next((o for o in load('results/final_test.json')['looks'] if o['sha256']==sha), None)
        if look is None:
            raise Fault(f'results/final_test.json has no evaluation of models/{name}.pth: run mnist_final_test')
        r = r | {f'test_{k}': look[k] for k in ('accuracy','loss')}
        scores = [form(r[f'{o}_{k}'], f) for k,f in (('accuracy','pct2'), ('loss','d4')) for o in ('valid','test')]
        recipe = [c['epochs'], c['bs'], f"{c['lr']:g}", f"{c['wd']:g}", c['kwargs'].get('p', '')]
        rows.append([f'`{name}.pth`', *recipe, r['seed'], *scores])
    v = res['versions']
    head = ['file','epochs','batch size','learning rate up to','weight decay','p','seed',
            'validation','test','validation loss','test loss']
    return (table(head, rows) +
            f"\n\nSource: {res['source']}; {res['device']}, {res['threads']} threads; Python {v['python']}, "
            f"torch {v['torch']}, fastai {v['fastai']}. From `models/results.json`; the figures on the test digits "
            "from the log `results/final_test.json`.")

tables = {'README.md': ('results', accuracy), 'models/README.md': ('card', card)}

# --- what the texts say

code = re.compile(r'^```.*?^```|`[^`\n]+`', re.S|re.M)
marker = re.compile(r'<!--\s*([=?])((?:(?!<!--).)*?)-->|<!--\s*(/)\s*-->|<!--\s*[=?]', re.S)

def filled(text, tell):
    "`text` with every figure as its file has it; `tell` hears of each that was not, and of what is wrong"
    res,last,opened = '',0,None
    for m in marker.finditer(code.sub(lambda m: ' '*len(m[0]), text)):
        if m[3] and not opened: tell(f'{m[0]} closes nothing')
        elif m[3]:
            said,args = text[opened.end():m.start()],opened[2].split()
            try:
                if opened[1]=='=' and len(args)==3:
                    want = form(lookup(*args[:2]), args[2])
                    if said!=want: tell(f'"{said}" should be "{want}" ({args[0]} {args[1]})', True)
                    res,last = res + text[last:opened.end()] + want,m.start()
                elif opened[1]=='?' and len(args)==5: hold(said, *args)
                else: tell(f'{opened[0]} is not FILE KEY FORMAT after = or FILE A > B METRIC after ?')
            except Fault as e: tell(f'{e} ({opened[0]})')
            opened = None
        else:
            if opened or not m[1]: tell(f'{(opened or m)[0]} is not closed')
            opened = m if m[1] else None
            before = text[:m.start()].rpartition('\n')[2]
            if re.fullmatch(r'[\s>*+-]*(\d+[.)]\s*)?', before):
                tell(f'{m[0]} begins a line, which Markdown then takes for HTML: put a word before it')
    if opened: tell(f'{opened[0]} is not closed')
    return res + text[last:]

def markdown_of(path, text):
    "The parts of a file that are read: where each stands, and its text"
    if not path.endswith('.ipynb'): return [(path, text)]
    cells = enumerate(json.loads(text)['cells'])
    return [(f'{path}, cell {i}', ''.join(c['source'])) for i,c in cells if c['cell_type']=='markdown']

def with_markdown(path, text, new):
    "`text` with its parts replaced by `new`"
    if not path.endswith('.ipynb'): return new[0]
    nb = json.loads(text)
    cells = [c for c in nb['cells'] if c['cell_type']=='markdown']
    for c,t in zip(cells, new): c['source'] = t.splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n'

def with_table(path, text, tell):
    "`text` with the table of this file made again"
    name,make = tables[path]
    try: content = make()
    except (Fault,KeyError,TypeError) as e:
        tell(f'{path}: the table {name!r} cannot be made ({e})')
        return text
    return re.sub(f'(<!-- {name} -->\n).*(<!-- /{name} -->)', lambda m: m[1]+content+'\n'+m[2], text, flags=re.S)

def main(check):
    faults,done = [],[]
    notebooks = sorted(o.relative_to(root).as_posix() for o in root.glob('nbs/**/*.ipynb'))
    for path in ['README.md', 'models/README.md', 'benchmarks/README.md', *notebooks]:
        try: old = (root/path).read_text(encoding='utf-8')
        except OSError: faults.append(f'{path}: there is no such file'); continue
        cells,new = markdown_of(path, old),[]
        for where,text in cells:
            def tell(fault, fixed=False):
                if check or not fixed: faults.append(f'{where}: {fault}')
            new.append(filled(text, tell))
        if path in tables:
            before,new[0] = new[0],with_table(path, new[0], faults.append)
            if new[0]!=before and check:
                faults.append(f'{path}: the table {tables[path][0]!r} differs from its file of results')
        if [t for _,t in cells]!=new and not check:
            part = (root/path).with_name('.new-' + Path(path).name)
            part.write_text(with_markdown(path, old, new), encoding='utf-8', newline='\n')
            os.replace(part, root/path)
            done.append(path)
    if done: print('filled: ' + ', '.join(done))
    for o in faults: print(o)
    return bool(faults)

if __name__=='__main__': sys.exit(main('--check' in sys.argv[1:]))

"""Every term is bold once, where it is defined; the glossary has it with that lesson; and no lesson uses it before

Code, formulas, comments, headings (which name what comes below them) and the first cell of a lesson are not read.
Nor is the one-page notebook, which explains as it goes."""
import json, re

import pytest

from conftest import repo

lessons = sorted((repo/'nbs').glob('[0-9][0-9]_*.ipynb'))
bold = re.compile(r'\*\*(.+?)\*\*', re.S)
entry = re.compile(r'^- \*\*(.+?)\*\*: (.+[.)]) \[Lesson (\d+)\]\((\d\d_\w+)\.ipynb\)$')

def read_glossary(text):
    "Term: the lesson that defines it"
    lines = [o for o in text.splitlines() if o.startswith('- ')]
    parts = [entry.match(o) for o in lines]
    assert all(parts), [o for o,p in zip(lines, parts) if not p]
    assert all(int(p[3])==int(p[4][:2]) for p in parts)
    terms = [p[1] for p in parts]
    assert len(set(terms))==len(terms) and terms==sorted(terms, key=str.lower)
    return {p[1]: p[4] for p in parts}

def plain(s):
    "Markdown without what is not prose, of the same length so that positions stay"
    blank = lambda m: ' '*len(m[0])
    s = re.sub(r'^#+ .*$', blank, s, flags=re.M)
    for o in (r'```.*?```', r'<!--.*?-->', r'<[^>\n]+>', r'\$\$.*?\$\$', r'\$[^$\n]+\$', r'`[^`]*`',
              r'(?<=\])\([^)]*\)'):
        s = re.sub(o, blank, s, flags=re.S)
    return s

def forward(s):
    "`s` without terms that are announced: in italics, in a paragraph that has a link"
    paragraphs = re.split(r'(\n\s*\n)', s)
    italic = re.compile(r'(?<!\*)\*(?!\*)([^*\n]+)\*(?!\*)')
    return ''.join(italic.sub(lambda m: ' '*len(m[0]), o) if '](' in o else o for o in paragraphs)

def prose(nb):
    "The Markdown cells after the first: their positions and texts"
    cells = [(i, ''.join(c['source'])) for i,c in enumerate(nb['cells']) if c['cell_type']=='markdown']
    return [(i, plain(forward(s))) for i,s in cells if i>0]

def pattern(term):
    "`term` as a whole phrase, with its plural, with hyphens or spaces"
    body = re.escape(term).replace(r'\-', '[- ]').replace(r'\ ', r'[-\s]+')
    plural = body[:-1] + '(?:y|ies)' if term.endswith('y') else body + '(?:s|es)?'
    return re.compile(rf'(?<![\w-]){plural}(?![\w-])', 0 if term[0].isupper() else re.I)

def faults(notebooks, terms):
    """What is wrong, in sentences

    `notebooks`: name and content in the order of reading; `terms`: as `read_glossary` gives them"""
    res,defined = [],{}
    for n,(name,nb) in enumerate(notebooks):
        for i,s in prose(nb):
            for m in bold.finditer(s):
                term = ' '.join(m[1].split())
                key = next((o for o in terms if pattern(o).fullmatch(term)), None)
                if key is None: res.append(f'{name}, cell {i}: **{term}** is bold and not in the glossary')
                elif key in defined:
                    res.append(f'{name}, cell {i}: **{term}** is bold again, after {notebooks[defined[key][0]][0]}')
                else:
                    defined[key] = n,i,m.start()
                    if terms[key]!=name:
                        res.append(f'{name}: defines {term!r}, which the glossary gives to {terms[key]}')
    res += [f'{o!r} of the glossary is bold in no lesson' for o in terms if o not in defined]
    for n,(name,nb) in enumerate(notebooks):
        for i,s in prose(nb):
            for term in sorted(terms, key=len, reverse=True): # the longest first: "training step" is not "step"
                if term not in defined: continue
                for m in pattern(term).finditer(s):
                    if (n,i,m.end())<defined[term]:
                        res.append(f'{name}, cell {i}: '
                                   f'uses {m[0]!r} before {notebooks[defined[term][0]][0]} defines it')
                s = pattern(term).sub(lambda m: ' '*len(m[0]), s)
    return res

def test_the_lessons():
    terms = read_glossary((repo/'nbs'/'glossary.md').read_text(encoding='utf-8'))
    notebooks = [(o.stem, json.loads(o.read_text(encoding='utf-8'))) for o in lessons]
    assert len(terms)>60 and not (found := faults(notebooks, terms)), '\n'.join(found)

# --- each kind of fault, on a made-up lesson

def nb(*cells):
    return dict(cells=[dict(cell_type='markdown', source=s)
                       for s in ('# Title\n\nUses gradient at will', *cells)])

good = [
    ('01_a', nb('The **loss** is a number.',
                '## A gradient\n\n'
                'A `gradient` in code, $gradient$, <!-- gradient -->, [*gradient*](02_b.ipynb) and a loss.')),
    ('02_b', nb('Its **gradient**', 'Two gradients, a **mini-batch**, and mini batches.'))]
terms = {'loss':'01_a', 'gradient':'02_b', 'mini-batch':'02_b'}

def test_a_good_course(): assert faults(good, terms)==[]

@pytest.mark.parametrize('lesson,cell,says', [
    (0, 'The gradient is coming.', "uses 'gradient' before 02_b defines it"),
    (0, 'All Gradients.', "uses 'Gradients' before 02_b"),
    (0, 'A mini batch.', "uses 'mini batch' before"),
    (1, 'The **loss** again.', 'is bold again, after 01_a'),
    (1, 'Not **important**.', 'is bold and not in the glossary'),
    (0, 'An early **mini-batch**.', 'which the glossary gives to 02_b'),
    (0, 'In italics without a link: *gradient*.', "uses 'gradient' before")])
def test_faults(lesson, cell, says):
    course = json.loads(json.dumps(good))
    course[lesson][1]['cells'].append(dict(cell_type='markdown', source=cell))
    found = faults(course, terms)
    assert found and any(says in o for o in found), found

def test_a_term_that_no_lesson_defines():
    assert faults(good, terms | {'tensor':'01_a'})==["'tensor' of the glossary is bold in no lesson"]

def test_longer_terms_hide_shorter_ones():
    course = [('01_a', nb('A **learning rate finder** is a tool.')), ('02_b', nb('The **learning rate** is a number.'))]
    assert faults(course, {'learning rate finder':'01_a', 'learning rate':'02_b'})==[]

@pytest.mark.parametrize('text', [
    '- **a**: No link.',
    '- **b**: B. [Lesson 2](02_b.ipynb)\n- **a**: A. [Lesson 1](01_a.ipynb)',
    '- **a**: A. [Lesson 1](01_a.ipynb)\n- **a**: A. [Lesson 1](01_a.ipynb)',
    '- **a**: A. [Lesson 3](01_a.ipynb)'])
def test_a_glossary_that_is_none(text):
    with pytest.raises(AssertionError): read_glossary(text)
